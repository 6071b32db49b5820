"""COCO's average precision from an assignment, for analyzes that change detections or ground truth."""

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import SplitResults
from deim.metrics.assignment import Assignment, rank_in_class
from deim.metrics.coco import MAX_DETECTIONS, NUM_RECALL_THRESHOLDS


def average_precision(is_hit: NDArray[np.bool_], num_truth: int) -> float | None:
    """COCO's average precision of one class: the mean of the best precision at recall 0.00, 0.01, …, 1.00.

    Args:
        is_hit: (D,) by falling score, whether each detection is right; ignored ones left out. D may be 0.
        num_truth: Ground-truth boxes of the class.

    Returns:
        In [0, 1]; None without ground truth.

    Source:
        The evaluation code of COCO (Lin et al., 2014).
    """
    if num_truth == 0:
        return None
    num_hits = np.cumsum(is_hit)
    precision = num_hits / np.arange(1, len(is_hit) + 1)
    # The best precision at this recall or any higher one; 0 where recall is not reached.
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    levels = np.linspace(0.0, 1.0, NUM_RECALL_THRESHOLDS)
    return float(best[np.searchsorted(num_hits / num_truth, levels, side="left")].mean())


def ranked(results: SplitResults, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions of chosen detections in the order in which COCO ranks them.

    By falling score, of equal scores by ascending id of the image; of an image and class the best 100 only.

    Args:
        results: The split.
        chosen: (D,) mask.
    """
    image_ids = np.array(results.image_ids, dtype=np.int64)
    order = np.lexsort((image_ids[results.found.image], -results.found.scores))
    counted = chosen & (rank_in_class(results.found) < MAX_DETECTIONS)
    return order[counted[order]]


def average_precisions(results: SplitResults, assignment: Assignment) -> NDArray[np.float64]:
    """Average precision of each class at each IoU threshold.

    Args:
        results: The split.
        assignment: Of its detections, at T thresholds.

    Returns:
        (T, C) in [0, 1]; NaN for classes without ground truth.
    """
    values = np.full((len(assignment.iou_thresholds), results.num_classes), np.nan)
    is_hit = assignment.is_hit
    truth = results.truth.label[~results.truth.is_crowd]
    num_truth = np.bincount(truth, minlength=results.num_classes)
    for label in np.flatnonzero(num_truth):
        own = ranked(results, results.found.label == label)
        for row in range(len(values)):
            counted = own[~assignment.is_ignored[row, own]]
            value = average_precision(is_hit[row, counted], int(num_truth[label]))
            values[row, label] = np.nan if value is None else value
    return values
