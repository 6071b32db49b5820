"""What a run consists of, how far it has come, and how both are put into checkpoints and taken out again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from deim.config.loader import config_from_dict, config_to_dict
from deim.config.schema import Config
from deim.data.sampling import EpochSampler
from deim.engine.checkpoints import FORMAT, WeightKind
from deim.engine.early_stopping import EarlyStoppingState
from deim.engine.ema import ModelEma
from deim.engine.schedule import Timeline
from deim.engine.seeding import random_states, restore_random_states
from deim.engine.step import StepParts, unwrap_model
from deim.errors import CheckpointError, ConfigError

FREE_OPTIONS = (
    "output_dir",
    "data.root",
    "data.eval_batch_size",
    "data.num_workers",
    "data.cache_mb",
    "data.disk_cache_mb",
    "data.disk_cache_dir",
    "data.normal_class",
    "evaluation.bootstrap_resamples",
    "evaluation.draw_threshold",
    "evaluation.goal",
    "evaluation.max_escape_rate",
    "evaluation.nms",
    # Detector and text are compared by their fingerprints.
    "multimodal.cache_dir",
    "multimodal.class_tolerance",
    "multimodal.detector",
    "multimodal.encoder",
    "multimodal.prompts",
    "multimodal.text_bank",
    "runtime.device",
    "runtime.tensorboard",
    "runtime.checkpoint_minutes",
    "runtime.preflight",
)
"""Options and blocks that may differ when a run goes on: they change neither its data nor its weights."""


FINGERPRINTS = {
    "training": "training data: other images or annotations",
    "validation": "validation data: other images or annotations",
    "detector": "multimodal.detector: other weights",
    "text": "text bank: other texts or another encoder",
}
"""What a run began with and must go on with, and the line that says it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What a validation found."""

    ap: float | None
    """COCO AP of the validation split; None if it has no boxes."""
    ap50: float | None
    worst_class: str | None
    """Name of the class with the lowest AP at IoU 0.50."""
    worst_class_ap50: float | None
    summary: dict[str, float | None]
    """The 12 COCO numbers."""
    class_ap50: dict[str, float | None]
    """AP at IoU 0.50 of each class."""
    picture: NDArray[Any] | None = None
    """(H, W, 3) uint8: some images with their predictions, for TensorBoard."""


Validate = Callable[[nn.Module], Validation]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunParts:
    """Everything a run is made of."""

    step: StepParts
    ema: ModelEma[nn.Module]
    loader: Any
    """Iterable of `StepBatch` with `set_epoch`."""
    batches: EpochSampler
    """The order of the loader's images."""
    timeline: Timeline
    device: torch.device
    validate: Validate
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    fingerprints: dict[str, str]
    """Of what the run began with, see `FINGERPRINTS`."""
    stored: Mapping[str, Any]
    """Entries that each checkpoint holds beside its own."""
    must_beat_start: bool
    """Whether best.pth must have a higher score than the model before its first step."""


