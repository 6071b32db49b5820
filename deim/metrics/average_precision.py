"""COCO's average precision and its curves from an assignment, for detections that an analysis changes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.metrics.assignment import Overlaps
from deim.metrics.coco import NUM_RECALL_THRESHOLDS

CURVE_STEP = 1 / 400
"""Precision and recall of a curve are right to this step, about a pixel of a chart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRecall:
    """Precision and recall of one class at IoU 0.5 as the threshold falls, at the K points where they change.

    The detections are those that NMS leaves, so that the operating point lies on the curve, or near it where
    NMS works across classes.
    """

    thresholds: tuple[float, ...]
    """K scores, falling."""
    precision: tuple[float, ...]
    recall: tuple[float, ...]


def average_precision(is_tp: NDArray[np.bool_], num_boxes: int) -> float | None:
    """Compute COCO's average precision of a class: the mean of the best precision at recall 0.00, 0.01, …, 1.

    Args:
        is_tp: (D,) by falling score, whether each detection is a true positive; without ignored ones.
        num_boxes: Number of ground-truth boxes of the class; none give None.

    Source:
        The evaluation code of COCO (Lin et al., 2014).
    """
    if num_boxes == 0:
        return None
    tp = np.cumsum(is_tp)
    precision = tp / np.arange(1, len(is_tp) + 1)
    # The best precision at this recall or any higher one; 0 where recall is not reached.
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    levels = np.linspace(0.0, 1.0, NUM_RECALL_THRESHOLDS)
    return float(best[np.searchsorted(tp / num_boxes, levels, side="left")].mean())


def average_precisions(overlaps: Overlaps) -> NDArray[np.float64]:
    """Compute AP (10, C) of each class at the IoU thresholds of COCO; NaN without ground truth."""
    ranking, num_boxes = overlaps.ranking, overlaps.ground_truth.boxes_per_class
    is_tp, is_ignored = overlaps.coco_assignment.is_tp, overlaps.coco_assignment.is_ignored
    values = np.full((len(is_tp), len(num_boxes)), np.nan)
    for label in np.flatnonzero(num_boxes):
        of_label = ranking[overlaps.detections.label[ranking] == label]
        for row in range(len(values)):
            counted = of_label[~is_ignored[row, of_label]]
            values[row, label] = average_precision(is_tp[row, counted], int(num_boxes[label]))
    return values


def precision_recall_curves(overlaps: Overlaps) -> tuple[PrecisionRecall | None, ...]:
    """Follow precision and recall of each class; None for a class without ground truth or detections."""
    detections, num_boxes = overlaps.detections, overlaps.ground_truth.boxes_per_class
    is_tp, is_ignored = overlaps.coco_assignment.is_tp[0], overlaps.coco_assignment.is_ignored[0]
    ranking = overlaps.ranking[~is_ignored[overlaps.ranking]]
    curves: list[PrecisionRecall | None] = []
    for label in range(len(num_boxes)):
        order = ranking[detections.label[ranking] == label]
        if not num_boxes[label] or not len(order):
            curves.append(None)
            continue
        tp = np.cumsum(is_tp[order])
        precision, recall = tp / np.arange(1, len(tp) + 1), tp / num_boxes[label]
        # A point is kept where a rate enters another step of the chart, and so is the one before.
        steps = np.floor(np.stack([precision, recall]) / CURVE_STEP)
        is_new = np.append(True, (np.diff(steps) != 0).any(axis=0))
        chosen = np.flatnonzero(is_new | np.append(is_new[1:], True))
        curves.append(
            PrecisionRecall(
                thresholds=tuple(detections.score[order][chosen].tolist()),
                precision=tuple(precision[chosen].tolist()),
                recall=tuple(recall[chosen].tolist()),
            )
        )
    return tuple(curves)
