"""NmsRule of duplicates: further detections of what a better one has shown already.

DETR-like detectors need none in principle; in practice one query gives two classes, or two queries one box.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms

from deim.boxes import xywh_to_xyxy
from deim.config.checks import Auto, check
from deim.inference.detection_table import FoundBoxes


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsOptions:
    """NmsRule of duplicates among the detections that count; `auto` is settled on validation."""

    mode: Literal["none", "class_aware", "agnostic"] | Auto = "auto"
    """Which better boxes rule a detection out by overlapping it: none, those of its class, any."""
    iou_threshold: float | Auto = "auto"
    """IoU above which they do so, in (0, 1); auto with mode none."""
    best_class_per_query: bool | Auto = "auto"
    """Keep only the best class of each query."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.iou_threshold, float)
        check(
            [
                (
                    is_number and not 0 < float(self.iou_threshold) < 1,
                    f"iou_threshold: got {self.iou_threshold}, needs (0, 1)",
                ),
                (
                    is_number and self.mode == "none",
                    f"iou_threshold: got {self.iou_threshold}, of no use with mode none. Leave it auto.",
                ),
            ]
        )


SEARCHED_IOU_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""What `auto` tries on the validation split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NmsRule:
    """Which detections an image's better ones rule out."""

    best_class_per_query: bool = False
    """Of the detections of one query, keep the best only."""
    mode: Literal["none", "class_aware", "agnostic"] = "none"
    """What may rule a detection out: nothing, better ones of its class, better ones of any class."""
    iou_threshold: float | None = None
    """A better one does so if it overlaps it by more than this IoU; None with mode `none`."""

    def describe(self) -> str:
        """The rule in words."""
        parts = ["best class of each query"] if self.best_class_per_query else []
        if self.mode != "none":
            which = "of its class " if self.mode == "class_aware" else ""
            parts.append(f"no box that overlaps a better one {which}by IoU > {self.iou_threshold:g}")
        return "; ".join(parts) or "none"


def apply_nms(found: FoundBoxes, rule: NmsRule) -> NDArray[np.bool_]:
    """Decide which detections stay.

    Args:
        found: Detections of any images.
        rule: What rules a detection out.

    Returns:
        (D,) true for those that stay: all of them if the rule is the default one.
    """
    stays = np.ones(len(found), dtype=np.bool_)
    if rule.best_class_per_query:
        stays &= _is_best_of_query(found)
    if rule.iou_threshold is None:
        return stays
    group = found.image if rule.mode == "agnostic" else _image_and_label(found)
    for positions in _groups(group, np.flatnonzero(stays)):
        boxes_xyxy = xywh_to_xyxy(torch.from_numpy(found.boxes_xywh[positions]))
        kept = nms(boxes_xyxy, torch.from_numpy(found.scores[positions]), rule.iou_threshold).numpy()
        stays[positions] = False
        stays[positions[kept]] = True
    return stays


def candidate_rules(config: NmsOptions) -> list[NmsRule]:
    """The rules that a config leaves open, the gentlest first; one rule if it leaves nothing open.

    Args:
        config: Options that are `auto` are searched.
    """
    modes = ("none", "class_aware", "agnostic") if config.mode == "auto" else (config.mode,)
    best_class = (False, True) if config.best_class_per_query == "auto" else (config.best_class_per_query,)
    ious = SEARCHED_IOU_THRESHOLDS[::-1] if config.iou_threshold == "auto" else (config.iou_threshold,)
    rules = [
        NmsRule(best_class_per_query=best, mode=mode, iou_threshold=None if mode == "none" else iou_threshold)
        for best, mode, iou_threshold in product(best_class, modes, ious)
    ]
    return list(dict.fromkeys(rules))


def _is_best_of_query(found: FoundBoxes) -> NDArray[np.bool_]:
    # Sorted by falling score within an image: the first of a query is its best. Unknown queries stand alone.
    known = np.flatnonzero(found.query >= 0)
    pairs = np.stack([found.image[known], found.query[known]], axis=1)
    first = np.unique(pairs, axis=0, return_index=True)[1]
    is_best = found.query < 0
    is_best[known[first]] = True
    return is_best


def _image_and_label(found: FoundBoxes) -> NDArray[np.int64]:
    return found.image * (int(found.label.max(initial=0)) + 1) + found.label


def _groups(group: NDArray[np.int64], chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The chosen positions of each group that has more than one of them."""
    order = chosen[np.argsort(group[chosen], kind="stable")]
    borders = np.flatnonzero(np.diff(group[order])) + 1
    yield from (positions for positions in np.split(order, borders) if len(positions) > 1)
