"""What kind each error is of, and how much AP50 each kind costs: the six kinds of TIDE.

A false positive has exactly one kind. The tests are made in this order, and the first that holds decides:

1. localization: it overlaps a box of its class by IoU 0.1 or more, none of its class by 0.5 or more;
2. classification: it overlaps a box of another class by 0.5 or more;
3. duplicate: it overlaps a box of its class by 0.5 or more, and a higher score has hit that box;
4. background: it overlaps no box by 0.1 or more;
5. both: all others; they overlap boxes of other classes only, by IoU 0.1 to 0.5.

A ground-truth box is missed if nothing hits it and no localization or classification error is about it. Crowd
regions explain no error and are never missed.

Source:
    Bolya et al., ECCV 2020 (arXiv:2008.08115), sections 2.2 and 2.3; the order is that of the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from deim.metrics.assignment import IOU_50, MIN_IOU, Overlaps, rank_in_class
from deim.metrics.average_precision import average_precision


class ErrorKind(IntEnum):
    """Kind of a detection or, for `MISSED`, of a ground-truth box. The negative ones are no errors."""

    TP = -2
    IGNORED = -1
    CLASSIFICATION = 0
    LOCALIZATION = 1
    BOTH = 2
    DUPLICATE = 3
    BACKGROUND = 4
    MISSED = 5


ERROR_KINDS = tuple(kind for kind in ErrorKind if kind >= 0)
"""The six kinds of errors, in the order of the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorKinds:
    """The kind of every error of D detections and G ground-truth boxes."""

    kind: NDArray[np.int64]
    """(D,) `ErrorKind` of each detection, never `MISSED`."""
    truth: NDArray[np.int64]
    """(D,) position of the box that the detection hits, or that its error is about: the one that it overlaps
    most. -1 for `BACKGROUND` and `IGNORED`."""
    is_fn: NDArray[np.bool_]
    """(G,) true for boxes that are neither hit nor explained by a localization or classification error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TideDeltaAp50:
    """AP50, and its gain if the errors of one kind alone were corrected."""

    ap50: float | None
    """Mean AP50 of the classes with ground truth, in [0, 1]; None if there is none."""
    deltas: Mapping[ErrorKind, float | None]
    """Gain of AP50 in [0, 1] for each of `ERROR_KINDS`. None without ground truth, and for `MISSED` if every
    box of the split is missed, since none would be left to find."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Detections above their thresholds on a box that a better detection has hit, before and after NMS."""

    num_before: int
    """Duplicates among the detections above their thresholds."""
    rate_before: float | None
    """Their share of these detections; None if there are none."""
    num_after: int
    """Duplicates that NMS leaves."""
    rate_after: float | None
    """Their share of the detections that NMS leaves; None if there are none."""
    ap: float | None
    """mAP of the raw detections that NMS leaves, whatever their score; None without boxes."""
    ap50: float | None


def classify_errors(overlaps: Overlaps) -> ErrorKinds:
    """Find the kind of each error of some detections."""
    ground_truth, assignment = overlaps.ground_truth, overlaps.assignment
    usable = ~ground_truth.is_crowd[overlaps.truth]
    same, same_iou = _most_overlapped(overlaps, usable & overlaps.is_same_class)
    other, other_iou = _most_overlapped(overlaps, usable & ~overlaps.is_same_class)
    nothing = np.full_like(same, -1)
    # The first test that holds decides.
    tests = {
        ErrorKind.TP: (assignment.is_tp[0], assignment.truth[0]),
        ErrorKind.IGNORED: (assignment.is_ignored[0], nothing),
        ErrorKind.LOCALIZATION: ((same_iou >= MIN_IOU) & (same_iou < IOU_50), same),
        ErrorKind.CLASSIFICATION: (other_iou >= IOU_50, other),
        ErrorKind.DUPLICATE: (same_iou >= IOU_50, same),
        ErrorKind.BACKGROUND: (np.maximum(same_iou, other_iou) < MIN_IOU, nothing),
    }
    holds = [is_of_kind for is_of_kind, _ in tests.values()]
    kind = np.select(holds, [np.full_like(same, int(error)) for error in tests], int(ErrorKind.BOTH))
    about = np.select(holds, [boxes for _, boxes in tests.values()], other)
    is_fn = ~ground_truth.is_crowd
    explains = np.isin(kind, (ErrorKind.TP, ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION))
    is_fn[about[explains]] = False
    return ErrorKinds(kind=kind, truth=about, is_fn=is_fn)


def count_errors(overlaps: Overlaps, kinds: ErrorKinds) -> NDArray[np.int64]:
    """Count (6, C) the errors by `ERROR_KINDS` and class, that of the detection or of the missed box."""
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    counts = np.zeros((len(ERROR_KINDS), ground_truth.num_classes), dtype=np.int64)
    is_error = kinds.kind >= 0
    np.add.at(counts, (kinds.kind[is_error], detections.label[is_error]), 1)
    np.add.at(counts[ErrorKind.MISSED], ground_truth.label[kinds.is_fn], 1)
    return counts


