"""Checkpoints: what they hold, how they are written and read.

A checkpoint describes itself: the detector can be built and used from the file alone.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deim.config.loader import config_from_dict, config_to_dict
from deim.migration import migrate_checkpoint
from deim.config.schema import Config
from deim.engine.device import select_device
from deim.engine.progress import Progress
from deim.engine.schedule import Timeline
from deim.engine.task import TASKS, load_task
from deim.engine.validation import BestScore, WeightKind
from deim.errors import CheckpointError
from deim.files import write_atomically
from deim.model.weights import read_weights_file
from deim.records import from_json

logger = logging.getLogger(__name__)

FORMAT = 2

INPUT_OPTIONS = (
    "image_size",
    "data.resize",
    "data.reduced_decode",
    "data.tiles",
    "data.channels",
    "data.scaling",
    "data.mean",
    "data.std",
)
"""Options that decide what the network sees of an image; stored thresholds hold only for the same values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragedWeights:
    """The exponential moving average of the weights."""

    model: Mapping[str, Tensor]
    updates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeState:
    """What only the continuation of a run needs."""

    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    """State of the loss scale; empty without float16."""
    random: Mapping[str, Any]
    """From `random_states`."""
    progress: Progress
    fingerprints: Mapping[str, str]
    batch_size: int
    """Images of an optimizer step, over all processes."""
    steps_per_epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Content of a checkpoint file."""

    config: Mapping[str, Any]
    """The experiment in plain types, as `config_to_dict` gives it."""
    task: str
    """What was trained, a key of `deim.engine.task.TASKS`."""
    task_state: Mapping[str, Any]
    """What the task needs beside the config to build its model."""
    class_names: tuple[str, ...]
    """C names, by class index."""
    category_ids: tuple[int, ...]
    """C ids of the training annotations, by class index."""
    model: Mapping[str, Tensor]
    """Raw weights."""
    ema: AveragedWeights
    weights: WeightKind
    """Kind of the weights that are used for inference."""
    epoch: int
    """The epoch (0-based) that the weights come from."""
    step: int = 0
    """Optimizer steps before these weights."""
    best: BestScore | None = None
    """The validation behind best.pth at that time."""
    timeline: Timeline | None = None
    """Phases of the run."""
    operating_points: Mapping[str, Any] | None = None
    """Thresholds in plain JSON types, chosen on the validation split; None before that."""
    resume: ResumeState | None = None
    """None in best.pth, which is for inference only."""

    @property
    def inference_weights(self) -> Mapping[str, Tensor]:
        """Weights for inference, of the kind `weights`."""
        return self.ema.model if self.weights == "ema" else self.model


PLAIN_RECORDS = (BestScore, Timeline, Progress)
"""Records of plain values within a checkpoint."""


def previous_path(path: Path) -> Path:
    """Return where `save_checkpoint` keeps the checkpoint that was at `path` before."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, keep_previous: bool = False) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one.

    Args:
        checkpoint: What to write.
        path: File to write; its folder exists.
        keep_previous: Keep the file that was there, see `previous_path`.

    Raises:
        OSError: If it cannot be written, with the path.
    """
    keep = previous_path(path) if keep_previous else None
    content = {"format": FORMAT, **_to_plain(checkpoint)}
    write_atomically(path, lambda file: torch.save(content, file), keep=keep)


def _to_plain(record: Any) -> dict[str, Any]:
    """Turn a record into a dict; tensors and mappings within are not copied."""
    plain: dict[str, Any] = {}
    for option in fields(record):
        value = getattr(record, option.name)
        if isinstance(value, PLAIN_RECORDS):
            value = asdict(value)
        elif isinstance(value, AveragedWeights | ResumeState):
            value = _to_plain(value)
        plain[option.name] = list(value) if isinstance(value, tuple) else value
    return plain


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this project, also one of its first format.

    Raises:
        CheckpointError: If it is missing, damaged, or not of this project.
    """
    content = read_weights_file(path)
    required = ("format", "config", "class_names", "category_ids", "model", "weights", "epoch")
    absent = [key for key in required if key not in content]
    if absent:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project, it lacks {', '.join(absent)}. Weights of other "
            f"projects can start a training: --set model.init_from={path}"
        )
    if content["format"] == 1:
        content = migrate_checkpoint(content)
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: has checkpoint format {content['format']}, this version reads {FORMAT}. Use the "
            f"version of deim that wrote it."
        )
    if content["task"] not in TASKS:
        raise CheckpointError(
            f"{path}: trains the task {content['task']!r}, this version knows {', '.join(TASKS)}. Use the "
            f"version of deim that wrote it."
        )
    try:
        return _from_plain(content)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, {error}. Use another checkpoint of the run.") from None


