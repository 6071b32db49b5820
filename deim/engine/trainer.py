"""The training loop.

    for each epoch:  train every batch → save → validate → perhaps write best.pth → log → save

A run can be killed at any moment and resumes from `last.pth` to the same weights. Validation is passed in as
a function, so that training knows nothing of metrics.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from deim.config.loader import option_values
from deim.engine.checkpoints import Checkpoint, RunCheckpoints, save_checkpoint
from deim.engine.context import TrainingRun
from deim.engine.log import RunLog, epoch_line, progress_bar
from deim.engine.memory import STEP_ADVICE, explain_out_of_memory, peak_bytes, reset_peak
from deim.engine.optimizer import set_learning_rates
from deim.engine.progress import EpochSums, Progress
from deim.engine.recovery import Recovery
from deim.engine.resume import capture_resumable, restore_model, restore_run
from deim.engine.run_lock import lock_run
from deim.engine.signals import StopSignals
from deim.engine.step import StepBatch, StepResult
from deim.engine.validation import DrawBatch, Validate, Validator
from deim.errors import StopSignalError
from deim.files import remove_unfinished

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a run in the folder of its checkpoints, which must exist when `train` is called."""

    def __init__(
        self,
        run: TrainingRun,
        *,
        validate: Validate,
        checkpoints: RunCheckpoints,
        draw_batch: DrawBatch | None = None,
    ) -> None:
        self.run = run
        self.validate = validate
        self.draw_batch = draw_batch
        self.folder = checkpoints.folder
        self.config = run.context.config
        self.timeline = run.context.timeline
        self.distributed = run.context.distributed
        self.checkpoints = checkpoints
        self.progress = Progress()
        self._stop = StopSignals()
        self._saved_at = time.monotonic()

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds a checkpoint of this run, so that an overwritten run may go."""
        return self.checkpoints.continues_here or self.checkpoints.last_path.is_file()

    @property
    def must_beat_start(self) -> bool:
        """Whether best.pth needs a higher score than the model before its first step."""
        return self.run.products.start_checkpoint is not None

    def resume(self, checkpoint: Checkpoint, source: Path, *, force: bool = False) -> None:
        """Continue a run that was stopped; `force` allows another config or other data.

        Raises:
            CheckpointError: If training cannot be resumed from the checkpoint, which was read from `source`.
        """
        self.progress = restore_run(self.run, checkpoint, path=source, force=force)
        logger.info(
            "resuming in epoch %d after step %d from %s", self.progress.epoch + 1, self.progress.step, source
        )

    def train(self) -> None:
        """Train from the current progress to the last epoch, with the run folder locked.

        Raises:
            StopSignalError: If a signal asked the run to stop; its state is saved.
            TrainingError: If another process trains in the folder, the loss stays without a finite value, or
                memory runs out twice, or where a smaller micro-batch does not help.
            DataError: If an image is damaged; the state before its batch is saved.
        """
        with lock_run(self.folder) if self.distributed.is_main else nullcontext():
            self._train()

    def _train(self) -> None:
        progress, is_main = self.progress, self.distributed.is_main
        folder = self.folder if is_main else None
        log = RunLog(folder, tensorboard=self.config.runtime.tensorboard, first_step=progress.step)
        with StopSignals() as self._stop, log:
            recovery = Recovery(self.run, self.checkpoints, log)
            validator = Validator(
                run=self.run, validate=self.validate, checkpoints=self.checkpoints, stop=self._stop
            )
            if is_main:
                remove_unfinished(self.folder)
            log.keep_until(epoch=progress.epoch, step=progress.step)
            if not self.checkpoints.best_path.is_file():
                progress.best = None
            if self.must_beat_start and progress.start_score is None:
                result = validator.validate_start(progress)
                ap, ap50, class_ap50 = result.ap, result.ap50, result.class_ap50
                log.write("start", epoch=0, step=0, ap=ap, ap50=ap50, class_ap50=class_ap50)
            # A restore needs this state if the first steps are skipped. And a run that was killed between
            # the two renames of its last checkpoint has none under its name.
            is_unfinished = progress.epoch < self.config.epochs
            if not self.checkpoints.is_saved and (is_unfinished or self.checkpoints.continues_here):
                self._save()
            while progress.epoch < self.config.epochs and not progress.stopped_early:
                if progress.epoch == self.timeline.no_aug_epoch:
                    self._begin_final_stage()
                self._train_epoch(recovery)
                self._finish_epoch(validator, log)
            best = progress.best
            scores = {} if best is None else {"best_score": best.score, "best_epoch": best.epoch + 1}
            log.options(option_values(self.config), scores)
        if is_main and not self.checkpoints.best_path.is_file() and not self.must_beat_start:
            # It was removed after the last validation.
            validator.save_best(progress, epoch=progress.epoch - 1, weights="ema")
        if is_main:
            self.checkpoints.remove_intermediate()

    def _train_epoch(self, recovery: Recovery) -> None:
        """Train the rest of the current epoch."""
        progress, loader = self.progress, self.run.products.loader
        self.run.step.model.train()
        loader.set_epoch(progress.epoch, progress.steps_of_epoch)
        title = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        done, is_main = progress.steps_of_epoch, self.distributed.is_main
        with progress_bar(title, total=len(loader), start=done, is_shown=is_main) as advance:
            for batch in self._timed_batches():
                self._draw_if_stage_begins(batch, recovery.log)
                started = time.perf_counter()
                factor = self._lr_factor(progress.step)
                set_learning_rates(self.run.step.optimizer, factor, epoch=progress.epoch)
                result = recovery.step(batch, progress)
                self._account(batch, result, recovery)
                progress.sums.seconds += time.perf_counter() - started
                advance("skipped" if result.skip_reason else f"loss {result.loss:.2f}")
                self._save_if_due()

    def _draw_if_stage_begins(self, batch: StepBatch, log: RunLog) -> None:
        """Add an image of the first batch of each stage of augmentation to TensorBoard."""
        progress, stages = self.progress, self.run.context.augment_epochs
        first_epochs = (0, stages.start, stages.mix_end, stages.stop, stages.low_resolution_end)
        if self.draw_batch is not None and not progress.steps_of_epoch and progress.epoch in first_epochs:
            log.image("train/batch", self.draw_batch(batch), step=progress.step + 1)

    def _timed_batches(self) -> Iterator[StepBatch]:
        """Yield batches on the device, and add up the time spent waiting for them."""
        batches = iter(self.run.products.loader)
        while True:
            started = time.perf_counter()
            with self._waiting():
                batch = next(batches, None)
            waited = time.perf_counter() - started
            self.progress.sums.waiting_seconds += waited
            self.progress.sums.seconds += waited
            if batch is None:
                return
            with explain_out_of_memory("in copying a batch to the device", STEP_ADVICE):
                on_device = batch.to(self.run.context.device)
            yield on_device

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Save the run if the wait for a batch ends in an error, or by a signal: it stands between two steps.

        With several processes a signal must not end the wait of one of them alone.
        """
        progress = self.progress
        where = f" in epoch {progress.epoch + 1} after step {progress.step}"
        is_alone = self.distributed.size == 1
        try:
            with self._stop.interruptible(where) if is_alone else nullcontext():
                yield
        except Exception:
            if self.distributed.is_main:
                self._write_last()
            if is_alone and self._stop.received is not None:  # the rest follows from it
                raise StopSignalError(self._stop.received, where) from None
            raise

    def _lr_factor(self, step: int) -> float:
        return self.timeline.lr_factor(step) * self.progress.lr_scale

    def _account(self, batch: StepBatch, result: StepResult, recovery: Recovery) -> None:
        """Put the outcome of a step into the averaged weights, the sums and the log."""
        progress = self.progress
        progress.sums.num_images += len(batch.targets) * self.distributed.size
        if result.skip_reason is None:
            progress.skipped_in_a_row, progress.skipped_images = 0, []
            self.run.ema.update()
            curves = {"loss": result.loss, "grad_norm": result.grad_norm}
            progress.sums.add_losses({**curves, **result.terms})
            curves["lr"] = self.config.recipe.lr * self._lr_factor(progress.step)
            named = {f"train/{name}": value for name, value in curves.items()}
            recovery.log.curves(named, step=progress.step + 1)
        else:
            recovery.record_skip(progress, batch, result)
        progress.step += 1
        progress.steps_of_epoch += 1

    def _save_if_due(self) -> None:
        """Save after `runtime.checkpoint_minutes`, and when a signal arrived; then stop."""
        progress = self.progress
        minutes = (time.monotonic() - self._saved_at) / 60
        is_due = self.distributed.is_main and minutes >= self.config.runtime.checkpoint_minutes
        # One exchange for both: all processes save and stop after the same step.
        signal_number, any_due = divmod(self.distributed.max(2 * (self._stop.received or 0) + is_due), 2)
        if signal_number or any_due:
            self._save()
        if signal_number:
            raise StopSignalError(signal_number, f" in epoch {progress.epoch + 1} after step {progress.step}")

    def _save(self) -> None:
        """Write last.pth in the main process; the others wait for it."""
        self._saved_at = time.monotonic()
        if self.distributed.is_main:
            self._write_last()
        self.distributed.wait()

    def _write_last(self) -> None:
        checkpoint = capture_resumable(self.run, self.progress)
        with self._stop.held():
            self.checkpoints.save_last(checkpoint)

    def _finish_epoch(self, validator: Validator, log: RunLog) -> None:
        """Validate, log, and save the state in which the next epoch begins."""
        progress, recipe, device = self.progress, self.config.recipe, self.run.context.device
        factor = self._lr_factor(progress.step - 1)
        values = {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": recipe.lr * factor,
            "backbone_lr": recipe.backbone_lr * factor if self.run.task.trains_backbone else 0.0,
            "peak_memory_bytes": peak_bytes(device),
            **progress.sums.means(),
        }
        reset_peak(device)
        if validator.is_due(progress.epoch):
            # A run that is killed while it validates must not train the epoch again.
            self._save()
            started = time.perf_counter()
            result, validated = validator.validate_epoch(progress)
            values |= {**validated, "validation_seconds": time.perf_counter() - started}
            log.validation(result, step=progress.step)
        seconds = progress.sums.seconds + values.get("validation_seconds", 0.0)
        values["seconds"] = seconds
        values["time_left_s"] = seconds * (self.config.epochs - progress.epoch - 1)
        values["stopped_early"] = progress.stopped_early
        # Before the checkpoint: a kill in between repeats the line, but never loses it.
        log.write("epoch", **values)
        log.curves({f"loss/{name}": value for name, value in values["terms"].items()}, step=progress.step)
        logger.info(epoch_line(epochs=self.config.epochs, **values))
        if progress.stopped_early:
            logger.info("stopping early: %s", progress.early_stopping.describe())
        progress.epoch += 1
        progress.steps_of_epoch, progress.sums = 0, EpochSums()
        self._save()
        self._save_if_due()

    def _begin_final_stage(self) -> None:
        """Start the final stage from the best weights so far, raw and averaged."""
        best = self.progress.best
        if self.progress.steps_of_epoch or best is None:
            return
        checkpoint = self.checkpoints.read_best(best.epoch)
        if self.checkpoints.has_damaged_best():
            self.progress.best = None  # the next validation writes another
        if checkpoint is None:
            logger.warning("final stage: best.pth is not of this run's best epoch; using the last weights")
            return
        if self.distributed.is_main:
            with self._stop.held():
                save_checkpoint(checkpoint, self.checkpoints.final_stage_path)
        restore_model(self.run, checkpoint)
        self._save()
        logger.info("final stage: restored the weights of epoch %d", checkpoint.epoch + 1)
