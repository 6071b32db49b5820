"""A full disk: old files stay whole, nothing is left behind, and the message says file, sizes and advice."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from deim.engine.log import RunLog
from deim.errors import DiskFullError
from deim.files import FileGroup, JsonListFile, copy_file, write_atomically, write_bytes, write_text
from deim.report.charts import save_chart
from deim.report.draw import write_image
from tests.conftest import TINY
from tests.full_disk import Inputs, can_mount, commands_of, fill_up, make_inputs, small_disk

needs_mount = pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
ROOT = Path(__file__).parents[1]


@contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_without_room_leaves_the_old_one_and_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    write_text(path, "old")
    with file_limit(5000), pytest.raises(DiskFullError) as caught:
        write_bytes(path, bytes(300_000))
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written (File too large, it needs 293.0 KiB, and ")
    assert "are free). Raise the limit on the size of files (ulimit -f)" in message
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.json"]


def test_a_writer_that_always_fails_is_named_with_the_file(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.bin"
    with pytest.raises(DiskFullError) as caught:
        write_atomically(path, fail)
    assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device, and ")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_images_charts_and_copies_are_whole_or_the_old_ones(tmp_path: Path) -> None:
    noise = Image.effect_noise((300, 300), 90)
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(100_000))
    writers = {
        "image.png": lambda path: write_image(noise, path),
        "chart.png": lambda path: save_chart(lambda figure: figure.subplots(), path, height=3),
        "copy.bin": lambda path: copy_file(source, path),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_bytes(b"old")
        with file_limit(2000), pytest.raises(DiskFullError, match=name):
            write(path)
        assert path.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_files_that_belong_together_are_all_new_or_all_old(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path in (first, second):
        write_text(path, "old")

    def write_both(size: int) -> None:
        with FileGroup() as group:
            group.write(first, lambda file: file.write(b"new"))
            group.write(second, lambda file: file.write(bytes(size)))

    with file_limit(1000), pytest.raises(DiskFullError, match=r"b\.json"):
        write_both(2000)
    assert [path.read_text() for path in (first, second)] == ["old", "old"]
    assert len(list(tmp_path.iterdir())) == 2
    write_both(3)
    assert first.read_text() == "new"


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 250 + ".json", "缺" * 82 + ".json"):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_a_list_stays_whole_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    entries = JsonListFile(path)
    entries.add([{"number": 1}])
    with file_limit(500), pytest.raises(DiskFullError, match=r"list\.json: cannot be written"):
        entries.add([{"text": "x" * 1000}])
    assert json.loads(path.read_text()) == [{"number": 1}]
    entries.add([{"number": 2}])
    entries.finish()
    assert json.loads(path.read_text()) == [{"number": 1}, {"number": 2}]


def test_an_old_list_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1, 2, 3]")
    entries = JsonListFile(path)
    entries.add([4])
    assert json.loads(path.read_text()) == [1, 2, 3]
    assert json.loads((tmp_path / "list.unfinished.json").read_text()) == [4]
    entries.add([5])
    entries.finish()
    assert json.loads(path.read_text()) == [4, 5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["list.json"]


def test_logs_without_room_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLog(tmp_path) as log:
        log.write("epoch", epoch=0)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        for room in (0, 1, 30):
            with (
                file_limit(len(before) + room),
                pytest.raises(DiskFullError, match=r"metrics\.jsonl: cannot be written \(File too large, it"),
            ):
                log.write("epoch", epoch=1)
            assert (tmp_path / "metrics.jsonl").read_bytes() == before

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    with (
        RunLog(tmp_path, tensorboard=True) as log,
        pytest.raises(DiskFullError, match=f"^{tmp_path}/tensorboard: .* are free"),
    ):
        log.curves({"loss": 1.0}, step=1)


def test_a_prediction_without_room_says_so_and_leaves_the_old_lists(
    tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "deim", "predict", str(tiny_run), str(tiny_set / "images")]
    command += ["--output", str(tmp_path / "found"), "--score-threshold", "0"]
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "predictions.json").write_text("[]")
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large, it needs " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "found" / "predictions.json").read_text() == "[]"
    for path in (tmp_path / "found").rglob("*.json"):
        json.loads(path.read_text())
    assert not list(tmp_path.rglob("*.part"))


@needs_mount
@pytest.mark.parametrize("name", ["evaluate", "predict", "check", "convert", "stats"])
def test_a_full_disk_leaves_only_whole_files(
    name: str, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    inputs = Inputs(data=tiny_set, config=tmp_path / "tiny.yml", run=tiny_run)
    with small_disk(tmp_path / "disk") as disk:
        fill_up(name, inputs, disk, trials=2)


@needs_mount
def test_a_training_stopped_by_a_full_disk_can_be_resumed(tiny_set: Path, tmp_path: Path) -> None:
    places = {"data": {**TINY["data"], "root": str(tiny_set)}, "output_dir": str(tmp_path / "run")}
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(TINY | {"epochs": 1, **places}))
    inputs = Inputs(data=tiny_set, config=tmp_path / "tiny.yml", run=tmp_path / "run")
    with small_disk(tmp_path / "disk") as disk:
        assert fill_up("train", inputs, disk, trials=1)["stopped"] == 1


@needs_mount
@pytest.mark.slow
def test_fifty_full_disks_lose_nothing(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    for name in commands_of(inputs, tmp_path, 0):
        with small_disk(tmp_path / name) as disk:
            fill_up(name, inputs, disk, trials=5, seed=1)
