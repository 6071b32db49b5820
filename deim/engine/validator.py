"""Validates the models of a run, keeps the best in best.pth, and decides when the run stops early."""

import logging
from contextlib import nullcontext
from typing import Any

from torch import nn

from deim.engine.checkpoint_manager import CheckpointManager
from deim.engine.context import TrainingRun
from deim.engine.early_stopping import should_stop, update_early_stopping
from deim.engine.memory import VALIDATION_ADVICE, explain_out_of_memory
from deim.engine.progress import Progress
from deim.engine.run_state import capture_checkpoint
from deim.engine.signals import StopSignals
from deim.engine.step import unwrap_model
from deim.engine.validation import BestScore, Validate, Validation, WeightKind, is_better

logger = logging.getLogger(__name__)


class Validator:
    """Validates the models of a run.

    Args:
        run: The run.
        validate: Evaluates a model on the validation split.
        checkpoints: The checkpoints of the run folder.
        stop: Requests to stop.
    """

    def __init__(
        self, run: TrainingRun, validate: Validate, *, checkpoints: CheckpointManager, stop: StopSignals
    ) -> None:
        self.run = run
        self.validate = validate
        self.checkpoints = checkpoints
        self.stop = stop

    def is_due(self, epoch: int) -> bool:
        """Return whether an epoch (0-based) ends with a validation."""
        context = self.run.context
        # The final stage starts from the best weights, so the epoch before it must be validated.
        is_last = epoch + 1 in (context.timeline.epochs, context.timeline.no_aug_epoch)
        return is_last or (epoch + 1) % context.config.evaluation.every_epochs == 0

    def validate_start(self, progress: Progress) -> Validation:
        """Validate the model before its first step, whose score best.pth must exceed."""
        result = self._evaluate(self.run.ema.model, progress)
        progress.start_score = result.score
        logger.info(
            "before training: mAP %s, mAP50 %s; best.pth is written on a higher mAP",
            *("none" if value is None else f"{value:.3f}" for value in (result.ap, result.ap50)),
        )
        return result

    def validate_epoch(self, progress: Progress) -> tuple[Validation, dict[str, Any]]:
        """Validate the averaged weights, and the raw ones if asked; write best.pth on the highest score.

        Args:
            progress: How far the run has come; updated.

        Returns:
            The better result, and its entries in `metrics.jsonl`.
        """
        results: dict[WeightKind, Validation] = {"ema": self._evaluate(self.run.ema.model, progress)}
        if self.run.context.config.evaluation.evaluate_raw:
            model = unwrap_model(self.run.step.model).eval()
            results["raw"] = self._evaluate(model, progress)
        weights, result = max(results.items(), key=lambda item: item[1].score)
        is_best = is_better(result.score, progress.best, start_score=progress.start_score)
        if is_best:
            progress.best = BestScore(score=result.score, epoch=progress.epoch, weights=weights)
            self.save_best(progress, epoch=progress.epoch, weights=weights)
        self._decide_stop(progress, result)
        return result, {
            "weights": weights,
            "is_best": is_best,
            **result.values(),
            "val_raw": results["raw"].summary if "raw" in results else None,
        }

    def save_best(self, progress: Progress, *, epoch: int, weights: WeightKind) -> None:
        """Write best.pth in the main process."""
        if self.run.context.distributed.is_main:
            checkpoint = capture_checkpoint(self.run, progress, epoch=epoch, weights=weights)
            with self.stop.held():
                self.checkpoints.save_best(checkpoint)

    def _evaluate(self, model: nn.Module, progress: Progress) -> Validation:
        """Validate a model; in a single process a signal interrupts it, as the epoch is saved already."""
        where = f" in epoch {progress.epoch + 1} during validation"
        is_alone = self.run.context.distributed.size == 1
        interruption = self.stop.interruptible(where) if is_alone else nullcontext()
        with interruption, explain_out_of_memory("in validation", VALIDATION_ADVICE):
            return self.validate(model)

    def _decide_stop(self, progress: Progress, result: Validation) -> None:
        options, timeline = self.run.context.config.early_stopping, self.run.context.timeline
        score = result.ap if options.metric == "ap" else result.ap50
        state, epoch = progress.early_stopping, progress.epoch
        update_early_stopping(state, score, epoch=epoch, min_delta=options.min_delta)
        has_final_stage = timeline.no_aug_epoch < timeline.epochs
        last_stage = timeline.no_aug_epoch if has_final_stage else timeline.augment_start_epoch
        progress.stopped_early = should_stop(state, options, epoch=epoch, last_stage_epoch=last_stage)
