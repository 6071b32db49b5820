"""When a run that no longer gains should end."""

import math
from dataclasses import dataclass

from deim.config.schema import EarlyStoppingConfig


@dataclass(kw_only=True, slots=True)
class Gains:
    """What early stopping remembers."""

    score: float | None = None
    """The score to beat; None before the first."""
    epoch: int = -1
    """0-based epoch of that score."""


def note_gain(gains: Gains, score: float | None, *, epoch: int, min_delta: float) -> None:
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


def describe_gains(gains: Gains) -> str:
    """Text such as `no gain since epoch 5`, in which epochs count from 1."""
    if gains.score is None:
        return "no validation has given a score; does the validation split have boxes?"
    return f"no gain since epoch {gains.epoch + 1}"


def should_stop(gains: Gains, config: EarlyStoppingConfig, *, epoch: int, last_stage_epoch: int) -> bool:
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
