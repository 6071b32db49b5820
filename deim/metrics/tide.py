"""What kind each error is of, and how much AP50 each kind costs: the six kinds of TIDE.

A false detection has exactly one kind. The tests are made in this order, and the first that holds decides:

1. localization: it overlaps a box of its class by IoU 0.1 or more, none of its class by 0.5 or more;
2. classification: it overlaps a box of another class by 0.5 or more;
3. duplicate: it overlaps a box of its class by 0.5 or more, which a higher score has hit;
4. background: it overlaps no box by 0.1 or more;
5. both: what is left, IoU 0.1 to 0.5 with boxes of other classes only.

A ground-truth box is missed if it is neither hit nor explained by a localization or classification error on
it. Crowd regions explain nothing and are never missed.

Source:
    Bolya et al., ECCV 2020 (arXiv:2008.08115), sections 2.2 and 2.3; the order is that of the authors' code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import SplitResults
from deim.metrics.assignment import IOU_50, MIN_IOU, Assignment, Overlaps, rank_in_class
from deim.metrics.average_precision import average_precision, ranked
from deim.metrics.coco import MAX_DETECTIONS


class ErrorKind(IntEnum):
    """What became of a detection or, for `MISSED`, of a ground-truth box. The negative ones are no errors."""

    RIGHT = -2
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
    """The kind of every error. D counts detections, G ground-truth boxes."""

    kind: NDArray[np.int64]
    """(D,) `ErrorKind` of each detection, never `MISSED`."""
    truth: NDArray[np.int64]
    """(D,) position of the box that is hit, or that the error is about: the one that it overlaps most. -1 for
    `BACKGROUND` and `IGNORED`."""
    is_missed: NDArray[np.bool_]
    """(G,) neither hit nor explained by a localization or classification error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TideDeltaAp50:
    """AP50 and what it would gain if the errors of one kind alone were mended."""

    ap50: float | None
    """Mean AP50 of the classes with ground truth, in [0, 1]; None if there is none."""
    gains: Mapping[ErrorKind, float | None]
    """Gain in [0, 1] for each of `ERROR_KINDS`. None without ground truth, and for `MISSED` if every box of
    the split is missed, so that none would be left to find."""


def classify_errors(results: SplitResults, overlaps: Overlaps, assignment: Assignment) -> ErrorKinds:
    """Find the kind of each error.

    Args:
        results: The split with the detections that count: those of an operating point, or all.
        overlaps: Of `results`, from IoU 0.1 on at least.
        assignment: Of `results`; IoU 0.5 must be among its thresholds.

    Raises:
        ValueError: If the assignment was not made at IoU 0.5.
    """
    return _classify(results, overlaps, assignment, np.ones(len(results.found), dtype=np.bool_))


def count_errors(results: SplitResults, kinds: ErrorKinds) -> NDArray[np.int64]:
    """Count the errors of each kind and class.

    Args:
        results: The split.
        kinds: Of `results`.

    Returns:
        (6, C) errors by kind, in the order of `ERROR_KINDS`, and class: that of the detection, or of the
        ground-truth box for missed ones.
    """
    counts = np.zeros((len(ERROR_KINDS), results.num_classes), dtype=np.int64)
    is_error = kinds.kind >= 0
    np.add.at(counts, (kinds.kind[is_error], results.found.label[is_error]), 1)
    np.add.at(counts[ErrorKind.MISSED], results.truth.label[kinds.is_missed], 1)
    return counts


def tide_delta_ap50(results: SplitResults, overlaps: Overlaps, assignment: Assignment) -> TideDeltaAp50:
    """Measure what each kind of error costs: the gain of AP50 if errors of that kind alone were mended.

    Classification errors get the right class, localization errors the right box; of all that would then hit
    one box the highest score stays and the others are removed. Detections of the kinds both, duplicate and
    background are removed. Missed boxes leave the count of ground truth; a class without any other box leaves
    the mean. The gains do not add up to what AP50 lacks: two kinds mended together do more, or less, than
    each of them alone.

    Args:
        results: The split with all detections, whatever their score. The best 100 an image and class count.
        overlaps: Of `results`, from IoU 0.1 on at least.
        assignment: Of `results`; IoU 0.5 must be among its thresholds.

    Raises:
        ValueError: If the assignment was not made at IoU 0.5.
    """
    found, truth = results.found, results.truth
    counted = rank_in_class(found) < MAX_DETECTIONS
    kinds = _classify(results, overlaps, assignment, counted)
    order = ranked(results, counted)
    is_hit = kinds.kind == ErrorKind.RIGHT
    stays = counted & (kinds.kind != ErrorKind.IGNORED)
    num_truth = np.bincount(truth.label[~truth.is_crowd], minlength=results.num_classes)

    def mean_ap(
        label: NDArray[np.int64],
        is_hit: NDArray[np.bool_],
        stays: NDArray[np.bool_],
        num_truth: NDArray[np.int64],
    ) -> float | None:
        ranked = order[stays[order]]
        ranked_label, ranked_hit = label[ranked], is_hit[ranked]
        values = [
            average_precision(ranked_hit[ranked_label == one], int(num_truth[one]))
            for one in range(results.num_classes)
        ]
        valid = [value for value in values if value is not None]
        return float(np.mean(valid)) if valid else None

    base = mean_ap(found.label, is_hit, stays, num_truth)
    gains: dict[ErrorKind, float | None] = {}
    for kind in ERROR_KINDS:
        match kind:
            case ErrorKind.CLASSIFICATION | ErrorKind.LOCALIZATION:
                best = _best_on_each_box(kinds, kind, len(truth))
                label = found.label.copy()
                label[best] = truth.label[kinds.truth[best]]
                remains = stays & (kinds.kind != kind) & ~is_hit
                remains[best] = True
                hits = np.zeros_like(is_hit)
                hits[best] = True
                mended = mean_ap(label, hits, remains, num_truth)
            case ErrorKind.MISSED:
                missed = np.bincount(truth.label[kinds.is_missed], minlength=results.num_classes)
                mended = mean_ap(found.label, is_hit, stays, num_truth - missed)
            case _:
                mended = mean_ap(found.label, is_hit, stays & (kinds.kind != kind), num_truth)
        gains[kind] = None if mended is None or base is None else mended - base
    return TideDeltaAp50(ap50=base, gains=gains)


