"""Loading processes that die, hang or fail: the run says so in a line, is saved, and leaves none behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.schema import Config
from deim.data.loader import BatchLoader
from deim.data.sampling import FixedBatches
from deim.engine.checkpoints import read_checkpoint
from deim.engine.run_folder import find_resume
from deim.engine.trainer import Trainer
from deim.errors import ConfigError, TrainingError
from tests.conftest import TINY

REPOSITORY = Path(__file__).parents[2]
CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
needs_linux = pytest.mark.skipif(not CHILDREN.exists(), reason="reads Linux's list of child processes")


def is_alive(process: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children_of(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until(is_true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def training(folder: Path, root: Path, **data: Any) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A run with two processes for training and two for validation, after an epoch; and these processes."""
    content = TINY | {
        "output_dir": str(folder / "run"),
        "epochs": 400,
        "data": TINY["data"] | {"root": str(root), "num_workers": 2} | data,
        "evaluation": {"bootstrap_resamples": 0},
    }
    (folder / "tiny.yml").write_text(json.dumps(content), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tools" / "train.py"), "-c", str(folder / "tiny.yml")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1") for line in iter(process.stdout.readline, ""))
        workers = children_of(process.pid)
        assert len(workers) == 4
        yield process, workers
    finally:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[str], workers: list[int], code: int) -> str:
    """Wait for the end of a run, and return its one line about it."""
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    wait_until(lambda: not any(map(is_alive, workers)), 10)
    return error


LOST = "data.num_workers: a loading process ended (process {} by {}). "
FAULTS = {
    "killed": (signal.SIGKILL, LOST),
    "ended": (signal.SIGTERM, LOST),
    "hangs": (signal.SIGSTOP, "data.worker_timeout_s: no batch came within 2 s. "),
}


@needs_linux
@pytest.mark.parametrize("workers_at_fault", ["one", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "fault", ["killed", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("ended", "hangs"))]
)
def test_a_lost_loading_process_ends_the_run_with_a_line_and_its_state(
    fault: str, workers_at_fault: str, tmp_path: Path, tiny_set: Path
) -> None:
    number, expected = FAULTS[fault]
    with training(tmp_path, tiny_set, worker_timeout_s=2) as (process, workers):
        for worker in workers if workers_at_fault == "all" else workers[:1]:
            os.kill(worker, number)
        line = end_of(process, workers, 2)
    name = signal.Signals(number).name
    assert any(line.startswith(expected.format(worker, name)) for worker in workers)
    checkpoint = read_checkpoint(tmp_path / "run" / "last.pth")
    epochs = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    # Two steps an epoch; without the state at the fault, the last one would be that of an epoch's end.
    assert checkpoint.step in (2 * epochs, 2 * epochs + 1, 2 * epochs + 2)


@needs_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_wait_for_a_hung_process(number: int, tmp_path: Path, tiny_set: Path) -> None:
    with training(tmp_path, tiny_set) as (process, workers):
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(number)
        error = end_of(process, workers, 128 + number)
    assert time.monotonic() - started < 20
    assert error.startswith(f"stopped by {signal.Signals(number).name} in epoch ")
    assert read_checkpoint(tmp_path / "run" / "last.pth").resume is not None


class Slow(torch.utils.data.Dataset):
    """Images that never come, or errors."""

    def __init__(self, fault: Callable[[], Any]) -> None:
        self.fault = fault

    def __getitem__(self, request: Any) -> Any:
        return self.fault()


