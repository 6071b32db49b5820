"""Training tasks: a new one is one file and one line in the list."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deim.config.schema import Config
from deim.engine import task as task_module
from deim.engine.checkpoints import read_checkpoint
from deim.engine.task import TASKS, load_task
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, ConfigError


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists the task of `extra_task.py`."""
    monkeypatch.setitem(TASKS, "scaled", "tests.engine.extra_task")


@pytest.mark.usefixtures("scaled")
def test_a_listed_task_trains_stores_and_loads(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1", "task={type: scaled, lr_scale: 0.5}")
    with caplog.at_level(logging.INFO):
        trainer = build_tiny(config)
    assert "learning rate times    0.5" in caplog.text
    assert trainer.run.step.optimizer.param_groups[-1]["flat_lr"] == 0.5 * config.recipe.lr
    trainer.train()
    trained = load_trained(trainer.checkpoints.best_path)
    assert (trained.task, trained.config.task) == ("scaled", config.task)
    with pytest.raises(ConfigError, match=r"task\.lr_scale: got 0\.0, must be above 0"):
        tiny_config(tiny_set, tmp_path / "run", "task={type: scaled, lr_scale: 0}")


@pytest.mark.usefixtures("scaled")
def test_a_checkpoint_of_an_unknown_task_is_refused(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(tiny_run / "best.pth", weights_only=True)
    torch.save(content | {"task": "scaled"}, tmp_path / "best.pth")
    assert read_checkpoint(tmp_path / "best.pth").task == "scaled"
    monkeypatch.delitem(task_module.TASKS, "scaled")
    with pytest.raises(CheckpointError, match=r"best\.pth: trains the task 'scaled', this version knows det"):
        read_checkpoint(tmp_path / "best.pth")


@pytest.mark.parametrize("name", list(TASKS))
def test_every_listed_task_names_itself_in_its_options(name: str) -> None:
    options_class = load_task(name).options_class
    assert options_class.__dataclass_fields__["type"].default == name
