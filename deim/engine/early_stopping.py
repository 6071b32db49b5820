"""When a run ends early because its score no longer rises."""

import math
from dataclasses import dataclass
from typing import Literal

from deim.config.checks import EPOCHS, check, not_fraction, outside


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingOptions:
    """Ends a run whose score no longer rises."""

    patience: int | None = None
    """Epochs without an improvement before the run ends; null never ends it early."""
    min_delta: float = 0.0
    """Smallest increase of the score that counts as an improvement, exclusive, in [0, 1]."""
    metric: Literal["ap", "ap50"] = "ap"
    """COCO AP, or AP at IoU 0.50, of the validation split; pretraining has only its loss."""
    before_final_stage: bool = False
    """Let the run end before its final stage; otherwise patience counts from the start of that stage, or,
    without one, from `schedule.augment_start_epoch`, and never from before the end of low resolution."""

    def __post_init__(self) -> None:
        check([*outside(1, EPOCHS, patience=self.patience), *not_fraction(min_delta=self.min_delta)])


@dataclass(kw_only=True, slots=True)
class EarlyStoppingState:
    """The last improvement."""

    score: float | None = None
    """The best score; None before the first."""
    epoch: int = -1
    """The epoch (0-based) of that score."""

    def should_stop(
        self, score: float | None, options: EarlyStoppingOptions, *, epoch: int, last_stage_epoch: int
    ) -> bool:
        """Note a validation, and return whether the score has not improved for as long as the patience.

        Args:
            score: None or NaN if the split has no boxes, which is no improvement; nor is a tie.
            options: The block `early_stopping`.
            epoch: The epoch (0-based) that was just validated.
            last_stage_epoch: First epoch of the last stage of augmentation, which usually improves the score:
                unless `before_final_stage` is set, patience counts from there.
        """
        best = -math.inf if self.score is None else self.score + options.min_delta
        if score is not None and score > best:  # NaN is not
            self.score, self.epoch = score, epoch
        if options.patience is None:
            return False
        since = self.epoch if options.before_final_stage else max(self.epoch, last_stage_epoch - 1)
        return epoch - since >= options.patience

    def describe(self) -> str:
        """Return text such as `no improvement since epoch 5`, in which epochs count from 1."""
        if self.score is None:
            return "no validation has given a score; does the validation split have boxes?"
        return f"no improvement since epoch {self.epoch + 1}"
