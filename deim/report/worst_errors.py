"""The worst errors of each class: which ones, and what happened, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import FoundBoxes, SplitResults
from deim.metrics.assignment import IOU_50, Overlaps, iou_with
from deim.metrics.tide import ErrorKind, ErrorKinds

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryEntry:
    """One error worth looking at."""

    kind: Literal["miss", "false alarm"]
    """What went wrong."""
    label: int
    """Class index of the missed box or of the false detection."""
    image: int
    """Position of the image in the split."""
    position: int
    """Of the box: in the ground truth for a miss, in the detections that count for a false alarm."""
    box_xywh: tuple[float, float, float, float]
    """The box in pixels of the image."""
    score: float | None
    """Of a false alarm. Of a miss the highest score of its class on the box; None if there is none."""
    right_label: int | None
    """Class index of the ground-truth box that the error is about; None where there is none."""
    caption: str
    """What happened, in words."""
    class_scores: tuple[float, ...]
    """C numbers: the highest raw score of each class on the box, by IoU 0.5 or more; 0 without any."""


def choose_gallery(
    shipped: SplitResults,
    raw: SplitResults,
    *,
    kinds: ErrorKinds,
    raw_overlaps: Overlaps,
    score_thresholds: Sequence[float] | NDArray[np.float64],
    per_class: int = 4,
) -> list[GalleryEntry]:
    """Choose the worst misses and the strongest false alarms of each class.

    A miss is a ground-truth box that is not hit by the detections that count. Those come first on which even
    the raw detections of the class score lowest, or there are none; of equals the largest box.

    Args:
        shipped: The split with the detections that count at the operating point.
        raw: The same split with all detections.
        kinds: Of `shipped`.
        raw_overlaps: Of `raw`, from IoU 0.5 on at least.
        score_thresholds: (C,) the operating point of each class.
        per_class: The most misses of a class, and the most false alarms.

    Returns:
        Entries by class, the misses of each before its false alarms, the worst first.
    """
    truth, found = shipped.truth, shipped.found
    best_score = _best_scores_on_truth(raw, raw_overlaps)
    is_miss = ~truth.is_crowd
    is_miss[kinds.truth[kinds.kind == ErrorKind.RIGHT]] = False
    # By rising best score, then falling area, then the order of the split.
    worst_first = np.lexsort((-truth.boxes_xywh[:, 2:].prod(axis=1), best_score))
    worst_first = worst_first[is_miss[worst_first]]
    strongest_first = np.argsort(-found.scores, kind="stable")
    strongest_first = strongest_first[kinds.kind[strongest_first] >= 0]

    entries = []
    for label in range(shipped.num_classes):
        for box in worst_first[truth.label[worst_first] == label][:per_class].tolist():
            score = float(best_score[box]) if best_score[box] >= 0 else None
            entries.append(
                GalleryEntry(
                    kind="miss",
                    label=label,
                    image=int(truth.image[box]),
                    position=box,
                    box_xywh=_box(truth.boxes_xywh, box),
                    score=score,
                    right_label=label,
                    caption=_miss_caption(shipped, kinds, box, score, float(score_thresholds[label])),
                    class_scores=_class_scores(raw, int(truth.image[box]), truth.boxes_xywh[box]),
                )
            )
        for one in strongest_first[found.label[strongest_first] == label][:per_class].tolist():
            about = int(kinds.truth[one])
            entries.append(
                GalleryEntry(
                    kind="false alarm",
                    label=label,
                    image=int(found.image[one]),
                    position=one,
                    box_xywh=_box(found.boxes_xywh, one),
                    score=float(found.scores[one]),
                    right_label=int(truth.label[about]) if about >= 0 else None,
                    caption=_false_alarm_caption(shipped, kinds, one),
                    class_scores=_class_scores(raw, int(found.image[one]), found.boxes_xywh[one]),
                )
            )
    return entries


def _best_scores_on_truth(raw: SplitResults, overlaps: Overlaps) -> NDArray[np.float64]:
    """(G,) highest raw score of its class on each ground-truth box, by IoU 0.5 or more; -1 without any."""
    found, truth = overlaps.found, overlaps.truth
    fits = (raw.found.label[found] == raw.truth.label[truth]) & (overlaps.iou >= IOU_50)
    best = np.full(len(raw.truth), -1.0)
    np.maximum.at(best, truth[fits], raw.found.scores[found[fits]])
    return best


def _of_image(found: FoundBoxes, image: int) -> slice:
    return slice(*np.searchsorted(found.image, (image, image + 1)).tolist())


def _class_scores(raw: SplitResults, image: int, box_xywh: NDArray[np.float64]) -> tuple[float, ...]:
    rows = _of_image(raw.found, image)
    fits = iou_with(raw.found.boxes_xywh[rows], box_xywh) >= IOU_50
    scores = np.zeros(raw.num_classes)
    np.maximum.at(scores, raw.found.label[rows][fits], raw.found.scores[rows][fits])
    return tuple(scores.tolist())


def _box(boxes_xywh: NDArray[np.float64], position: int) -> Rectangle:
    x, y, width, height = boxes_xywh[position].tolist()
    return x, y, width, height


def _miss_caption(
    shipped: SplitResults, kinds: ErrorKinds, box: int, best_score: float | None, threshold: float
) -> str:
    truth, found = shipped.truth, shipped.found
    text = f"{shipped.class_names[truth.label[box]]} missed: "
    if best_score is None:
        text += "no detection of it at any score"
    elif best_score < threshold:
        # More digits where two would make them look alike.
        digits = 2 if f"{best_score:.2f}" != f"{threshold:.2f}" else 4
        text += f"best score {best_score:.{digits}f}, threshold {threshold:.{digits}f}"
    else:
        rows = _of_image(found, int(truth.image[box]))
        fits = iou_with(found.boxes_xywh[rows], truth.boxes_xywh[box]) >= IOU_50
        counts = (fits & (found.label[rows] == truth.label[box])).any()
        text += f"best score {best_score:.2f} "
        text += "counts for another box" if counts else "was suppressed as a duplicate"
    explains = np.isin(kinds.kind, (ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION))
    strongest = np.flatnonzero(explains & (kinds.truth == box))[:1].tolist()
    for one in strongest:
        if kinds.kind[one] == ErrorKind.CLASSIFICATION:
            text += f"; taken for {shipped.class_names[found.label[one]]} at {found.scores[one]:.2f}"
        else:
            overlap = _iou_text(shipped, one, box)
            text += f"; the box at {found.scores[one]:.2f} overlaps it too little ({overlap})"
    return text


def _false_alarm_caption(shipped: SplitResults, kinds: ErrorKinds, one: int) -> str:
    name = shipped.class_names[shipped.found.label[one]]
    text = f"{name} at {shipped.found.scores[one]:.2f} "
    about = int(kinds.truth[one])
    other = shipped.class_names[shipped.truth.label[about]] if about >= 0 else ""
    article = "an" if other[:1].lower() in tuple("aeiou") else "a"
    match ErrorKind(int(kinds.kind[one])):
        case ErrorKind.CLASSIFICATION:
            return f"{text}where {article} {other} is"
        case ErrorKind.LOCALIZATION:
            return (
                f"{text}overlaps the box of {article} {other} too little ({_iou_text(shipped, one, about)})"
            )
        case ErrorKind.BOTH:
            return f"{text}beside {article} {other} ({_iou_text(shipped, one, about)})"
        case ErrorKind.DUPLICATE:
            return f"{text}where a higher score has found the {other} already"
        case _:
            return f"{text}where there is none"


def _iou_text(shipped: SplitResults, one: int, box: int) -> str:
    iou = iou_with(shipped.found.boxes_xywh[one], shipped.truth.boxes_xywh[box])
    return f"IoU {np.floor(100 * iou[0]) / 100:.2f}"  # 0.498 is no 0.50
