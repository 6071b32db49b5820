"""Checkpoints: what they hold, how they are written and read, and which ones a run folder keeps.

A checkpoint describes itself: the detector can be built and used from the file alone.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deim.engine.progress import BestScore, Progress, WeightKind
from deim.engine.schedule import Timeline
from deim.engine.seeding import RandomStates
from deim.engine.task import TASKS
from deim.errors import CheckpointError, TrainingError, shorten
from deim.files import copy_file, write_atomically
from deim.migration import MIGRATION_ERRORS, migrate_checkpoint
from deim.model.finite import DIVERGED, describe_non_finite
from deim.model.weights_file import read_weights_file
from deim.records import check_lengths, from_json

logger = logging.getLogger(__name__)

FORMAT = 2
OTHER_CHECKPOINT = "Use another checkpoint of the run."


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragedWeights:
    """The exponential moving average of the weights."""

    model: Mapping[str, Tensor]
    updates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeState:
    """What only the continuation of a run needs."""

    optimizer: Any
    """State of the optimizer, as torch gives it."""
    scaler: Any
    """State of the loss scale, as torch gives it; empty without float16."""
    random: RandomStates
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
    validation_fingerprint: str | None = None
    """Hash of the validation split, see `CocoSplit.fingerprint`; None in older checkpoints."""
    resume: ResumeState | None = None
    """None in best.pth, which is for inference only."""

    @property
    def inference_weights(self) -> Mapping[str, Tensor]:
        """Weights for inference, of the kind `weights`."""
        return self.ema.model if self.weights == "ema" else self.model


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path means: itself, or best.pth, else last.pth, of a run folder.

    Raises:
        CheckpointError: If it is a folder without either.
    """
    if not path.is_dir():
        return path
    for name in ("best.pth", "last.pth"):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: a folder without best.pth and last.pth. Name the folder of a run, or a checkpoint."
    )


def previous_path(path: Path) -> Path:
    """Return where `save_checkpoint` keeps the checkpoint that was at `path` before."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def describe_kept(folder: Path) -> str:
    """Say which checkpoints of a diverged run are kept, and how to continue."""
    kept = [name for name in ("last.previous.pth", "last.pth", "best.pth") if (folder / name).is_file()]
    if not kept:
        return "start again with a lower recipe.lr."
    return (
        f"kept as they were: {', '.join(kept)}. Lower recipe.lr and start again, or continue with "
        f"--resume {folder / kept[0]} --force."
    )


def save_checkpoint(checkpoint: Checkpoint, path: Path, *, keep_previous: bool = False) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one.

    Raises:
        TrainingError: If a weight for inference is NaN or infinite; the old file is untouched.
        OSError: If it cannot be written, with the path.
    """
    keep = previous_path(path) if keep_previous else None
    content = {"format": FORMAT, **_to_plain(checkpoint)}
    # Steps are skipped where only the raw weights are, and lead back to a good state.
    weights = {"model": checkpoint.inference_weights}
    problem = describe_non_finite({"ema": weights} if checkpoint.weights == "ema" else weights)
    if problem:
        raise TrainingError(
            f"{path}: not written after step {checkpoint.step} in epoch {checkpoint.epoch + 1}: {problem}. "
            f"The run has diverged; {describe_kept(path.parent)}"
        )
    write_atomically(path, lambda file: torch.save(content, file), keep=keep)


