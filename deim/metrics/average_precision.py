"""COCO's average precision from an assignment, for analyses that change detections or ground truth."""

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.assignment import Assignment, rank_in_class
from deim.metrics.coco import MAX_DETECTIONS, NUM_RECALL_THRESHOLDS


def average_precision(is_tp: NDArray[np.bool_], num_boxes: int) -> float | None:
    """Compute COCO's average precision of one class.

    It is the mean of the best precision at the recalls 0.00, 0.01, …, 1.00.

    Args:
        is_tp: (D,) by falling score, whether each detection is a true positive; without ignored ones.
        num_boxes: Number of ground-truth boxes of the class.

    Returns:
        A number in [0, 1]; None without ground truth.

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


def rank_by_score(ground_truth: GroundTruthTable, detections: DetectionTable) -> NDArray[np.int64]:
    """Return the positions of detections in the order in which COCO ranks them.

    The order is that of falling score, and of ascending image id for equal scores. Only the best 100
    detections of each image and class are ranked.
    """
    image_ids = np.array(ground_truth.image_ids, dtype=np.int64)
    order = np.lexsort((image_ids[detections.image], -detections.score))
    return order[rank_in_class(detections)[order] < MAX_DETECTIONS]


def average_precisions(
    ground_truth: GroundTruthTable, detections: DetectionTable, *, assignment: Assignment
) -> NDArray[np.float64]:
    """Compute the average precision of each class at each IoU threshold.

    Args:
        ground_truth: The split.
        detections: Detections of the split.
        assignment: Assignment of these detections at T thresholds.

    Returns:
        (T, C) in [0, 1]; NaN for classes without ground truth.
    """
    values = np.full((len(assignment.iou_thresholds), ground_truth.num_classes), np.nan)
    is_tp = assignment.is_tp
    ranking = rank_by_score(ground_truth, detections)
    num_boxes = ground_truth.boxes_per_class
    for label in np.flatnonzero(num_boxes):
        of_label = ranking[detections.label[ranking] == label]
        for row in range(len(values)):
            counted = of_label[~assignment.is_ignored[row, of_label]]
            value = average_precision(is_tp[row, counted], int(num_boxes[label]))
            values[row, label] = np.nan if value is None else value
    return values
