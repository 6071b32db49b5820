"""The confusion matrix of a detector: true class against found class, with the background as one more."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import SplitResults
from deim.metrics.assignment import IOU_50, Assignment, Overlaps

BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """What boxes were taken for. The last row and the last column are the background."""

    labels: tuple[str, ...]
    """C + 1 names: the classes, then `background`."""
    counts: tuple[tuple[int, ...], ...]
    """(C + 1, C + 1) boxes by true class (row) and found class (column): ground truth that is not found is in
    the last column, detections where there is nothing in the last row."""
    row_percent: tuple[tuple[float | None, ...], ...]
    """The same as percentages of each row's sum; None in rows without boxes."""
    most_confused: str | None
    """The pair of classes taken for one another most often, in words; None if there is none."""


def compute_confusion(results: SplitResults, overlaps: Overlaps, assignment: Assignment) -> Confusion:
    """Count what each ground-truth box was taken for.

    First the hits of COCO's assignment, so that the diagonal is the number of right boxes of the class.
    Then the rest, of any class: pairs that overlap by IoU 0.5 or more, the largest overlap first, each box
    once. So each row sums to the ground-truth boxes of its class, crowd regions not counted.

    Args:
        results: A split with the detections that count.
        overlaps: Of these, of IoU 0.5 and more at least.
        assignment: Of these, at IoU 0.5.
    """
    size = results.num_classes + 1
    nothing = results.num_classes
    hits = np.flatnonzero(assignment.is_hit[0])
    is_free_truth = ~results.truth.is_crowd
    is_free_truth[assignment.truth[0, hits]] = False
    is_free_found = assignment.is_false[0].copy()
    pairs = [(results.found.label[hits], results.found.label[hits])]
    for found, truth in _overlapping(overlaps):
        if is_free_found[found] and is_free_truth[truth]:
            is_free_found[found] = is_free_truth[truth] = False
            pairs.append((results.truth.label[[truth]], results.found.label[[found]]))
    missed, false = results.truth.label[is_free_truth], results.found.label[is_free_found]
    pairs += [(missed, np.full_like(missed, nothing)), (np.full_like(false, nothing), false)]
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, tuple(np.concatenate(side) for side in zip(*pairs, strict=True)), 1)
    labels = (*results.class_names, BACKGROUND)
    sums = counts.sum(axis=1)
    return Confusion(
        labels=labels,
        counts=tuple(tuple(int(number) for number in row) for row in counts),
        row_percent=tuple(
            tuple(100 * int(number) / int(whole) if whole else None for number in row)
            for row, whole in zip(counts, sums, strict=True)
        ),
        most_confused=_most_confused(counts[:nothing, :nothing], sums, labels),
    )


def _overlapping(overlaps: Overlaps) -> list[tuple[int, int]]:
    """Pairs of a detection and a ground-truth box, the largest overlap first, from IoU 0.5."""
    order = np.argsort(-overlaps.iou, kind="stable")
    order = order[overlaps.iou[order] >= IOU_50]
    return list(zip(overlaps.found[order].tolist(), overlaps.truth[order].tolist(), strict=True))


def _most_confused(counts: NDArray[np.int64], sums: NDArray[np.int64], labels: tuple[str, ...]) -> str | None:
    # Both ways together: the two classes are hard to tell apart, whichever is the true one.
    wrong = counts - np.diag(np.diag(counts))
    both = np.triu(wrong + wrong.T)
    if not both.any():
        return None
    a, b = (int(index) for index in np.unravel_index(np.argmax(both), both.shape))
    if wrong[b, a] > wrong[a, b]:
        a, b = b, a
    text = f"{wrong[a, b]} of {sums[a]} {labels[a]} were taken for {labels[b]} ({wrong[a, b] / sums[a]:.0%})"
    if wrong[b, a]:
        text += f", and {wrong[b, a]} of {sums[b]} {labels[b]} for {labels[a]} ({wrong[b, a] / sums[b]:.0%})"
    return text