@dataclass(kw_only=True, slots=True)
class EpochSums:
    """Sums over the steps of an epoch so far."""

    values: dict[str, float] = field(default_factory=dict)
    """Of the loss terms, the loss and the norm of the gradient, over good steps."""
    num_good: int = 0
    num_skipped: int = 0
    num_images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Of `seconds`, those in which the loop waited for data."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """0-based: the epoch that is being trained, or comes next."""
    steps_of_epoch: int = 0
    """Steps of that epoch so far."""
    step: int = 0
    """Steps of the run so far, refused ones included."""
    sums: EpochSums = field(default_factory=EpochSums)
    best: dict[str, Any] = field(default_factory=dict)
    """Metric, score, epoch and kind of weights of best.pth; empty before the first."""
    start_score: float | None = None
    """Score before the first step; None if it is not asked for, or not known yet."""
    early_stopping: EarlyStoppingState = field(default_factory=EarlyStoppingState)
    stopped_early: bool = False
    skipped_in_a_row: int = 0
    skipped_images: list[str] = field(default_factory=list)
    """Images of the skipped steps since the last good one."""
    restores: int = 0
    """How often the last good state was restored after skipped steps."""
    lr_scale: float = 1.0
    """Halved at each such restore."""
    micro_batch_size: int | None = None
    """Images at once in memory; None for all of a step."""
    halved: bool = False
    """Whether memory has run out once, and half as many images are processed at once since."""


def progress_from_dict(tree: dict[str, Any]) -> Progress:
    """Undo `dataclasses.asdict`."""
    return Progress(
        **(
            tree
            | {
                "sums": EpochSums(**tree["sums"]),
                "early_stopping": EarlyStoppingState(**tree["early_stopping"]),
            }
        )
    )


def state_tree(
    config: Config, parts: RunParts, progress: Progress, *, epoch: int, weights: WeightKind, resumable: bool
) -> dict[str, Any]:
    """A checkpoint: enough to use the detector and, if `resumable`, to go on training.

    Args:
        config: The experiment.
        parts: The run.
        progress: How far it has come.
        epoch: 0-based epoch that the weights come from.
        weights: Kind of weights to be used for inference.
        resumable: Add what only training needs.
    """
    tree: dict[str, Any] = {
        "format": FORMAT,
        "config": config_to_dict(config),
        "class_names": list(parts.class_names),
        "category_ids": list(parts.category_ids),
        "model": unwrap_model(parts.step.model).state_dict(),
        "ema": {"model": parts.ema.model.state_dict(), "updates": parts.ema.updates},
        "weights": weights,
        "epoch": epoch,
        "step": progress.step,
        "best": progress.best,
        "timeline": asdict(parts.timeline),
        **parts.stored,
    }
    if resumable:
        tree["optimizer"] = parts.step.optimizer.state_dict()
        tree["scaler"] = parts.step.precision.scaler.state_dict()
        tree["random"] = random_states()
        tree["progress"] = asdict(progress)
        tree["fingerprints"] = parts.fingerprints
        tree["batches"] = _batches(parts)
    return tree


def restore_run(parts: RunParts, tree: dict[str, Any], *, path: Path) -> Progress:
    """Put a run back to where a checkpoint left it.

    Args:
        parts: The run; changed in place.
        tree: A resumable checkpoint, from `read_checkpoint`.
        path: Where it came from, for messages.

    Returns:
        How far that run had come.

    Raises:
        CheckpointError: If its tensors do not fit.
    """
    restore_weights(parts, tree, path=path)
    restore_random_states(tree["random"])
    return progress_from_dict(tree["progress"])


def restore_weights(parts: RunParts, tree: dict[str, Any], *, path: Path) -> None:
    """Put weights, averages, moments and loss scale back to where a resumable checkpoint left them.

    Raises:
        CheckpointError: If the tensors do not fit.
    """
    try:
        restore_model(parts, tree)
        _load_optimizer(parts.step.optimizer, tree["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit the config of this run. {error}") from None
    if tree["scaler"]:
        parts.step.precision.scaler.load_state_dict(tree["scaler"])


def restore_model(parts: RunParts, tree: dict[str, Any]) -> None:
    """Put the weights and their averages back to where any checkpoint of the run left them."""
    unwrap_model(parts.step.model).load_state_dict(tree["model"])
    parts.ema.model.load_state_dict(tree["ema"]["model"])
    parts.ema.updates = tree["ema"]["updates"]


def refuse_another_run(differences: Sequence[str], *, path: Path) -> None:
    """Refuse to go on with other data or options than the run began with.

    Args:
        differences: From `run_differences`.
        path: Of the checkpoint.

    Raises:
        CheckpointError: If there are any; all are listed.
    """
    if differences:
        listed = "\n".join(f"  {line}" for line in differences)
        raise CheckpointError(
            f"{path}: belongs to another run, these differ (there -> here):\n{listed}\nUndo the changes, "
            f"start a new run, or go on all the same with --force."
        )


def run_differences(config: Config, parts: RunParts, tree: dict[str, Any]) -> list[str]:
    """A line for each difference between a checkpoint's run and this one, free options left out."""
    lines = []
    if tuple(tree["class_names"]) != parts.class_names:
        lines.append(f"classes: {', '.join(tree['class_names'])} -> {', '.join(parts.class_names)}")
    for name, here in parts.fingerprints.items():
        if tree.get("fingerprints", {}).get(name, here) != here:
            lines.append(FINGERPRINTS[name])
    for name, number in _batches(parts).items():
        there = tree.get("batches", {}).get(name, number)
        if there != number:
            lines.append(f"{name}: {there} -> {number} (with {parts.step.distributed.size} processes)")
    return lines + _changed_options(_with_new_options(tree["config"]), config_to_dict(config))


def _with_new_options(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of options that came later; as it is if some of its own are gone."""
    try:
        return config_to_dict(config_from_dict(stored, where="the checkpoint"))
    except ConfigError:
        return stored


def _batches(parts: RunParts) -> dict[str, int]:
    """What the number of processes may change."""
    return {"images of a step": parts.batches.batch_size, "steps of an epoch": len(parts.batches)}


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments of a stopped run, but the options of this one."""
    options = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, wanted in zip(optimizer.param_groups, options, strict=True):
        group.update(wanted)


def _changed_options(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if f"{prefix}{name}" in FREE_OPTIONS:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _changed_options(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines
