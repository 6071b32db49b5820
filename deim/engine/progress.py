"""How far a run has come; stored in last.pth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deim.engine.early_stopping import EarlyStoppingState

WeightKind = Literal["raw", "ema"]
"""`ema` for averaged weights, `raw` for those of the optimizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestScore:
    """The validation behind best.pth."""

    score: float
    """COCO AP, or -1 where there was none."""
    epoch: int
    """0-based."""
    weights: WeightKind


@dataclass(kw_only=True, slots=True)
class EpochSums:
    """Sums over the steps of an epoch so far."""

    values: dict[str, float] = field(default_factory=dict)
    """Sums of the loss terms, the loss and the norm of the gradient over good steps."""
    num_good: int = 0
    num_skipped: int = 0
    num_images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    """Part of `seconds` in which the loop waited for data."""

    def add_losses(self, values: Mapping[str, float]) -> None:
        """Add the loss terms, the loss and the norm of the gradient of a good step."""
        self.num_good += 1
        for name, value in values.items():
            self.values[name] = self.values.get(name, 0.0) + value

    def means(self) -> dict[str, Any]:
        """Return the means of the epoch as they stand in `metrics.jsonl`; the loss is NaN without a step."""
        terms = {name: value / self.num_good for name, value in self.values.items()}
        return {
            "images_per_s": self.num_images / max(self.seconds, 1e-9),
            "waiting_share": self.waiting_seconds / max(self.seconds, 1e-9),
            "skipped_steps": self.num_skipped,
            "loss": terms.pop("loss", math.nan),
            "grad_norm": terms.pop("grad_norm", math.nan),
            "terms": terms,
        }


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """The epoch (0-based) in training, or the next one."""
    steps_of_epoch: int = 0
    """Steps of that epoch so far."""
    step: int = 0
    """Steps of the run so far, skipped ones included."""
    sums: EpochSums = field(default_factory=EpochSums)
    best: BestScore | None = None
    """The validation behind best.pth; None before the first."""
    start_score: float | None = None
    """Score before the first step; None if it is not needed or not known yet."""
    early_stopping: EarlyStoppingState = field(default_factory=EarlyStoppingState)
    stopped_early: bool = False
    skipped_in_a_row: int = 0
    skipped_images: list[str] = field(default_factory=list)
    """Images of the skipped steps since the last good one."""
    restores: int = 0
    """How often the last good state was restored after skipped steps."""
    lr_scale: float = 1.0
    """Factor of the learning rate, halved at each such restore."""
    micro_batch_size: int | None = None
    """Images in memory at once; None for all of a step."""
    halved: bool = False
    """Whether memory ran out once, and the micro-batch was halved since."""

    def __post_init__(self) -> None:
        counts = (self.epoch, self.steps_of_epoch, self.step, self.restores)
        if min(counts) < 0:
            raise ValueError(f"epoch, steps_of_epoch, step, restores: got {counts}, needs at least 0.")

    @property
    def is_good_start(self) -> bool:
        """Whether an epoch begins here after a good step: a state worth restoring."""
        return not self.steps_of_epoch and not self.skipped_in_a_row
