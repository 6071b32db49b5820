"""Properties of whole runs that take longer to show: determinism, compilation, memory that does not grow."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deim.config.schema import Config
from deim.engine import recovery as recovery_module
from deim.engine.checkpoints import read_checkpoint
from deim.engine.memory import PROCESS_STATUS
from deim.engine.step import StepResult, train_step
from deim.engine.trainer import Trainer
from tests.conftest import TINY

REPOSITORY = Path(__file__).parents[2]
MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]


def losses_of(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "epoch"]


@pytest.fixture
def deterministic_afterwards() -> Any:
    """Take the process's setting back."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.usefixtures("deterministic_afterwards")
def test_deterministic_runs_are_identical_whatever_the_number_of_workers(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    states = []
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        options = (
            "epochs=2",
            "runtime.deterministic=true",
            "augment.photometric=0.5",
            f"data.num_workers={workers}",
        )
        trainer = build_tiny(tiny_config(tiny_set, tmp_path / name, *options))
        assert torch.are_deterministic_algorithms_enabled()
        trainer.train()
        states.append(trainer.run.ema.model.state_dict())
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b") == losses_of(tmp_path / "c")
    for other in states[1:]:
        assert all(torch.equal(other[name], value) for name, value in states[0].items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_has_the_same_losses(
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    losses: dict[str, list[float]] = {"false": [], "true": []}
    root = write_coco(tmp_path / "set", num_images={"train": 30, "val": 2, "test": 1})
    for name, new in losses.items():

        def record(*args: Any, new: list[float] = new, **kwargs: Any) -> StepResult:
            result = train_step(*args, **kwargs)
            new.append(result.loss)
            return result

        monkeypatch.setattr(recovery_module, "train_step", record)
        options = ("epochs=5", "evaluation.every_epochs=5", f"runtime.compile={name}")
        build_tiny(tiny_config(root, tmp_path / name, *options)).train()
    plain, compiled = np.array(losses["false"]), np.array(losses["true"])
    assert len(plain) == len(compiled) == 50
    differences = np.abs(compiled - plain) / plain
    # Single steps differ by more where rounding decides between two boxes for a query.
    assert np.median(differences) < 1e-4
    assert (differences > 1e-3).sum() <= 8
    assert compiled[:30] == pytest.approx(plain[:30], rel=1e-3)
    states = [read_checkpoint(tmp_path / name / "best.pth").model for name in losses]
    assert states[0].keys() == states[1].keys()


def resident_kilobytes(process: int) -> int | None:
    """Memory that a process holds; None if it has ended."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) if "VmRSS:" in status else None


@pytest.mark.slow
@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="reads Linux's record of a process's memory")
def test_memory_does_not_grow_from_epoch_to_epoch(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = TINY | {
        "output_dir": str(tmp_path / "run"),
        "epochs": 40,
        "data": TINY["data"] | {"root": str(tiny_set), "num_workers": 2},
        "runtime": {"device": "cpu", "preflight": False},
    }
    (tmp_path / "tiny.yml").write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py"), "-c", str(tmp_path / "tiny.yml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    held = [resident_kilobytes(process.pid) for line in process.stdout if line.startswith("epoch ")]
    assert process.wait() == 0
    assert len(held) == 40
    # After the last epoch the process may have ended already.
    sizes = [size for size in held if size is not None]
    assert len(sizes) >= 39
    # A buffer of some 25 MB is held or given back at the moment of reading, so peaks are compared: of the
    # last 20 epochs against the 20 before them, less the first four, in which libraries load and pools fill.
    growth_mb = (max(sizes[20:]) - max(sizes[4:20])) / 20 / 1024
    with capsys.disabled():
        print(f" {growth_mb:.3f} MB an epoch")  # noqa: T201
    assert growth_mb < 0.5
