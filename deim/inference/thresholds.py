"""Operating points: which of the raw detections are kept. `deim.metrics.choose_thresholds` chooses them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deim.config.checks import below, check, not_fraction
from deim.inference.detection_table import DetectionTable
from deim.inference.nms import NmsRule, apply_nms


@dataclass(frozen=True, kw_only=True, slots=True)
class BestF1Goal:
    """Each class's threshold is the one with its highest F1."""

    type: Literal["best_f1"] = "best_f1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallGoal:
    """Each class's threshold is the highest that reaches a recall."""

    type: Literal["recall"]
    at_least: float
    """Recall of the class at IoU 0.5, in [0, 1]."""

    def __post_init__(self) -> None:
        check(not_fraction(at_least=self.at_least))


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseBoxesGoal:
    """Each class's threshold is the lowest that limits the false positives."""

    type: Literal["false_boxes"]
    at_most_per_image: float
    """Mean number of false positives of the class per image, at least 0."""

    def __post_init__(self) -> None:
        check(below(0, at_most_per_image=self.at_most_per_image))


Goal = BestF1Goal | RecallGoal | FalseBoxesGoal


def describe_goal(goal: Goal) -> str:
    """Return a goal as a phrase."""
    match goal:
        case BestF1Goal():
            return "best F1"
        case RecallGoal():
            return f"recall at least {goal.at_least:g}"
        case FalseBoxesGoal():
            return f"at most {goal.at_most_per_image:g} false boxes of the class an image"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassThreshold:
    """The score threshold of one class."""

    name: str
    threshold: float
    """Detections of the class with at least this score are kept."""
    origin: Literal["its own boxes", "all classes together", "default"]
    """What the threshold was chosen on; a class without boxes takes that of all classes together."""
    note: str | None
    """Why the goal was not reached, or why the class has no threshold of its own; None if neither holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoints:
    """Everything that decides which raw detections are kept."""

    goal: str
    """Goal of the thresholds, see `describe_goal`."""
    chosen_on: str
    """Name of the split that they were chosen on, such as `val`."""
    annotations_sha256: str
    """Hash of that split's annotation file."""
    num_images: int
    nms: NmsRule
    """Removal of duplicates among the detections above the thresholds."""
    classes: tuple[ClassThreshold, ...]
    """C thresholds, by class index."""
    normal_class: str | None
    max_escape_rate: float
    """Limit of the share of defective images without a hit, in [0, 1]."""
    escape_threshold: float | None
    """Highest threshold, the same for all classes and without NMS, that holds this limit; None if none
    does."""
    lowest_escape_rate: float | None
    """Escape rate with all detections, whatever their score; None without defective images."""

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(C,) thresholds by class index."""
        return np.array([entry.threshold for entry in self.classes], dtype=np.float64)

    def keep(self, detections: DetectionTable) -> NDArray[np.int64]:
        """Return the positions of the detections to keep.

        The thresholds come first, then NMS, so that a box that is not kept never removes another.
        """
        above = np.flatnonzero(detections.score >= self.thresholds[detections.label])
        return above[apply_nms(detections.take(above), self.nms)]
