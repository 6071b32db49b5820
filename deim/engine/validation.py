"""Validates the models of a run, keeps the best in best.pth, and decides when the run stops early."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray
from torch import nn

from deim.engine.checkpoints import RunCheckpoints, describe_kept, save_checkpoint
from deim.engine.context import TrainingRun
from deim.engine.memory import VALIDATION_ADVICE, explain_out_of_memory
from deim.engine.progress import BestScore, Progress, WeightKind
from deim.engine.resume import capture_checkpoint
from deim.engine.signals import StopSignals
from deim.engine.step import StepBatch, unwrap_model
from deim.errors import NonFiniteError, TrainingError

logger = logging.getLogger(__name__)

NO_SCORE = -1.0
"""Score of a validation without an AP: the lowest of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Metrics of a model on the validation split."""

    ap: float | None
    """COCO AP; None if the split has no boxes."""
    ap50: float | None
    worst_class: str | None
    """Name of the class with the lowest AP at IoU 0.50."""
    worst_class_ap50: float | None
    summary: dict[str, float | None]
    """The 12 COCO numbers."""
    class_ap50: dict[str, float | None]
    """AP at IoU 0.50 of each class."""
    class_ap: dict[str, float | None] = field(default_factory=dict)
    """COCO AP of each class."""
    escape_rate: float | None = None
    """Share of the defective images without a hit, at `evaluation.draw_threshold`; None without any."""
    overkill_rate: float | None = None
    """Share of the good images with a detection, at the same threshold; None without any."""
    loss: float | None = None
    """Loss of the last decoder layer, of classes and boxes, or that of pretraining; None if it was not
    computed."""
    image: NDArray[Any] | None = None
    """(H, W, 3) uint8: some images with their predictions, for TensorBoard."""

    @property
    def score(self) -> float:
        """AP, or the negative loss of a task without classes, by which best.pth is chosen; -1 if none."""
        score = self.score_of("ap")
        return NO_SCORE if score is None or math.isnan(score) else score

    def score_of(self, metric: Literal["ap", "ap50"]) -> float | None:
        """Return a metric, or the negative loss of a task without classes; None if there is none."""
        if not self.class_ap50 and self.loss is not None:
            return -self.loss
        return self.ap if metric == "ap" else self.ap50


Validate = Callable[[nn.Module], Validation]
DrawBatch = Callable[[StepBatch], NDArray[Any] | None]
"""Draws a training batch as (H, W, 3) uint8, for TensorBoard; None for one that holds no images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validator:
    """Validates the models of a run."""

    run: TrainingRun
    validate: Validate
    checkpoints: RunCheckpoints
    stop: StopSignals

    def is_due(self, epoch: int) -> bool:
        """Return whether an epoch (0-based) ends with a validation."""
        context = self.run.context
        # The final stage starts from the best weights, so the epoch before it must be validated.
        is_last = epoch + 1 in (context.timeline.epochs, context.timeline.no_aug_epoch)
        return is_last or (epoch + 1) % context.config.evaluation.every_epochs == 0

    def validate_start(self, progress: Progress) -> Validation:
        """Validate the model before its first step, whose score best.pth must exceed."""
        result = self._evaluate(self.run.ema.model, "ema", progress)
        progress.start_score = result.score
        logger.info(
            "before training: mAP %s, mAP50 %s; best.pth is written on a higher mAP",
            *("none" if value is None else f"{value:.3f}" for value in (result.ap, result.ap50)),
        )
        return result

    def validate_epoch(self, progress: Progress) -> tuple[Validation, dict[str, Any]]:
        """Validate the averaged weights, and the raw ones if asked; write best.pth on the highest score.

        Returns:
            The better result, and its entries in `metrics.jsonl`.
        """
        results: dict[WeightKind, Validation] = {"ema": self._evaluate(self.run.ema.model, "ema", progress)}
        if self.run.context.config.evaluation.evaluate_raw:
            model = unwrap_model(self.run.step.model).eval()
            results["raw"] = self._evaluate(model, "raw", progress)
        weights, result = max(results.items(), key=lambda item: item[1].score)
        best, start = progress.best, progress.start_score
        # Of equal scores the later one wins: until a first success, no training is thrown away.
        is_best = (start is None or result.score > start) and (best is None or result.score >= best.score)
        if is_best:
            progress.best = BestScore(score=result.score, epoch=progress.epoch, weights=weights)
            self.save_best(progress, epoch=progress.epoch, weights=weights)
        progress.stopped_early = self._should_stop(progress, result)
        names = ("ap", "ap50", "worst_class", "worst_class_ap50", "class_ap50")
        rates = ("escape_rate", "overkill_rate")
        return result, {
            "weights": weights,
            "is_best": is_best,
            **{name: getattr(result, name) for name in (*names, *rates)},
            "val_loss": result.loss,
            "val": result.summary,
            "val_raw": results["raw"].summary if "raw" in results else None,
        }

    def save_best(self, progress: Progress, *, epoch: int, weights: WeightKind) -> None:
        """Write best.pth in the main process."""
        if self.run.context.distributed.is_main:
            checkpoint = capture_checkpoint(self.run, progress, epoch=epoch, weights=weights)
            with self.stop.held():
                save_checkpoint(checkpoint, self.checkpoints.best_path)

    def _evaluate(self, model: nn.Module, weights: WeightKind, progress: Progress) -> Validation:
        """Validate a model; in a single process a signal interrupts it, as the epoch is saved already.

        Raises:
            TrainingError: If the weights give NaN or infinity for an image, so that there is no score.
        """
        where = f" in epoch {progress.epoch + 1} during validation"
        is_alone = self.run.context.distributed.size == 1
        interruption = self.stop.interruptible(where) if is_alone else nullcontext()
        with interruption, explain_out_of_memory("in validation", VALIDATION_ADVICE):
            try:
                return self.validate(model)
            except NonFiniteError as error:
                kind = "averaged" if weights == "ema" else "raw"
                raise TrainingError(
                    f"validation of the {kind} weights of epoch {progress.epoch + 1}: {error} The run has "
                    f"diverged; {describe_kept(self.checkpoints.folder)}"
                ) from None

    def _should_stop(self, progress: Progress, result: Validation) -> bool:
        options, timeline = self.run.context.config.early_stopping, self.run.context.timeline
        score = result.score_of(options.metric)
        has_final_stage = timeline.no_aug_epoch < timeline.epochs
        stage = timeline.no_aug_epoch if has_final_stage else timeline.augment_start_epoch
        stage = max(stage, self.run.context.augment_epochs.low_resolution_end)
        return progress.early_stopping.should_stop(
            score, options, epoch=progress.epoch, last_stage_epoch=stage
        )
