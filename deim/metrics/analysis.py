"""Everything that a report says of a split beyond the COCO numbers, from its results and operating points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import SplitResults
from deim.inference.nms import apply_nms
from deim.metrics.assignment import (
    COCO_IOU_THRESHOLDS,
    Assignment,
    assign,
    compute_overlaps,
)
from deim.metrics.average_precision import average_precisions, ranked
from deim.metrics.bootstrap import ScoreSamples, resample_scores
from deim.metrics.choose_thresholds import Counts, OperatingPoints, count_all, count_classes
from deim.metrics.confusion import Confusion, compute_confusion
from deim.metrics.image_level import EscapeCurve, ImageLevel, count_images, trace_escapes
from deim.metrics.tide import (
    ErrorKind,
    ErrorKinds,
    TideDeltaAp50,
    classify_errors,
    count_errors,
    tide_delta_ap50,
)
from deim.report.worst_errors import GalleryEntry, choose_gallery

MAX_CURVE_POINTS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRecall:
    """Precision against recall of one class at IoU 0.5, as the threshold falls. K counts the points.

    Of the detections that the nms of duplicates leaves, so that the operating point lies on it, or
    near it where nms is across classes.
    """

    thresholds: tuple[float, ...]
    """K scores, falling."""
    precision: tuple[float, ...]
    """K shares of the detections that are right."""
    recall: tuple[float, ...]
    """K shares of the boxes that are found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Detections that count, and hit a box that a better one has hit already."""

    num_before: int
    """Duplicates among the detections above their thresholds."""
    rate_before: float | None
    """Their share of these detections; None if there are none."""
    num_after: int
    """Duplicates that the nms leaves."""
    rate_after: float | None
    """Their share of the detections that it leaves; None if there are none."""
    ap: float | None
    """mAP of the raw detections that the nms leaves, whatever their score; None without boxes."""
    ap50: float | None
    """The same at IoU 0.50."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitAnalysis:
    """What a split tells about a detector at its operating points. C counts classes."""

    points: OperatingPoints
    """The thresholds and the nms of duplicates that were applied."""
    counts: tuple[Counts, ...]
    """C counts of right, false and missed boxes, by class index."""
    total: Counts
    """The same of all classes together."""
    image_level: ImageLevel
    """Escapes and overkill at the operating points."""
    image_level_for_escapes: ImageLevel | None
    """The same at the threshold for the limit of escapes; None if there is no such threshold."""
    escape_curve: EscapeCurve
    """Escapes against overkill over all thresholds."""
    confusion: Confusion
    """What boxes were taken for, at the operating points."""
    error_counts: NDArray[np.int64]
    """(6, C) errors at the operating points, by `ERROR_KINDS` and class."""
    gains: TideDeltaAp50
    """What AP50 would gain without the errors of each kind, over all detections."""
    duplicates: Duplicates
    precision_recall: tuple[PrecisionRecall | None, ...]
    """C curves, by class index; None for a class without ground truth or detections."""
    samples: ScoreSamples | None
    """Scores of resampled images; None if none were asked for."""
    shipped: SplitResults
    """The split with the detections that count."""
    kinds: ErrorKinds
    """What became of each of them."""
    gallery: tuple[GalleryEntry, ...]
    """The worst errors of each class."""


def analyze_split(results: SplitResults, points: OperatingPoints, *, num_resamples: int) -> SplitAnalysis:
    """Analyze a split at given operating points.

    Args:
        results: The split with its raw detections.
        points: Of the detector; chosen on this split or on another.
        num_resamples: Resamples behind intervals; 0 for none.
    """
    raw_overlaps = compute_overlaps(results)
    raw_assignment = assign(results, raw_overlaps, iou_thresholds=COCO_IOU_THRESHOLDS)
    shipped = results.with_found(points.keep(results.found))
    overlaps = compute_overlaps(shipped)
    assignment = assign(shipped, overlaps)
    kinds = classify_errors(shipped, overlaps, assignment)
    free_of_duplicates = results.with_found(apply_nms(results.found, points.nms))
    free_overlaps = compute_overlaps(free_of_duplicates)
    free_assignment = assign(free_of_duplicates, free_overlaps, iou_thresholds=COCO_IOU_THRESHOLDS)
    return SplitAnalysis(
        points=points,
        counts=count_classes(shipped, assignment),
        total=count_all(shipped, assignment),
        image_level=count_images(shipped, overlaps),
        image_level_for_escapes=_images_for_escapes(results, points),
        escape_curve=trace_escapes(results, raw_overlaps),
        confusion=compute_confusion(shipped, overlaps, assignment),
        error_counts=count_errors(shipped, kinds),
        gains=tide_delta_ap50(results, raw_overlaps, raw_assignment),
        duplicates=_count_duplicates(
            results, points, kinds, average_precisions(free_of_duplicates, free_assignment)
        ),
        precision_recall=tuple(
            _precision_recall(free_of_duplicates, free_assignment, label)
            for label in range(results.num_classes)
        ),
        samples=resample_scores(results, raw_assignment, num_resamples=num_resamples)
        if num_resamples
        else None,
        shipped=shipped,
        kinds=kinds,
        gallery=tuple(
            choose_gallery(
                shipped, results, kinds=kinds, raw_overlaps=raw_overlaps, score_thresholds=points.thresholds
            )
        ),
    )


def _images_for_escapes(results: SplitResults, points: OperatingPoints) -> ImageLevel | None:
    if points.escape_threshold is None:
        return None
    kept = results.with_found(results.found.scores >= points.escape_threshold)
    return count_images(kept, compute_overlaps(kept))


def _count_duplicates(
    results: SplitResults, points: OperatingPoints, kinds: ErrorKinds, scores: NDArray[np.float64]
) -> Duplicates:
    """Duplicates before and after nms; `scores` (10, C) is AP after it, by IoU threshold."""
    above = results.with_found(results.found.scores >= points.thresholds[results.found.label])
    overlaps = compute_overlaps(above)
    before = classify_errors(above, overlaps, assign(above, overlaps)).kind == ErrorKind.DUPLICATE
    after = kinds.kind == ErrorKind.DUPLICATE
    scores = scores[:, ~np.isnan(scores[0])]
    return Duplicates(
        num_before=int(before.sum()),
        rate_before=float(before.mean()) if len(before) else None,
        num_after=int(after.sum()),
        rate_after=float(after.mean()) if len(after) else None,
        ap=float(scores.mean()) if scores.size else None,
        ap50=float(scores[0].mean()) if scores.size else None,
    )


def _precision_recall(results: SplitResults, assignment: Assignment, label: int) -> PrecisionRecall | None:
    num_truth = int(((results.truth.label == label) & ~results.truth.is_crowd).sum())
    order = ranked(results, (results.found.label == label) & ~assignment.is_ignored[0])
    if not num_truth or not len(order):
        return None
    is_right = assignment.is_hit[0, order]
    num_right = np.cumsum(is_right)
    ranks = np.arange(1, len(order) + 1)
    # Precision turns only at right detections: each of them and the one before draw the whole curve.
    turns = np.flatnonzero(is_right)
    turns = np.unique(np.concatenate([[0], turns[turns > 0] - 1, turns, [len(order) - 1]]))
    chosen = turns[np.unique(np.linspace(0, len(turns) - 1, MAX_CURVE_POINTS).round().astype(np.int64))]
    return PrecisionRecall(
        thresholds=tuple(results.found.scores[order][chosen].tolist()),
        precision=tuple((num_right / ranks)[chosen].tolist()),
        recall=tuple((num_right / num_truth)[chosen].tolist()),
    )
