"""What a run trains: the contract of a training task, and the list of tasks.

A new task is one file with a class that has the members of `TrainingTask`, and one line in `TASKS`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deim.config.schema import Config
    from deim.engine.checkpoints import Checkpoint
    from deim.engine.context import RunContext
    from deim.engine.step import BatchLoss, StepBatch

TASKS: Mapping[str, str] = {
    "detection": "deim.engine.detection_task",
    "faster_rcnn": "deim.engine.faster_rcnn_task",
    "pretraining": "deim.engine.pretraining_task",
    "text_fusion": "multimodal.task",
}
"""Module of each task by the `type` of its block in the config; the module holds the task as `TASK`."""


class TaskOptions(Protocol):
    """The block `task` of a config: a frozen dataclass whose `type` names the task."""

    @property
    def type(self) -> str:
        """Name of the task."""


class TaskLoader(Protocol):
    """Training batches, one epoch after the other."""

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""

    def __iter__(self) -> "Iterator[StepBatch]":
        """Yield the batches of the epoch that was set last."""

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch (0-based), and the first of its batches, that the next pass yields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskDefaults:
    """Options on which an experiment of a task rests, such as those of the detector that it extends."""

    options: Mapping[str, object]
    """Blocks and options in plain types; the experiment's files and overrides replace them."""
    source: str
    """Where they come from, for messages."""
    fixed_blocks: tuple[str, ...] = ()
    """Blocks that the experiment may repeat but not change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskProducts:
    """What a task builds for a run."""

    model: "nn.Module"
    """In training mode, on the device of the run."""
    criterion: "BatchLoss"
    optimizer: "torch.optim.Optimizer"
    loader: TaskLoader
    state: Mapping[str, Any] = field(default_factory=dict)
    """Plain values and tensors that each checkpoint stores, from which the model can be built again."""
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the task's inputs beside the data; a resumed run must have the same."""
    start_checkpoint: Path | None = None
    """Checkpoint that the model equals before its first step: best.pth must then score higher than it."""


class TrainingTask(Protocol):
    """How the engine deals with what a run trains; a task inherits what it does not change."""

    options_class: type[TaskOptions]
    """Dataclass of the task's block in the config."""
    command: str = "train"
    """Command of `deim` that trains it."""
    run_files: tuple[str, ...] = ()
    """Names in the run folder that this task writes beside those of every run."""
    free_options: tuple[str, ...] = ()
    """Options of the block that may differ in a resumed run, such as `task.cache_dir`."""
    fingerprint_messages: Mapping[str, str] = {}
    """Line for each of the task's fingerprints, for a resumed run in which it differs."""
    trains_backbone: bool = True
    """Whether `recipe.backbone_lr` applies."""
    has_stages: bool = True
    """Whether augmentation starts late and ends early, and the matching cost changes."""
    has_query_loss: bool = True
    """Whether `loss.Criterion` applies to the model's output, so that a validation has a loss."""
    report_module: str | None = None
    """Module with `evaluate_checkpoint` and `evaluate_share`; None for the report of a detector."""

    def defaults_from(self, block: Mapping[str, object]) -> TaskDefaults | None:  # noqa: ARG002
        """Return the options on which an experiment rests, by its block `task`, not yet checked.

        Raises:
            CheckpointError: If they stand in a checkpoint that cannot be used.
        """
        return None

    def describe(self, config: "Config") -> list[str]:  # noqa: ARG002
        """Return lines that the log adds to the timeline."""
        return []

    def describe_model(self, config: "Config") -> str:
        """Return the name of the model, for logs and reports."""
        from deim.model.build import describe_architecture

        return describe_architecture(config.model)

    def start_files(self, config: "Config") -> "list[Path]":  # noqa: ARG002
        """Return the checkpoints that a new run begins with, which it must not write over."""
        return []

    def cache_dirs(self, config: "Config") -> "list[Path]":  # noqa: ARG002
        """Return the folders that the task fills with what it can compute again."""
        return []

    def build(self, context: "RunContext") -> TaskProducts:
        """Build everything that is trained; global random generators are seeded.

        Raises:
            DeimError: If options contradict each other or a file is wrong.
        """
        ...

    def missing_cache(self, loader: TaskLoader) -> tuple[Path, int] | None:  # noqa: ARG002
        """Return the folder of what the task stores for later epochs, and the bytes that it still lacks."""
        return None

    def build_stored_model(self, config: "Config", checkpoint: "Checkpoint", path: Path) -> "nn.Module":
        """Build the model of a checkpoint, by its config with overrides; its weights are loaded afterwards.

        Raises:
            CheckpointError: If the task's state in the checkpoint at `path` is damaged.
        """
        ...


def load_task(name: str) -> TrainingTask:
    """Import the task of a name in `TASKS`; nothing of a task is imported before it is needed."""
    task: TrainingTask = import_module(TASKS[name]).TASK
    return task


def task_options_class(name: str) -> type[TaskOptions]:
    """Return the dataclass of a task's block in the config."""
    return load_task(name).options_class


def detection_options() -> TaskOptions:
    """Return the block of the default task."""
    return task_options_class("detection")()


def report_function(task: str, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a task's report module, or the default where the task has none."""
    module = load_task(task).report_module
    function: Callable[..., Any] = default if module is None else getattr(import_module(module), name)
    return function
