"""The training loop.

    for each epoch:  train every batch → save → validate → perhaps write best.pth → log → save

A run can be killed at any moment and goes on from `last.pth` to the same weights. Validation is passed in as
a function, so that training knows nothing of metrics.
"""

import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from deim.config.schema import Config
from deim.engine.checkpoints import WeightKind, previous_path, read_checkpoint, read_newest, save_checkpoint
from deim.engine.context import (
    EpochSums,
    Progress,
    RunParts,
    Validation,
    refuse_another_run,
    restore_model,
    restore_run,
    run_differences,
    state_tree,
)
from deim.engine.early_stopping import describe_early_stopping, should_stop, update_early_stopping
from deim.engine.log import RunLog, epoch_line
from deim.engine.memory import (
    STEP_ADVICE,
    VALIDATION_ADVICE,
    ends_without_memory,
    peak_bytes,
    reset_peak,
)
from deim.engine.optimizer import set_learning_rates
from deim.engine.recovery import Recovery, is_good_start
from deim.engine.signals import StopSignals
from deim.engine.step import StepBatch, StepResult, train_step, unwrap_model
from deim.errors import CheckpointError, StopSignalError
from deim.files import remove_unfinished

logger = logging.getLogger(__name__)


class Trainer:
    """Runs an experiment in a folder.

    Args:
        config: The experiment.
        parts: What it is made of.
        folder: The run folder; it exists when `run` is called.
    """

    def __init__(self, config: Config, parts: RunParts, *, folder: Path) -> None:
        self.config = config
        self.parts = parts
        self.folder = folder
        self.progress = Progress()
        self._recovery = Recovery(config, parts, last_path=self.last_path)
        self._log = RunLog(None)
        self._stop = StopSignals()
        self._saved_at = time.monotonic()
        self._last_is_start = True
        self._resumed_from: Path | None = None
        self._is_saved = False
        self._first_step = 0

    @property
    def goes_on_here(self) -> bool:
        """Whether this run was stopped in the folder that it now goes on in."""
        before = self._resumed_from
        return before is not None and before.resolve().parent == self.folder.resolve()

    @property
    def has_begun(self) -> bool:
        """Whether the folder holds work of this run."""
        return self.goes_on_here or self.progress.step > self._first_step

    @property
    def best_path(self) -> Path:
        """Where the best weights are."""
        return self.folder / "best.pth"

    @property
    def last_path(self) -> Path:
        """Where the newest state is."""
        return self.folder / "last.pth"

    @property
    def stage_path(self) -> Path:
        """The best weights before the final stage, which starts from them however often it is resumed."""
        return self.folder / "best_before_final_stage.pth"

    def run(self, *, show_progress: bool = True) -> None:
        """Train from the current progress to the last epoch.

        Args:
            show_progress: Draw a bar on the terminal.

        Raises:
            StopSignalError: If a signal asked the run to stop; its state is saved.
            TrainingError: If the loss stays without a finite value, or memory runs out twice, or where a
                smaller micro-batch is of no use.
            DataError: If an image is damaged.
        """
        is_main = self.parts.step.distributed.is_main
        folder = self.folder if is_main else None
        log = RunLog(folder, tensorboard=self.config.runtime.tensorboard, first_step=self.progress.step)
        with StopSignals() as self._stop, log:
            self._log = log
            if is_main:
                remove_unfinished(self.folder)
            log.keep_until(epoch=self.progress.epoch, step=self.progress.step)
            if not self.best_path.is_file():
                self.progress.best = {}
            if self.parts.must_beat_start and self.progress.start_score is None:
                self._validate_start()
            # What a restore goes back to if the first steps are refused. And a run that was killed between
            # the two renames of its last checkpoint has none under its name.
            if not self._is_saved and (self.progress.epoch < self.config.epochs or self.goes_on_here):
                self._save()
            while self.progress.epoch < self.config.epochs and not self.progress.stopped_early:
                if self.progress.epoch == self.parts.timeline.no_aug_epoch:
                    self._begin_final_stage()
                self._train_epoch(show_progress=show_progress and is_main)
                self._finish_epoch()
        if is_main and not self.best_path.is_file() and not self.parts.must_beat_start:
            self._save_best(self.config.epochs - 1, "ema")  # it was removed after the last validation
        if is_main:  # of no use to a finished run
            self.stage_path.unlink(missing_ok=True)
            previous_path(self.last_path).unlink(missing_ok=True)

    def _train_epoch(self, *, show_progress: bool) -> None:
        """Train the rest of the current epoch."""
        progress, parts = self.progress, self.parts
        parts.step.model.train()
        parts.loader.set_epoch(progress.epoch, progress.steps_of_epoch)
        bar = tqdm(
            total=len(parts.batches),
            initial=progress.steps_of_epoch,
            desc=f"epoch {progress.epoch + 1}/{self.config.epochs}",
            leave=False,
            disable=None if show_progress else True,
        )
        with bar:
            for batch in self._timed_batches():
                started = time.perf_counter()
                result = self._step(batch)
                self._account(batch, result)
                progress.sums.seconds += time.perf_counter() - started
                bar.update()
                if result.skip_reason is None:
                    bar.set_postfix(loss=f"{result.loss:.2f}")
                self._save_if_due()

    def _timed_batches(self) -> Iterator[StepBatch]:
        """Batches on the device, with the time that they were waited for."""
        batches = iter(self.parts.loader)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - started
            self.progress.sums.waiting_seconds += waited
            self.progress.sums.seconds += waited
            if batch is None:
                return
            with ends_without_memory("in copying a batch to the device", STEP_ADVICE):
                on_device = batch.to(self.parts.device)
            yield on_device

    def _step(self, batch: StepBatch) -> StepResult:
        progress, parts = self.progress, self.parts
        factor = parts.timeline.lr_factor(progress.step) * progress.lr_scale
        set_learning_rates(parts.step.optimizer, factor, epoch=progress.epoch)
        # The same draws in every process and in every micro-batch, and after a resume.
        seeds = np.random.SeedSequence([self.config.seed, progress.step])
        seed = int(seeds.generate_state(1)[0])
        while True:
            try:
                return train_step(
                    parts.step,
                    batch,
                    epoch=progress.epoch,
                    seed=seed,
                    micro_batch_size=progress.micro_batch_size,
                )
            except torch.OutOfMemoryError:
                pass  # while it is handled, its traceback holds the memory of the step
            self._recovery.halve_micro_batch(progress, len(batch.targets), self._log)

    def _account(self, batch: StepBatch, result: StepResult) -> None:
        """Put the outcome of a step into the averaged weights, the sums and the log."""
        progress, sums, parts = self.progress, self.progress.sums, self.parts
        sums.num_images += len(batch.targets) * parts.step.distributed.size
        if result.skip_reason is None:
            progress.skipped_in_a_row, progress.skipped_images = 0, []
            parts.ema.update(unwrap_model(parts.step.model))
            sums.num_good += 1
            for name, value in {"loss": result.loss, "grad_norm": result.grad_norm, **result.terms}.items():
                sums.values[name] = sums.values.get(name, 0.0) + value
        else:
            self._recovery.record_skip(progress, batch, result, self._log)
        progress.step += 1
        progress.steps_of_epoch += 1
        if result.skip_reason is None:
            factor = parts.timeline.lr_factor(progress.step - 1) * progress.lr_scale
            learning_rate = self.config.recipe.lr * factor
            curves = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": learning_rate}
            self._log.curves({f"train/{name}": value for name, value in curves.items()}, step=progress.step)

    def _save_if_due(self) -> None:
        """Save at the times asked for, and when a signal has come; then stop."""
        distributed, progress = self.parts.step.distributed, self.progress
        minutes = (time.monotonic() - self._saved_at) / 60
        is_due = distributed.is_main and minutes >= self.config.runtime.checkpoint_minutes
        # One exchange for both: all processes save and stop after the same step.
        signal_number, any_due = divmod(distributed.max(2 * (self._stop.received or 0) + is_due), 2)
        if signal_number or any_due:
            self._save()
        if signal_number:
            raise StopSignalError(signal_number, f" in epoch {progress.epoch + 1} after step {progress.step}")

    def _save(self) -> None:
        """Write last.pth, and keep the one before it if that is a state to restore."""
        self._saved_at = time.monotonic()
        if self.parts.step.distributed.is_main:
            tree = state_tree(
                self.config,
                self.parts,
                self.progress,
                epoch=max(self.progress.epoch - (self.progress.steps_of_epoch == 0), 0),
                weights="ema",
                resumable=True,
            )
            with self._stop.held():
                # A restore goes back to the start of an epoch, whenever else was saved: that state stays.
                save_checkpoint(tree, self.last_path, keep_previous=self._last_is_start)
                self._last_is_start = is_good_start(tree["progress"])
        self.parts.step.distributed.wait()

    def _finish_epoch(self) -> None:
        """Validate, log, and save the state in which the next epoch begins."""
        progress = self.progress
        values = self._epoch_values()
        if self._is_validated(progress.epoch):
            # A run that is killed while it validates shall not train the epoch again.
            self._save()
            started = time.perf_counter()
            values |= self._validate()
            values["validation_seconds"] = time.perf_counter() - started
        seconds = progress.sums.seconds + values.get("validation_seconds", 0.0)
        values["seconds"] = seconds
        values["time_left_s"] = seconds * (self.config.epochs - progress.epoch - 1)
        values["stopped_early"] = progress.stopped_early
        # Before the checkpoint: a kill in between repeats the line, but never loses it.
        self._log.write("epoch", values)
        validated = {f"val/{name}": value for name, value in values.get("val", {}).items()}
        self._log.curves(validated, step=progress.step)
        logger.info(epoch_line(values, epochs=self.config.epochs))
        if progress.stopped_early:
            logger.info("stopping early: %s", describe_early_stopping(progress.early_stopping))
        progress.epoch += 1
        progress.steps_of_epoch, progress.sums = 0, EpochSums()
        self._save()
        self._save_if_due()

    def _epoch_values(self) -> dict[str, Any]:
        progress, sums = self.progress, self.progress.sums
        means = {name: value / sums.num_good for name, value in sums.values.items()}
        factor = self.parts.timeline.lr_factor(progress.step - 1) * progress.lr_scale
        values = {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": self.config.recipe.lr * factor,
            "backbone_lr": 0.0 if self.config.multimodal else self.config.recipe.backbone_lr * factor,
            "images_per_s": sums.num_images / max(sums.seconds, 1e-9),
            "waiting_share": sums.waiting_seconds / max(sums.seconds, 1e-9),
            "peak_memory_bytes": peak_bytes(self.parts.device),
            "skipped_steps": sums.num_skipped,
            "loss": means.pop("loss", math.nan),
            "grad_norm": means.pop("grad_norm", math.nan),
            "terms": means,
        }
        reset_peak(self.parts.device)
        return values

    def _is_validated(self, epoch: int) -> bool:
        # The final stage starts from the best weights, so the epoch before it must have been scored.
        is_due = epoch + 1 in (self.config.epochs, self.parts.timeline.no_aug_epoch)
        return is_due or (epoch + 1) % self.config.evaluation.every_epochs == 0

    def _validate_start(self) -> None:
        """Score the model before its first step: what the run has to beat."""
        found = self._validation_of(self.parts.ema.model)
        self.progress.start_score = _score(found)
        values = {"ap": found.ap, "ap50": found.ap50, "class_ap50": found.class_ap50}
        self._log.write("start", {"epoch": 0, "step": 0, **values})
        logger.info(
            "before training: mAP %s, mAP50 %s; best.pth is written on a higher mAP",
            *("none" if value is None else f"{value:.3f}" for value in (found.ap, found.ap50)),
        )

    def _validate(self) -> dict[str, Any]:
        """Score the averaged weights, and the raw ones if asked; write best.pth on the highest score yet."""
        progress, parts = self.progress, self.parts
        results: dict[WeightKind, Validation] = {"ema": self._validation_of(parts.ema.model)}
        if self.config.evaluation.evaluate_raw:
            results["raw"] = self._validation_of(unwrap_model(parts.step.model).eval())
        weights, best = max(results.items(), key=lambda item: _score(item[1]))
        # Of equal scores the later counts: without any success yet, nothing learned is thrown away.
        is_best = _score(best) >= progress.best.get("score", -math.inf)
        if progress.start_score is not None:
            is_best = is_best and _score(best) > progress.start_score
        if is_best:
            progress.best = {
                "metric": "ap",
                "score": _score(best),
                "epoch": progress.epoch,
                "weights": weights,
            }
            if parts.step.distributed.is_main:
                self._save_best(progress.epoch, weights)
        self._decide_stop(best)
        if best.picture is not None:
            self._log.picture("val/predictions", best.picture, step=progress.step)
        return {
            "weights": weights,
            "ap": best.ap,
            "ap50": best.ap50,
            "worst_class": best.worst_class,
            "worst_class_ap50": best.worst_class_ap50,
            "is_best": is_best,
            "val": best.summary,
            "class_ap50": best.class_ap50,
            "val_raw": results["raw"].summary if "raw" in results else None,
        }

    def _validation_of(self, model: nn.Module) -> Validation:
        """Score a model; in a single process a signal breaks that off, as all that comes before is saved."""
        where = f" in epoch {self.progress.epoch + 1} while it was validated"
        alone = self.parts.step.distributed.size == 1
        breaking = self._stop.broken_off(where) if alone else nullcontext()
        with breaking, ends_without_memory("in validation", VALIDATION_ADVICE):
            return self.parts.validate(model)

    def _save_best(self, epoch: int, weights: WeightKind) -> None:
        tree = state_tree(
            self.config, self.parts, self.progress, epoch=epoch, weights=weights, resumable=False
        )
        with self._stop.held():
            save_checkpoint(tree, self.best_path)

    def _decide_stop(self, validation: Validation) -> None:
        config, progress = self.config.early_stopping, self.progress
        score = validation.ap if config.metric == "ap" else validation.ap50
        update_early_stopping(
            progress.early_stopping, score, epoch=progress.epoch, min_delta=config.min_delta
        )
        timeline = self.parts.timeline
        stage = timeline.no_aug_epoch
        progress.stopped_early = should_stop(
            progress.early_stopping,
            config,
            epoch=progress.epoch,
            last_stage_epoch=stage if stage < timeline.epochs else timeline.augment_start_epoch,
        )

    def resume(self, path: Path, *, force: bool = False) -> None:
        """Go on where a run stopped.

        Args:
            path: The `last.pth` of a run of the same config and data.
            force: Go on though config or data differ; the differences are logged.

        Raises:
            CheckpointError: If it is not such a checkpoint.
        """
        tree, found = read_newest(path)
        if "progress" not in tree:
            raise CheckpointError(f"{path}: holds weights only. Resume from last.pth of the same folder.")
        differences = run_differences(self.config, self.parts, tree)
        if not force:
            refuse_another_run(differences, path=found)
        for line in differences:
            logger.warning("changed since the run was stopped: %s", line)
        self.progress = restore_run(self.parts, tree, path=found)
        if force and differences:
            self.progress.stopped_early = False
            self._fit_to_changes(tree)
        self._resumed_from = path
        self._first_step = self.progress.step
        self._is_saved = found.resolve() == self.last_path.resolve()
        # A damaged file must not take the place of the one before it.
        self._last_is_start = self._is_saved and is_good_start(tree["progress"])
        logger.info(
            "resuming in epoch %d after step %d from %s", self.progress.epoch + 1, self.progress.step, found
        )

    def _fit_to_changes(self, tree: dict[str, Any]) -> None:
        """After a forced resume: what was counted in other steps, or chosen for another batch size."""
        progress = self.progress
        now = len(self.parts.batches)
        before = tree.get("batches", {}).get("steps of an epoch", now)
        if before != now:
            steps_of_epoch = round(progress.steps_of_epoch * now / before)
            step = progress.epoch * now + steps_of_epoch
            logger.warning(
                "an epoch has %d steps instead of %d: step %d becomes %d", now, before, progress.step, step
            )
            progress.step, progress.steps_of_epoch = step, steps_of_epoch
        if tree["config"]["data"]["batch_size"] != self.config.data.batch_size and not progress.halved:
            progress.micro_batch_size = None

    def adopt_best(self) -> None:
        """Bring best weights and a state to restore along from a continued run; the main process does so."""
        if self._resumed_from is None or self.goes_on_here:
            return
        before = previous_path(self.last_path)
        paths = [self.best_path, self.stage_path]
        if self._resumed_from.name in (self.last_path.name, before.name):
            paths.append(before)
        for path in paths:
            source = self._resumed_from.with_name(path.name)
            if source.is_file():
                shutil.copyfile(source, path)

    def _begin_final_stage(self) -> None:
        """Start the final stage from the best weights so far, raw and averaged."""
        progress = self.progress
        if progress.steps_of_epoch or not progress.best:
            return
        # A stopped run may come here again when best.pth already holds an epoch of the final stage.
        best_epoch = progress.best["epoch"]
        for path in (self.best_path, self.stage_path):
            try:
                tree = read_checkpoint(path) if path.is_file() else {}
            except CheckpointError as error:
                logger.warning("%s", error)
                tree = {}
                if path == self.best_path:
                    progress.best = {}  # the next validation writes another
            if tree.get("epoch") == best_epoch:
                break
        else:
            logger.warning(
                "final stage: best.pth is not of this run's best epoch; going on from the last one"
            )
            return
        if path == self.best_path and self.parts.step.distributed.is_main:
            with self._stop.held():
                save_checkpoint(tree, self.stage_path)
        restore_model(self.parts, tree)
        self._save()
        logger.info("final stage: restored the weights of epoch %d", tree["epoch"] + 1)


def _score(validation: Validation) -> float:
    """What `best.pth` is chosen by: AP, and the lowest of all values where there is none."""
    return -1.0 if validation.ap is None or math.isnan(validation.ap) else validation.ap
