"""When a run ends early because its score no longer rises."""

import math
from dataclasses import dataclass
from typing import Literal

from deim.config.checks import below, check, not_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingOptions:
    """Ends a run whose score no longer rises."""

    patience: int | None = None
    """Epochs without an improvement before the run ends; null never ends it early."""
    min_delta: float = 0.0
    """Smallest increase of the score that counts as an improvement, exclusive, in [0, 1]."""
    metric: Literal["ap", "ap50"] = "ap"
    """COCO AP, or AP at IoU 0.50, of the validation split."""
    before_final_stage: bool = False
    """Let the run end before its final stage; otherwise patience counts from the start of that stage, or,
    without one, from `schedule.augment_start_epoch`."""

    def __post_init__(self) -> None:
        check([*below(1, patience=self.patience), *not_fraction(min_delta=self.min_delta)])


@dataclass(kw_only=True, slots=True)
class EarlyStoppingState:
    """The last improvement."""

    score: float | None = None
    """The best score; None before the first."""
    epoch: int = -1
    """The epoch (0-based) of that score."""


def update_early_stopping(
    state: EarlyStoppingState, score: float | None, *, epoch: int, min_delta: float
) -> None:
    """Note a validation; a missing or NaN score and one that only ties are no improvement.

    Args:
        state: Changed in place.
        score: Score of the validation; None if the split has no boxes.
        epoch: 0-based.
        min_delta: An improvement is more than this.
    """
    if score is None or math.isnan(score):
        return
    if state.score is None or score > state.score + min_delta:
        state.score, state.epoch = score, epoch


def describe_early_stopping(state: EarlyStoppingState) -> str:
    """Return text such as `no improvement since epoch 5`, in which epochs count from 1."""
    if state.score is None:
        return "no validation has given a score; does the validation split have boxes?"
    return f"no improvement since epoch {state.epoch + 1}"


def should_stop(
    state: EarlyStoppingState, options: EarlyStoppingOptions, *, epoch: int, last_stage_epoch: int
) -> bool:
    """Return whether the score has not improved for longer than the patience.

    Args:
        state: Up to and including `epoch`.
        options: The block `early_stopping`.
        epoch: The epoch (0-based) that was just validated.
        last_stage_epoch: First epoch of the last stage of augmentation, which usually improves the score:
            unless `before_final_stage` is set, patience counts from there.
    """
    if options.patience is None:
        return False
    since = state.epoch if options.before_final_stage else max(state.epoch, last_stage_epoch - 1)
    return epoch - since >= options.patience
