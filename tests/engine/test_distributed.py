"""Two processes on a CPU, started by torchrun as a user would."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.loader import config_from_dict
from deim.data.splits import build_splits
from deim.engine.build import prepare_run
from deim.engine.distributed import DistributedContext, join_distributed
from deim.errors import ConfigError, TrainingError
from tests.conftest import TINY
from tests.engine.ranks import compute_gradients

REPOSITORY = Path(__file__).parents[2]
RANKS = Path(__file__).parent / "ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def content_of(root: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = copy.deepcopy(TINY) | {"output_dir": str(folder)}
    content["data"]["root"] = str(root)
    for key, value in changes.items():
        block, name = key.split("__") if "__" in key else (None, key)
        (content if block is None else content.setdefault(block, {}))[name] = value
    return content


def run_ranks(tmp_path: Path, request: dict[str, Any]) -> Any:
    torch.save(request, tmp_path / "request.pth")
    command = [*TORCHRUN, RANKS, tmp_path / "request.pth", tmp_path / "result.pth"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "result.pth", weights_only=True)


def write_config(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def start_training(config: Path, *arguments: str, stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [*TORCHRUN, str(REPOSITORY / "tools" / "train.py"), "-c", str(config), *arguments]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=config.parent
    )


def wait_until(happened: Callable[[], bool], *, seconds: float = 300) -> float:
    """The time at which it had happened, or at which it had to."""
    started = time.monotonic()
    while not happened() and time.monotonic() - started < seconds:
        time.sleep(0.01)
    return time.monotonic()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    content = content_of(tmp_path, tmp_path / "run")
    # Image i belongs to process i % 2: in the second and third case one process has empty images only.
    cases = [([1, 2, 3, 0], None), ([2, 0, 1, 0], None), ([0, 0, 0, 0], None), ([1, 5, 0, 2, 1, 1, 0, 0], 2)]
    actual = run_ranks(tmp_path, {"what": "gradients", "config": content, "cases": cases})
    for (numbers, _), result in zip(cases, actual, strict=True):
        expected = compute_gradients(content, numbers, DistributedContext(), micro_batch_size=None)
        assert result["skip_reason"] is expected["skip_reason"] is None
        assert result["gradients"].keys() == expected["gradients"].keys()
        for name, value in expected["terms"].items():
            assert result["terms"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (numbers, name)
        for name, value in expected["gradients"].items():
            difference = (result["gradients"][name] - value).norm()
            assert difference <= 1e-5 * value.norm() + 1e-7, (numbers, name)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [None, {"size": 48}], ids=["whole", "tiled"])
def test_each_image_is_scored_once(
    tiles: dict[str, Any] | None, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 7, "val": 1, "test": 1})
    request = {"what": "evaluation", "config": content_of(root, tmp_path / "run", data__tiles=tiles)}
    two = run_ranks(tmp_path, request)
    assert two["shares"] == [4, 3]
    torch.save(request, tmp_path / "request.pth")
    command = [sys.executable, RANKS, tmp_path / "request.pth", tmp_path / "one.pth"]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=300)
    first = torch.load(tmp_path / "one.pth", weights_only=True)
    assert two["ap50"] == pytest.approx(first["ap50"], abs=1e-9)
    assert [entry["image_id"] for entry in two["entries"]] == [
        entry["image_id"] for entry in first["entries"]
    ]
    scores = [[entry["score"] for entry in result["entries"]] for result in (two, first)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.slow
def test_a_run_with_an_uneven_last_batch_stops_early_and_is_scored(
    tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 11, "val": 3, "test": 1})
    content = content_of(
        root,
        tmp_path / "run",
        epochs=9,
        data__batch_size=2,
        early_stopping__patience=1,
        early_stopping__min_delta=1.0,
        schedule__no_aug_epochs=7,
    )
    process = start_training(write_config(tmp_path, content))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    epochs = [line for line in lines_of(tmp_path / "run") if line["event"] == "epoch"]
    # Eleven images in steps of four: the last has two, one image is left out. Patience counts from epoch 2.
    assert [line["step"] for line in epochs] == [3, 6, 9]
    assert "stopping early" in out
    assert out.count("epoch 3/9") == 1
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["num_images"] == 3


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_both_processes(tmp_path: Path, write_coco: Callable[..., Path]) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 12, "val": 2, "test": 1})
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = write_config(tmp_path / "whole", content_of(root, tmp_path / "whole" / "run", epochs=20))
    process = start_training(whole)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    parts = write_config(tmp_path / "parts", content_of(root, tmp_path / "parts" / "run", epochs=20))
    process = start_training(parts)
    wait_until((tmp_path / "parts" / "run" / "metrics.jsonl").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert len(lines_of(tmp_path / "parts" / "run")) < 20
    process = start_training(parts, "--resume", "auto")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    runs = [lines_of(tmp_path / name / "run") for name in ("parts", "whole")]
    assert [line["loss"] for line in runs[0]] == [line["loss"] for line in runs[1]]


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_within_a_minute(
    tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 12, "val": 2, "test": 1})
    image = root / "images" / "train_5.png"
    image.write_bytes(image.read_bytes()[:-400])  # its header is whole: found when one process decodes it
    config = write_config(tmp_path, content_of(root, tmp_path / "run", epochs=50))
    errors = tmp_path / "errors.txt"
    with errors.open("w") as file:
        process = start_training(config, stderr=file)
    said = wait_until(lambda: "train_5.png: the image is damaged" in errors.read_text())
    ended = wait_until(lambda: process.poll() is not None)
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert "train_5.png: the image is damaged" in errors.read_text()
    assert ended - said < 60


def test_several_processes_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    message = r"WORLD_SIZE is 2, but RANK, .* not set\. Start several processes with torchrun\."
    with pytest.raises(ConfigError, match=message), join_distributed("cpu"):
        pass


def test_one_process_needs_nothing() -> None:
    with join_distributed("auto") as distributed:
        assert (distributed.size, distributed.is_main) == (1, True)
        assert distributed.gather(3) == [3]
        assert distributed.max(5) == 5
        assert distributed.sum(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize(("images", "processes"), [(1, 2), (3, 4)])
def test_an_epoch_without_a_step_is_refused_with_the_numbers(
    images: int, processes: int, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": images, "val": 2})
    overrides = [f"data.root={root}", f"output_dir={tmp_path / 'run'}", "data.batch_size=1"]
    config = config_from_dict(TINY, where="tiny", overrides=overrides)
    distributed = DistributedContext(rank=0, size=processes)
    message = rf"an epoch has 0 steps, got {images} training images? for {processes} processes\."
    with pytest.raises(TrainingError, match=message):
        prepare_run(config, build_splits(config.data), distributed=distributed)