def _from_plain(content: Mapping[str, Any]) -> Checkpoint:
    known = {option.name for option in fields(Checkpoint)}
    values = {name: value for name, value in content.items() if name in known}
    resume = values.get("resume")
    if resume is not None:
        values["resume"] = ResumeState(**{**resume, "progress": from_json(Progress, resume["progress"])})
    best, timeline = values.get("best"), values.get("timeline")
    return Checkpoint(
        **{
            **values,
            "ema": AveragedWeights(**values["ema"]),
            "class_names": tuple(values["class_names"]),
            "category_ids": tuple(values["category_ids"]),
            "best": None if best is None else from_json(BestScore, best),
            "timeline": None if timeline is None else from_json(Timeline, timeline),
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedDetector:
    """A detector with all that is needed to use it."""

    model: nn.Module
    """In evaluation mode."""
    device: torch.device
    """Where it is."""
    config: Config
    """The experiment that trained it."""
    task: str
    """What was trained, a key of `deim.engine.task.TASKS`."""
    task_state: Mapping[str, Any]
    """What the checkpoint stores for the task."""
    class_names: tuple[str, ...]
    """C names, by class index."""
    category_ids: tuple[int, ...]
    """C ids of the training annotations, by class index."""
    epoch: int
    """The epoch (0-based) that the weights come from."""
    weights: WeightKind
    """`ema` for averaged weights, `raw` for those of the optimizer."""
    step: int
    """Optimizer steps before these weights."""
    timeline: Timeline | None
    """Phases of the run; None if the checkpoint does not hold them."""
    operating_points: Mapping[str, Any] | None
    """Thresholds chosen on the validation split, in plain JSON types; None before that."""
    path: Path
    changed_inputs: tuple[str, ...] = ()
    """Options of `INPUT_OPTIONS` that were changed after training, so that stored thresholds do not hold."""


def load_trained(
    path: Path, *, device: torch.device | None = None, overrides: Sequence[str] = ()
) -> TrainedDetector:
    """Build the detector that a checkpoint of any task holds.

    Args:
        path: `best.pth` or `last.pth`.
        device: Where to put it; None for the device that the config names.
        overrides: Changes of the stored config, `key.path=value` each, such as `data.root=…`.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or its weights do not fit its config.
        ConfigError: If the config, with its changes, is not valid in this version.
    """
    checkpoint = read_checkpoint(path)
    config = config_from_dict(checkpoint.config, where=str(path), overrides=overrides)
    model = load_task(checkpoint.task).build_stored_model(config, checkpoint, path)
    try:
        model.load_state_dict(dict(checkpoint.inference_weights))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config. {error}") from None
    device = device or select_device(config.runtime.device)
    return TrainedDetector(
        model=model.to(device).eval().requires_grad_(False),
        device=device,
        config=config,
        task=checkpoint.task,
        task_state=checkpoint.task_state,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        epoch=checkpoint.epoch,
        weights=checkpoint.weights,
        step=checkpoint.step,
        timeline=checkpoint.timeline,
        operating_points=checkpoint.operating_points,
        path=path,
        changed_inputs=_changed_inputs(checkpoint, config, path),
    )


def _changed_inputs(checkpoint: Checkpoint, config: Config, path: Path) -> tuple[str, ...]:
    """Return the options by which the network sees images differently than in training."""
    stored, used = _inputs(config_from_dict(checkpoint.config, where=str(path))), _inputs(config)
    return tuple(name for name in INPUT_OPTIONS if stored[name] != used[name])


def _inputs(config: Config) -> dict[str, object]:
    options: dict[str, object] = {}
    for name in INPUT_OPTIONS:
        block, _, key = name.rpartition(".")
        options[name] = getattr(getattr(config, block) if block else config, key)
    tiles = config.data.tiles
    # The share of a box that counts in training does not change an input.
    options["data.tiles"] = None if tiles is None else (tiles.size, tiles.overlap)
    return options


def store_operating_points(trained: TrainedDetector, operating_points: Mapping[str, Any]) -> str | None:
    """Write operating points, and the options they were chosen for, into the checkpoint of a detector.

    A checkpoint from which training can be resumed, and one that was replaced meanwhile, are left alone.

    Args:
        trained: From `load_trained`.
        operating_points: In plain JSON types.

    Returns:
        Why they were not written; None if they were.

    Raises:
        CheckpointError: If the checkpoint is gone or damaged.
    """
    checkpoint = read_checkpoint(trained.path)
    if checkpoint.resume is not None:
        return "training can be resumed from it; they belong in best.pth"
    if (checkpoint.epoch, checkpoint.step) != (trained.epoch, trained.step):
        return "a later one has replaced it meanwhile"
    if trained.changed_inputs:
        changed = " and ".join(trained.changed_inputs)
        return f"they were chosen with another {changed} than prediction will use"
    # What they were chosen for becomes part of the config.
    used: Any = config_to_dict(trained.config)
    data = checkpoint.config["data"] | {"normal_class": used["data"]["normal_class"]}
    config = {**checkpoint.config, "evaluation": used["evaluation"], "data": data}
    try:
        changed_checkpoint = replace(checkpoint, config=config, operating_points=dict(operating_points))
        save_checkpoint(changed_checkpoint, trained.path)
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return None
