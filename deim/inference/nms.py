"""Non-maximum suppression: removal of detections that repeat a better one.

DETR-like detectors need none in principle, but one query may give two classes, or two queries one box.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from deim.boxes import xywh_to_xyxy
from deim.config.checks import Auto, check
from deim.inference.detection_table import DetectionTable


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


SEARCHED_IOU_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""What `auto` tries on the validation split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsRule:
    """Which detections are removed because of better ones of the same image."""

    best_class_per_query: bool = False
    """Keep only the best detection of each query."""
    mode: Literal["none", "class_aware", "agnostic"] = "none"
    """What removes a detection: nothing, a better one of its class, or a better one of any class."""
    iou_threshold: float | None = None
    """A better one removes it if their IoU is above this; None with mode `none`."""

    def describe(self) -> str:
        """Return the rule as a phrase."""
        parts = ["best class of each query"] if self.best_class_per_query else []
        if self.mode != "none":
            which = "of its class " if self.mode == "class_aware" else ""
            parts.append(f"no box that overlaps a better one {which}by IoU > {self.iou_threshold:g}")
        return "; ".join(parts) or "none"


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