def tide_delta_ap50(overlaps: Overlaps) -> TideDeltaAp50:
    """Measure the gain of AP50 if errors of each kind alone were corrected, over some detections.

    Classification errors get the correct class, localization errors the correct box; of all detections that
    would then hit one box the highest score stays and the others are removed. Detections of the kinds both,
    duplicate and background are removed. Missed boxes leave the count of ground truth; a class without any
    other box leaves the mean. The gains do not add up to 1 - AP50: two kinds corrected together gain more, or
    less, than each of them alone. The detections of each image and class that AP counts are counted here.
    """
    overlaps = overlaps.take(rank_in_class(overlaps.detections) < overlaps.max_detections)
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    kinds = classify_errors(overlaps)
    is_tp, stays = kinds.kind == ErrorKind.TP, kinds.kind != ErrorKind.IGNORED
    num_boxes = ground_truth.boxes_per_class

    def mean_ap(
        label: NDArray[np.int64],
        is_tp: NDArray[np.bool_],
        stays: NDArray[np.bool_],
        num_boxes: NDArray[np.int64],
    ) -> float | None:
        ranked = overlaps.ranking[stays[overlaps.ranking]]
        values = [
            average_precision(is_tp[ranked][label[ranked] == index], int(number))
            for index, number in enumerate(num_boxes)
        ]
        valid = [value for value in values if value is not None]
        return float(np.mean(valid)) if valid else None

    base = mean_ap(detections.label, is_tp, stays, num_boxes)
    deltas: dict[ErrorKind, float | None] = {}
    for kind in ERROR_KINDS:
        label, hits, remains, boxes = detections.label, is_tp, stays & (kinds.kind != kind), num_boxes
        if kind in (ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION):
            best = _best_on_each_box(kinds, kind)
            label, hits, remains = label.copy(), np.zeros_like(is_tp), remains & ~is_tp
            label[best] = ground_truth.label[kinds.truth[best]]
            hits[best] = remains[best] = True
        if kind == ErrorKind.MISSED:
            boxes = num_boxes - np.bincount(ground_truth.label[kinds.is_fn], minlength=len(num_boxes))
        corrected = mean_ap(label, hits, remains, boxes)
        deltas[kind] = None if corrected is None or base is None else corrected - base
    return TideDeltaAp50(ap50=base, deltas=deltas)


def count_duplicates(above: Overlaps, kept_kinds: ErrorKinds, ap_by_iou: NDArray[np.float64]) -> Duplicates:
    """Count duplicates before and after NMS.

    Args:
        above: Detections above their thresholds.
        kept_kinds: Kinds of those that NMS leaves of them.
        ap_by_iou: (10, C) AP of the raw detections that NMS leaves, by IoU threshold; NaN without boxes.
    """
    before, after = (kinds.kind == ErrorKind.DUPLICATE for kinds in (classify_errors(above), kept_kinds))
    ap_by_iou = ap_by_iou[:, ~np.isnan(ap_by_iou[0])]
    return Duplicates(
        num_before=int(before.sum()),
        rate_before=float(before.mean()) if len(before) else None,
        num_after=int(after.sum()),
        rate_after=float(after.mean()) if len(after) else None,
        ap=float(ap_by_iou.mean()) if ap_by_iou.size else None,
        ap50=float(ap_by_iou[0].mean()) if ap_by_iou.size else None,
    )


def _most_overlapped(
    overlaps: Overlaps, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(D,) box that each detection overlaps most in the chosen pairs, and the IoU; -1 and 0 if none."""
    num_detections = len(overlaps.detections)
    pairs = np.flatnonzero(chosen)
    # Written in the order of rising overlap, so that the largest is written last; of equals the last box.
    pairs = pairs[np.argsort(overlaps.iou[pairs], kind="stable")]
    truth = np.full(num_detections, -1, dtype=np.int64)
    iou = np.zeros(num_detections)
    truth[overlaps.detection[pairs]] = overlaps.truth[pairs]
    iou[overlaps.detection[pairs]] = overlaps.iou[pairs]
    return truth, iou


def _best_on_each_box(kinds: ErrorKinds, kind: ErrorKind) -> NDArray[np.int64]:
    """The detection with the highest score on each box, of the hits and the errors of one kind."""
    candidates = np.flatnonzero((kinds.kind == ErrorKind.TP) | (kinds.kind == kind))
    no_detection = len(kinds.kind)
    best = np.full(len(kinds.is_fn), no_detection, dtype=np.int64)
    # Detections of one image come by falling score.
    np.minimum.at(best, kinds.truth[candidates], candidates)
    return best[best < no_detection]