def _classify(
    results: SplitResults, overlaps: Overlaps, assignment: Assignment, counted: NDArray[np.bool_]
) -> ErrorKinds:
    """As `classify_errors`, with the detections that are not counted taken for ignored.

    Those that count must come before the others of their image and class: so they hit what they hit alone.
    """
    if IOU_50 not in assignment.iou_thresholds:
        raise ValueError(
            f"assignment: no hits at IoU {IOU_50}, got those at IoU {assignment.iou_thresholds}. The kinds of"
            f" errors are defined at IoU {IOU_50}. Put it among the thresholds of assign."
        )
    row = assignment.iou_thresholds.index(IOU_50)
    found, truth = results.found, results.truth
    usable = ~truth.is_crowd[overlaps.truth] & (overlaps.iou >= MIN_IOU)
    same_class = found.label[overlaps.found] == truth.label[overlaps.truth]
    own, own_iou = _most_overlapped(overlaps, usable & same_class, len(found))
    other, other_iou = _most_overlapped(overlaps, usable & ~same_class, len(found))

    is_hit = assignment.is_hit[row] & counted
    is_false = assignment.is_false[row] & counted
    tests = {
        ErrorKind.RIGHT: (is_hit, assignment.truth[row]),
        ErrorKind.IGNORED: (~is_false, None),
        ErrorKind.LOCALIZATION: ((own_iou >= MIN_IOU) & (own_iou < IOU_50), own),
        ErrorKind.CLASSIFICATION: (other_iou >= IOU_50, other),
        ErrorKind.DUPLICATE: (own_iou >= IOU_50, own),
        ErrorKind.BACKGROUND: (np.maximum(own_iou, other_iou) < MIN_IOU, None),
    }
    kind = np.full(len(found), ErrorKind.BOTH, dtype=np.int64)
    about = other.copy()
    is_open = np.ones(len(found), dtype=np.bool_)
    for one, (holds, boxes) in tests.items():
        decided = is_open & holds
        kind[decided] = one
        about[decided] = -1 if boxes is None else boxes[decided]
        is_open &= ~holds

    is_missed = ~truth.is_crowd
    explains = np.isin(kind, (ErrorKind.RIGHT, ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION))
    is_missed[about[explains]] = False
    return ErrorKinds(kind=kind, truth=about, is_missed=is_missed)


def _most_overlapped(
    overlaps: Overlaps, chosen: NDArray[np.bool_], num_found: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(D,) box that each detection overlaps most in the chosen pairs, and the IoU; -1 and 0 if none."""
    pairs = np.flatnonzero(chosen)
    # Written in the order of rising overlap, so that the largest is written last; of equals the last box.
    pairs = pairs[np.argsort(overlaps.iou[pairs], kind="stable")]
    truth = np.full(num_found, -1, dtype=np.int64)
    iou = np.zeros(num_found)
    truth[overlaps.found[pairs]] = overlaps.truth[pairs]
    iou[overlaps.found[pairs]] = overlaps.iou[pairs]
    return truth, iou


def _best_on_each_box(kinds: ErrorKinds, kind: ErrorKind, num_truth: int) -> NDArray[np.int64]:
    """The detection with the highest score on each box, of the hits and the errors of one kind."""
    candidates = np.flatnonzero((kinds.kind == ErrorKind.RIGHT) | (kinds.kind == kind))
    nobody = len(kinds.kind)
    best = np.full(num_truth, nobody, dtype=np.int64)
    # Detections of one image come by falling score.
    np.minimum.at(best, kinds.truth[candidates], candidates)
    return best[best < nobody]
