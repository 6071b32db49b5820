"""The confusion matrix of a detector: true class against predicted class, with the background as one more."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.language import ENGLISH, Language
from deim.metrics.assignment import IOU_50, Overlaps

BACKGROUND = "background"


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """What each box was predicted as. The last row and the last column are the background."""

    labels: tuple[str, ...]
    """C + 1 names: the classes, then `background`."""
    counts: tuple[tuple[int, ...], ...]
    """(C + 1, C + 1) boxes by true class (row) and predicted class (column); missed boxes are in the last
    column, detections where there is no box in the last row."""
    row_percent: tuple[tuple[float | None, ...], ...]
    """The same as percentages of each row's sum; None in rows without boxes."""
    most_confused: str | None
    """The two classes confused most often, as a sentence; None if none are confused."""

    def describe(self, language: Language = ENGLISH) -> str:
        """Return a sentence about the two classes confused most often."""
        if self.most_confused is None:
            return language.text("No box was predicted as another class.")
        return language.text("Most confused: {pair}.", pair=language.sentence(self.most_confused))


def compute_confusion(overlaps: Overlaps) -> Confusion:
    """Count what each ground-truth box was predicted as by kept detections.

    The hits of COCO's assignment come first, so that the diagonal holds the true positives of each class.
    The others follow, whatever their class: pairs that overlap by IoU 0.5 or more, the largest overlap first,
    each box once. So each row sums to the ground-truth boxes of its class, crowd regions not counted.
    """
    ground_truth, detections, assignment = overlaps.ground_truth, overlaps.detections, overlaps.assignment
    size = ground_truth.num_classes + 1
    background = ground_truth.num_classes
    hits = np.flatnonzero(assignment.is_tp[0])
    is_free_truth = ~ground_truth.is_crowd & ~overlaps.is_hit
    is_free_detection = assignment.is_fp[0].copy()
    pairs = [(detections.label[hits], detections.label[hits])]
    largest_first = np.argsort(-overlaps.iou, kind="stable")
    for pair in largest_first[overlaps.iou[largest_first] >= IOU_50].tolist():
        detection, truth = overlaps.detection[pair], overlaps.truth[pair]
        if is_free_detection[detection] and is_free_truth[truth]:
            is_free_detection[detection] = is_free_truth[truth] = False
            pairs.append((ground_truth.label[[truth]], detections.label[[detection]]))
    fn, fp = ground_truth.label[is_free_truth], detections.label[is_free_detection]
    pairs += [(fn, np.full_like(fn, background)), (np.full_like(fp, background), fp)]
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, tuple(np.concatenate(side) for side in zip(*pairs, strict=True)), 1)
    labels = (*ground_truth.class_names, BACKGROUND)
    sums = counts.sum(axis=1)
    return Confusion(
        labels=labels,
        counts=tuple(map(tuple, counts.tolist())),
        row_percent=tuple(
            tuple(100 * number / whole if whole else None for number in row)
            for row, whole in zip(counts.tolist(), sums.tolist(), strict=True)
        ),
        most_confused=_most_confused(counts[:background, :background], sums, labels),
    )


def _most_confused(counts: NDArray[np.int64], sums: NDArray[np.int64], labels: tuple[str, ...]) -> str | None:
    # Both directions together: the two classes are hard to tell apart, whichever is the true one.
    wrong = counts - np.diag(np.diag(counts))
    both = np.triu(wrong + wrong.T)
    if not both.any():
        return None
    a, b = (int(index) for index in np.unravel_index(np.argmax(both), both.shape))
    if wrong[b, a] > wrong[a, b]:
        a, b = b, a
    values = {
        "number": wrong[a, b],
        "boxes": sums[a],
        "name": labels[a],
        "other_name": labels[b],
        "percent": wrong[a, b] / sums[a],
    }
    if not wrong[b, a]:
        return ENGLISH.text(
            "{number:d} of {boxes:d} {name} were predicted as {other_name} ({percent:.0%})", **values
        )
    return ENGLISH.text(
        "{number:d} of {boxes:d} {name} were predicted as {other_name} ({percent:.0%}), and {back:d} of "
        "{other_boxes:d} {other_name} as {name} ({back_percent:.0%})",
        **values,
        back=wrong[b, a],
        other_boxes=sums[b],
        back_percent=wrong[b, a] / sums[b],
    )
