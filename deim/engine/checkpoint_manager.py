"""The checkpoints of a run folder: which exist, when each is replaced, and which one is restored."""

import logging
import shutil
from pathlib import Path

from deim.engine.checkpoints import Checkpoint, previous_path, read_checkpoint, save_checkpoint
from deim.engine.progress import Progress
from deim.errors import CheckpointError, TrainingError

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Writes and finds the checkpoints of a run; writing raises OSError if it fails.

    last.pth                     the newest state
    last.previous.pth            the start of an epoch after a good step, to restore after skipped steps
    best.pth                     the weights with the highest score
    best_before_final_stage.pth  from which the final stage starts, however often it is resumed

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_path = folder / "last.pth"
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

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write best.pth."""
        save_checkpoint(checkpoint, self.best_path)

    def save_final_stage(self, checkpoint: Checkpoint) -> None:
        """Keep the weights from which the final stage starts."""
        save_checkpoint(checkpoint, self.final_stage_path)

    def read_for_resume(self, path: Path) -> tuple[Checkpoint, Path]:
        """Read a state to resume, or the one before it if it is missing or damaged.

        Returns:
            The checkpoint and the file that it was read from.

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
        return checkpoint, source

    def note_resume(self, path: Path, source: Path, progress: Progress) -> None:
        """Remember that a run was resumed from `path`, and from the state in `source`."""
        self._resumed_from = path
        self.is_saved = source.resolve() == self.last_path.resolve()
        # A damaged file must not replace the one before it.
        self._last_is_good_start = self.is_saved and progress.is_good_start

    def adopt(self) -> None:
        """Copy the best weights and the state to restore of a run that was stopped in another folder."""
        if self._resumed_from is None or self.continues_here:
            return
        previous = previous_path(self.last_path)
        paths = [self.best_path, self.final_stage_path]
        if self._resumed_from.name in (self.last_path.name, previous.name):
            paths.append(previous)
        for path in paths:
            source = self._resumed_from.with_name(path.name)
            if source.is_file():
                shutil.copyfile(source, path)

    def read_good_start(self) -> tuple[Checkpoint, Path]:
        """Read the state in which the last epoch began that began after a good step.

        It does not depend on when else the run was saved or stopped. If the run was resumed from a lone
        checkpoint within an epoch, that one is used.

        Raises:
            TrainingError: If there is none.
        """
        within = None
        for path in (self.last_path, previous_path(self.last_path)):
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
        previous_path(self.last_path).unlink(missing_ok=True)
