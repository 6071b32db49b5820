"""When a run that no longer gains should end."""

import math
from dataclasses import dataclass
from typing import Literal

from deim.config.checks import below, check, not_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingOptions:
    """Ends a run that no longer gains."""

    patience: int | None = None
    """Epochs without a gain before the run ends; null never ends it early."""
    min_delta: float = 0.0
    """A gain is a score higher than the best by more than this, in [0, 1]."""
    metric: Literal["ap", "ap50"] = "ap"
    """COCO AP, or AP at IoU 0.50, of the validation split."""
    before_final_stage: bool = False
    """Let the run end before its final stage, whose gain is then lost; otherwise patience counts there, or,
    without a final stage, from `schedule.augment_start_epoch`."""

    def __post_init__(self) -> None:
        check([*below(1, patience=self.patience), *not_fraction(min_delta=self.min_delta)])


@dataclass(kw_only=True, slots=True)
class EarlyStoppingState:
    """What early stopping remembers."""

    score: float | None = None
    """The score to beat; None before the first."""
    epoch: int = -1
    """0-based epoch of that score."""


def update_early_stopping(
    gains: EarlyStoppingState, score: float | None, *, epoch: int, min_delta: float
) -> None:
    """Take a validation into account; a missing or NaN score and one that only ties are no gain.

    Args:
        gains: Changed in place.
        score: Of the validation; None if the split has no boxes.
        epoch: 0-based.
        min_delta: A gain is more than this.
    """
    if score is None or math.isnan(score):
        return
    if gains.score is None or score > gains.score + min_delta:
        gains.score, gains.epoch = score, epoch


def describe_early_stopping(gains: EarlyStoppingState) -> str:
    """Text such as `no gain since epoch 5`, in which epochs count from 1."""
    if gains.score is None:
        return "no validation has given a score; does the validation split have boxes?"
    return f"no gain since epoch {gains.epoch + 1}"


def should_stop(
    gains: EarlyStoppingState, config: EarlyStoppingOptions, *, epoch: int, last_stage_epoch: int
) -> bool:
    """Whether the run has gone without a gain for longer than its patience.

    Args:
        gains: Up to and including `epoch`.
        config: The `early_stopping` block.
        epoch: 0-based, the epoch that has just been validated.
        last_stage_epoch: First epoch of the last stage of augmentation, which usually brings a gain of its
            own: unless `before_final_stage` is set, patience begins to count there.
    """
    if config.patience is None:
        return False
    since = gains.epoch if config.before_final_stage else max(gains.epoch, last_stage_epoch - 1)
    return epoch - since >= config.patience
