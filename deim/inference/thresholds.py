"""TODO."""

from dataclasses import dataclass
from typing import Literal

from deim.config.checks import below, check, not_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class BestF1Goal:
    """Each class's threshold is the one with its highest F1."""

    type: Literal["best_f1"] = "best_f1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallGoal:
    """Each class's threshold is the highest that finds enough of its boxes."""

    type: Literal["recall"]
    at_least: float
    """Share of the class's boxes to be found at IoU 0.5, in [0, 1]."""

    def __post_init__(self) -> None:
        check(not_fraction(at_least=self.at_least))


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseBoxesGoal:
    """Each class's threshold is the lowest with few enough false boxes."""

    type: Literal["false_boxes"]
    at_most_per_image: float
    """False boxes of the class an image on average, at least 0."""

    def __post_init__(self) -> None:
        check(below(0, at_most_per_image=self.at_most_per_image))


Goal = BestF1Goal | RecallGoal | FalseBoxesGoal
