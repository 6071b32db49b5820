"""Which of the raw detections are kept: thresholds and non-maximum suppression (NMS).

`deim.metrics.choose_thresholds` chooses them. DETR-like detectors need no NMS in principle, but one query may
give two classes, or two queries one box.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from deim.boxes import xywh_to_xyxy
from deim.config.checks import Auto, below, check, not_fraction
from deim.inference.detection_table import DetectionTable
from deim.language import ENGLISH, Language

SEARCHED_IOU_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""What `auto` tries on the validation split."""


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
            return ENGLISH.text("best F1")
        case RecallGoal():
            return ENGLISH.text("recall at least {recall:g}", recall=goal.at_least)
        case FalseBoxesGoal():
            limit = goal.at_most_per_image
            return ENGLISH.text("at most {limit:g} false boxes of the class an image", limit=limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsOptions:
    """NMS among the detections above their thresholds; `auto` is chosen on the validation split."""

    mode: Literal["none", "class_aware", "agnostic"] | Auto = "auto"
    """Which better boxes remove a detection that they overlap: none, those of its class, or any."""
    iou_threshold: float | Auto = "auto"
    """IoU above which they remove it, in (0, 1); must be auto with mode none."""
    best_class_per_query: bool | Auto = "auto"
    """Keep only the best class of each query."""

    def __post_init__(self) -> None:
        iou = self.iou_threshold
        is_number = isinstance(iou, float)
        no_use = f"iou_threshold: got {iou}, of no use with mode none. Leave it auto."
        check(
            [
                (is_number and not 0 < float(iou) < 1, f"iou_threshold: got {iou}, needs (0, 1)"),
                (is_number and self.mode == "none", no_use),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsRule:
    """Which detections are removed because of better ones of the same image."""

    best_class_per_query: bool = False
    """Keep only the best detection of each query."""
    mode: Literal["none", "class_aware", "agnostic"] = "none"
    """What removes a detection: nothing, a better one of its class, or a better one of any class."""
    iou_threshold: float | None = None
    """A better one removes it if their IoU is above this; None with mode `none`."""

    def __post_init__(self) -> None:
        if (self.mode == "none") != (self.iou_threshold is None):
            raise ValueError(f"iou_threshold: got {self.iou_threshold} with mode {self.mode}.")

    def describe(self, language: Language = ENGLISH) -> str:
        """Return the rule as a phrase."""
        parts = [language.text("best class of each query")] if self.best_class_per_query else []
        iou = self.iou_threshold
        if self.mode == "class_aware":
            parts.append(
                language.text("no box that overlaps a better one of its class by IoU > {iou:g}", iou=iou)
            )
        elif self.mode == "agnostic":
            parts.append(language.text("no box that overlaps a better one by IoU > {iou:g}", iou=iou))
        return "; ".join(parts) or language.text("none")


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
    """Highest threshold, the same for all classes, that holds this limit with NMS, and so without; None if
    none does."""
    lowest_escape_rate: float | None
    """Escape rate with all detections that NMS leaves, whatever their score; None without defective
    images."""
    default_reason: str | None = None
    """Sentences that say why all thresholds are the default, and what to do; None if they were chosen."""

    def describe_origin(self, language: Language = ENGLISH) -> str:
        """Return where the thresholds come from, as a phrase."""
        if self.default_reason is not None:
            return language.text("default thresholds, none chosen on {split}", split=self.chosen_on)
        goal = language.sentence(self.goal)
        return language.text("{goal}, chosen on {split}", goal=goal, split=self.chosen_on)

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


def apply_nms(detections: DetectionTable, rule: NmsRule) -> NDArray[np.bool_]:
    """Decide (D,) which detections stay; the default rule removes none."""
    stays = np.ones(len(detections), dtype=np.bool_)
    if rule.best_class_per_query:
        stays &= _is_best_of_query(detections)
    if rule.iou_threshold is None:
        return stays
    group = np.zeros_like(detections.label) if rule.mode == "agnostic" else detections.label
    positions = np.flatnonzero(stays)
    # Image by image: on many groups at once, batched_nms takes time that grows with their square.
    for rows in np.split(positions, np.flatnonzero(np.diff(detections.image[positions])) + 1):
        kept = batched_nms(
            xywh_to_xyxy(torch.from_numpy(detections.boxes_xywh[rows])),
            torch.from_numpy(detections.score[rows]),
            torch.from_numpy(group[rows]),
            rule.iou_threshold,
        )
        stays[rows] = False
        stays[rows[kept.numpy()]] = True
    return stays


def candidate_rules(options: NmsOptions) -> list[NmsRule]:
    """List the rules that the options leave open, the mildest first; one rule if nothing is `auto`."""
    modes = ("none", "class_aware", "agnostic") if options.mode == "auto" else (options.mode,)
    best_class = (False, True) if options.best_class_per_query == "auto" else (options.best_class_per_query,)
    ious = SEARCHED_IOU_THRESHOLDS[::-1] if options.iou_threshold == "auto" else (options.iou_threshold,)
    rules = [
        NmsRule(best_class_per_query=best, mode=mode, iou_threshold=None if mode == "none" else iou_threshold)
        for best, mode, iou_threshold in product(best_class, modes, ious)
    ]
    return list(dict.fromkeys(rules))


def _is_best_of_query(detections: DetectionTable) -> NDArray[np.bool_]:
    # Sorted by falling score within an image: the first of a query is its best. Unknown queries stay.
    known = np.flatnonzero(detections.query >= 0)
    key = detections.image[known] * (int(detections.query.max(initial=0)) + 1) + detections.query[known]
    is_best = detections.query < 0
    is_best[known[np.unique(key, return_index=True)[1]]] = True
    return is_best
