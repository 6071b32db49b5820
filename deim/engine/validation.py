"""What a validation tells the training loop, and which weights it makes the best."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from torch import nn

WeightKind = Literal["raw", "ema"]
"""`ema` for averaged weights, `raw` for those of the optimizer."""

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
    image: NDArray[Any] | None = None
    """(H, W, 3) uint8: some images with their predictions, for TensorBoard."""

    @property
    def score(self) -> float:
        """AP, by which best.pth is chosen; -1 where there is none."""
        return NO_SCORE if self.ap is None or math.isnan(self.ap) else self.ap

    def values(self) -> dict[str, Any]:
        """Return the entries of `metrics.jsonl`."""
        names = ("ap", "ap50", "worst_class", "worst_class_ap50", "class_ap50")
        return {**{name: getattr(self, name) for name in names}, "val": self.summary}


Validate = Callable[[nn.Module], Validation]


@dataclass(frozen=True, kw_only=True, slots=True)
class BestScore:
    """The validation behind best.pth."""

    score: float
    """COCO AP, or -1 where there was none."""
    epoch: int
    """0-based."""
    weights: WeightKind


def is_better(score: float, best: BestScore | None, *, start_score: float | None) -> bool:
    """Return whether a score makes a new best.pth.

    Of equal scores the later one wins: until a first success, no training is thrown away.

    Args:
        score: From `Validation.score`.
        best: The best so far; None before the first.
        start_score: Score before the first step, which must be exceeded; None if any score counts.
    """
    beats_start = start_score is None or score > start_score
    return beats_start and (best is None or score >= best.score)