def _to_plain(value: Any) -> Any:
    """Turn records into dicts and tuples into lists; tensors and mappings within are not copied."""
    if is_dataclass(value):
        return {option.name: _to_plain(getattr(value, option.name)) for option in fields(value)}
    return list(value) if isinstance(value, tuple) else value


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this project, also one of its first format.

    Raises:
        CheckpointError: If it is missing, damaged, not of this project, or holds NaN or infinity.
    """
    content = read_weights_file(path)
    required = ("format", "config", "class_names", "category_ids", "model", "weights", "epoch")
    absent = [key for key in required if key not in content]
    if absent:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project, it lacks {', '.join(absent)}. Weights of other "
            f"projects can start a training: --set model.init_from={path}"
        )
    version = shorten(content["format"])
    if version == "1":
        try:
            content, version = migrate_checkpoint(content), str(FORMAT)
        except MIGRATION_ERRORS as error:
            raise CheckpointError(f"{path}: damaged, got {error!r}. {OTHER_CHECKPOINT}") from None
    if version != str(FORMAT):
        raise CheckpointError(
            f"{path}: has checkpoint format {version}, this version reads {FORMAT}. Use the version of deim "
            f"that wrote it."
        )
    problem = describe_non_finite(content)
    if problem:
        raise CheckpointError(f"{path}: {problem}. {DIVERGED}")
    where = f"{path}: damaged"
    checkpoint = from_json(Checkpoint, content, where=where, error=CheckpointError, advice=OTHER_CHECKPOINT)
    try:
        check_lengths(class_names=checkpoint.class_names, category_ids=checkpoint.category_ids)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error} {OTHER_CHECKPOINT}") from None
    if checkpoint.task not in TASKS:
        raise CheckpointError(
            f"{path}: trains the task {checkpoint.task!r}, this version knows {', '.join(TASKS)}. Use the "
            f"version of deim that wrote it."
        )
    return checkpoint


class RunCheckpoints:
    """The checkpoints of a run folder: which exist, when each is replaced, and which one is restored.

    last.pth                     the newest state
    last.previous.pth            the start of an epoch after a good step, to restore after skipped steps
    best.pth                     the weights with the highest score
    best_before_final_stage.pth  from which the final stage starts, however often it is resumed
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_path = folder / "last.pth"
        self.previous_path = previous_path(self.last_path)
        self.best_path = folder / "best.pth"
        self.final_stage_path = folder / "best_before_final_stage.pth"
        self.is_saved = False
        """Whether last.pth holds the current state."""
        self._last_is_good_start = True
        self._resumed_from: Path | None = None

    @property
    def continues_here(self) -> bool:
        """Whether the run was stopped in the same folder."""
        before = self._resumed_from
        return before is not None and before.resolve().parent == self.folder.resolve()

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write last.pth, and keep the one before it if that is a state worth restoring."""
        assert checkpoint.resume is not None
        # A restore returns to the start of an epoch, whenever else the run was saved.
        save_checkpoint(checkpoint, self.last_path, keep_previous=self._last_is_good_start)
        self._last_is_good_start = checkpoint.resume.progress.is_good_start

    def read_for_resume(self, path: Path) -> tuple[Checkpoint, Path]:
        """Read a state to resume, or the one before it if it is missing or damaged; return its file, too.

        Raises:
            CheckpointError: If neither can be read, or it holds weights only; the message is about `path`.
        """
        try:
            checkpoint, source = read_checkpoint(path), path
        except CheckpointError as error:
            if not previous_path(path).is_file():
                raise
            logger.warning("%s\nUsing the checkpoint before it, %s.", error, previous_path(path))
            checkpoint, source = read_checkpoint(previous_path(path)), previous_path(path)
        if checkpoint.resume is None:
            raise CheckpointError(f"{path}: holds weights only. Resume from last.pth of the same folder.")
        self._resumed_from = path
        self.is_saved = source.resolve() == self.last_path.resolve()
        # A damaged file must not replace the one before it.
        self._last_is_good_start = self.is_saved and checkpoint.resume.progress.is_good_start
        return checkpoint, source

    def adopt(self) -> None:
        """Copy best weights, log and the state to restore of a run that was stopped in another folder."""
        if self._resumed_from is None or self.continues_here:
            return
        paths = [self.best_path, self.final_stage_path, self.folder / "metrics.jsonl"]
        if self._resumed_from.name in (self.last_path.name, self.previous_path.name):
            paths.append(self.previous_path)
        for path in paths:
            source = self._resumed_from.with_name(path.name)
            if source.is_file():
                copy_file(source, path)

    def read_good_start(self) -> tuple[Checkpoint, Path]:
        """Read the state in which the last epoch began that began after a good step.

        It does not depend on when else the run was saved or stopped. If the run was resumed from a lone
        checkpoint within an epoch, that one is used.

        Raises:
            TrainingError: If there is none.
        """
        within = None
        for path in (self.last_path, self.previous_path):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError:
                continue
            if checkpoint.resume is None:
                continue
            if checkpoint.resume.progress.is_good_start:
                return checkpoint, path
            if not checkpoint.resume.progress.skipped_in_a_row:
                within = within or (checkpoint, path)
        if within is not None:
            return within
        raise TrainingError(
            f"{self.folder}: there is no checkpoint from before the skipped steps to restore. Lower "
            f"recipe.lr, or set runtime.amp=off, and start again."
        )

    def read_best(self, epoch: int) -> Checkpoint | None:
        """Read the best weights before the final stage.

        A run that was stopped in the final stage may have replaced best.pth since; then its copy is read.
        Returns None if neither holds the epoch (0-based).
        """
        for path in (self.best_path, self.final_stage_path):
            checkpoint = self._read_if_whole(path)
            if checkpoint is not None and checkpoint.epoch == epoch:
                return checkpoint
        return None

    def has_damaged_best(self) -> bool:
        """Return whether best.pth exists but cannot be read."""
        return self.best_path.is_file() and self._read_if_whole(self.best_path) is None

    def _read_if_whole(self, path: Path) -> Checkpoint | None:
        try:
            return read_checkpoint(path) if path.is_file() else None
        except CheckpointError as error:
            logger.warning("%s", error)
            return None

    def remove_intermediate(self) -> None:
        """Remove the files that a finished run does not need."""
        self.final_stage_path.unlink(missing_ok=True)
        self.previous_path.unlink(missing_ok=True)
