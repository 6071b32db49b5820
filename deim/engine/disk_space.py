"""How much a run will write, estimated before its first step, against what its disks have free."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from deim.config.schema import Config
from deim.data.images.input_format import build_input_format
from deim.data.images.tiling import tile_split
from deim.engine.checkpoints import RunCheckpoints
from deim.engine.context import TrainingRun
from deim.engine.step import unwrap_model
from deim.errors import DiskFullError
from deim.files import folder_bytes, format_bytes, free_bytes

logger = logging.getLogger(__name__)

DETECTION_BYTES = 150
"""Size of a raw detection in `predictions.json`, about."""
EPOCH_BYTES, TENSORBOARD_BYTES = 2_000, 500_000
"""Size of an epoch in `metrics.jsonl`, and of its curves and images in TensorBoard, about."""
MOMENTS = 2
"""Numbers that AdamW keeps for each that it trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedFile:
    """What a run will write, or a folder of it."""

    path: Path
    num_bytes: int
    """Beyond what is there already."""
    name: str


def check_disk_space(run: TrainingRun, checkpoints: RunCheckpoints) -> None:
    """Warn if a disk has less room than the run will use.

    Raises:
        DiskFullError: If not even the first checkpoint has room.
    """
    planned = list(plan_files(run, checkpoints))
    first, free = planned[0], free_bytes(checkpoints.folder)
    advice = "Free some space, or name a folder on another disk with --set output_dir=FOLDER."
    if first.num_bytes > free:
        reason = f"it needs {format_bytes(first.num_bytes)}, and {format_bytes(free)} are free"
        raise DiskFullError(f"{first.path}: the first checkpoint has no room ({reason}). {advice}")
    by_disk: dict[int, list[PlannedFile]] = {}
    for file in planned:
        by_disk.setdefault(_disk_of(file.path), []).append(file)
    for files in by_disk.values():
        needed, free = sum(file.num_bytes for file in files), free_bytes(files[0].path)
        if needed > free:
            listed = ", ".join(f"{file.name} {format_bytes(file.num_bytes)}" for file in files)
            logger.warning(
                "%s: the run will write about %s, and %s are free: %s. %s",
                files[0].path.parent,
                format_bytes(needed),
                format_bytes(free),
                listed,
                advice,
            )


def plan_files(run: TrainingRun, checkpoints: RunCheckpoints) -> Iterator[PlannedFile]:
    """Yield what a run will write; the first is the temporary that becomes its first checkpoint."""
    config, context = run.context.config, run.context
    weights = _state_bytes(unwrap_model(run.step.model)) + _state_bytes(run.ema.model)
    whole = weights + _moment_bytes(run.step.optimizer)
    # A checkpoint is complete before it takes the place of the one before.
    yield PlannedFile(path=checkpoints.last_path, num_bytes=whole, name="last.pth")
    kept = {checkpoints.last_path: whole, checkpoints.previous_path: whole, checkpoints.best_path: weights}
    if context.timeline.no_aug_epoch < config.epochs:
        kept[checkpoints.final_stage_path] = weights
    present = sum(_size(path) for path in kept) if checkpoints.continues_here else 0
    rest = max(0, sum(kept.values()) - whole - present)
    yield PlannedFile(path=checkpoints.best_path, num_bytes=rest, name="the other checkpoints")
    logs = config.epochs * (EPOCH_BYTES + TENSORBOARD_BYTES * config.runtime.tensorboard)
    report = len(context.splits.val) * config.model.decoder.num_queries * DETECTION_BYTES
    yield PlannedFile(path=checkpoints.folder / "report", num_bytes=logs + report, name="report and logs")
    cache = Path(config.data.disk_cache_dir)
    images = max(0, _image_cache_bytes(run) - folder_bytes(cache))
    yield PlannedFile(path=cache / "images", num_bytes=images, name="cache of images")
    outputs = run.task.missing_cache(run.products.loader)
    if outputs is not None:
        yield PlannedFile(path=outputs[0], num_bytes=outputs[1], name="cache of detector outputs")


def _image_cache_bytes(run: TrainingRun) -> int:
    """Return the size that the disk caches of both splits may have."""
    config: Config = run.context.config
    bound = config.data.disk_cache_mb * 2**20
    if not bound:
        return 0
    form = build_input_format(config.data, config.image_size_hw)
    splits = run.context.splits.train, run.context.splits.val
    return sum(min(bound, form.num_bytes * len(tile_split(split, form.tiles))) for split in splits)


def _state_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))


def _moment_bytes(optimizer: Optimizer) -> int:
    trained = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
    return MOMENTS * sum(value.nbytes for value in trained)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _disk_of(path: Path) -> int:
    return next(folder for folder in path.absolute().parents if folder.is_dir()).stat().st_dev