class OddError(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{text} {number}")


def raise_odd() -> None:
    raise OddError(3, "odd")


def raise_config_error() -> None:
    raise ConfigError("data: odd\nin two lines")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda: time.sleep(100), r"data\.worker_timeout_s: no batch came within 0\.5 s\. "),
        (lambda: os._exit(7), r"data\.num_workers: a loading process ended \(process \d+ with exit code 7\)"),
        (lambda: sys.exit(0), r"data\.num_workers: a loading process ended \(process \d+ with exit code 0\)"),
        (lambda: {}["lost"], r"data\.num_workers: a loading process failed \(KeyError: 'lost'\)\. "),
        (raise_odd, r"data\.num_workers: a loading process failed \(.*odd 3\)\. "),
        (raise_config_error, r"data\.num_workers: a loading process failed \(in two lines\)\. "),
        (
            lambda: os.open("/lost", os.O_RDONLY),
            r"data\.num_workers: a loading process failed \(FileNotFound",
        ),
        (lambda: bytearray(2**62), r"data\.num_workers: a loading process failed \(MemoryError"),
        (lambda: (_ for _ in ()), r"data\.num_workers: .*cannot pickle 'generator'|data\.worker_timeout_s"),
    ],
    ids=["hangs", "exits", "leaves", "key", "odd", "config", "file", "memory", "no pickle"],
)
def test_whatever_a_loading_process_does_is_one_line(fault: Callable[[], Any], expected: str) -> None:
    loader = BatchLoader(Slow(fault), FixedBatches([[(0, 0)]] * 4), num_workers=2, timeout_s=0.5)
    started = time.monotonic()
    with pytest.raises(TrainingError, match=rf"^{expected}") as caught:
        list(loader)
    assert time.monotonic() - started < 10
    assert len(str(caught.value).splitlines()) == 1
    assert not any(process.is_alive() for process in loader._processes)


@needs_linux
@pytest.mark.parametrize(("limit", "workers"), [(1024, 2), (256, 3)])
def test_large_batches_need_few_open_files(limit: int, workers: int, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(f"""
import resource, torch
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
from deim.data.batch import Batch
from deim.data.loader import BatchLoader
from deim.data.sampling import FixedBatches

class Images(torch.utils.data.Dataset):
    def __getitem__(self, request):
        number = request.number
        rows = [
            dict(boxes=torch.full((3, 4), number), labels=torch.arange(3), area=torch.ones(3), image_id=row)
            for row in range(128)
        ]
        batch = Batch(images=torch.full((128, 3, 8, 8), number), targets=rows)
        batch.share()
        return batch

if __name__ == "__main__":
    batches = list(BatchLoader(Images(), FixedBatches([[(0, 0)]] * 20), num_workers={workers}, timeout_s=20))
    for number, batch in enumerate(batches):
        assert (batch.images == number).all() and batch.targets[127]["image_id"] == 127
        target = batch.targets[127]
        assert (target["boxes"] == number).all() and target["labels"].tolist() == [0, 1, 2]
    print(len(batches))
""")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr


@needs_linux
def test_too_many_processes_for_the_open_files_are_one_line(tmp_path: Path, tiny_set: Path) -> None:
    content = TINY | {
        "output_dir": str(tmp_path / "run"),
        "data": TINY["data"] | {"root": str(tiny_set), "num_workers": 60},
    }
    (tmp_path / "tiny.yml").write_text(json.dumps(content), encoding="utf-8")
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, REPOSITORY / "tools" / "train.py", "-c", tmp_path / "tiny.yml"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("data.num_workers: too many open files ("), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4])
def test_a_run_goes_on_from_the_step_at_which_a_process_was_lost(
    step: int,
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 30, "val": 2, "test": 1})
    options = ("epochs=2", "data.num_workers=1", "augment.photometric=0.5")
    build_tiny(tiny_config(root, tmp_path / "whole", *options)).train()
    trainer = build_tiny(tiny_config(root, tmp_path / "parts", *options))
    save_if_due = trainer._save_if_due

    def kill_a_process() -> None:
        save_if_due()
        if trainer.progress.step == step:
            for process in trainer.run.products.loader._processes:
                os.kill(process.pid, signal.SIGKILL)

    monkeypatch.setattr(trainer, "_save_if_due", kill_a_process)
    with pytest.raises(TrainingError, match="a loading process ended"):
        trainer.train()
    # Batches that were loaded before are used first.
    assert step <= read_checkpoint(tmp_path / "parts" / "last.pth").step < 10
    resume_from = find_resume(tmp_path / "parts", "auto")
    build_tiny(tiny_config(root, tmp_path / "parts", *options), resume_from=resume_from).train()
    whole, parts = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert whole.step == parts.step == 20
    for ours, theirs in ((parts.model, whole.model), (parts.ema.model, whole.ema.model)):
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
