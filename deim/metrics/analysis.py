"""Everything that a report says about a split beyond the COCO metrics, from its detections and thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.nms import apply_nms
from deim.inference.thresholds import OperatingPoints
from deim.metrics.assignment import (
    COCO_IOU_THRESHOLDS,
    IOU_50,
    Assignment,
    Overlaps,
    assign,
    compute_overlaps,
)
from deim.metrics.average_precision import average_precisions, rank_by_score
from deim.metrics.bootstrap import ScoreSamples, resample_scores
from deim.metrics.choose_thresholds import Counts, count_classes
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

MAX_CURVE_POINTS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionRecall:
    """Precision against recall of one class at IoU 0.5 as the threshold falls, at K points.

    The detections are those that NMS leaves, so that the operating point lies on the curve, or near it where
    NMS works across classes.
    """

    thresholds: tuple[float, ...]
    """K scores, falling."""
    precision: tuple[float, ...]
    recall: tuple[float, ...]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitAnalysis:
    """What the detections of a split show about a detector at its operating points, with C classes."""

    points: OperatingPoints
    counts: tuple[Counts, ...]
    """C counts of true and false positives and false negatives, by class index."""
    image_level: ImageLevel
    image_level_for_escapes: ImageLevel | None
    """The same at the threshold for the limit of escapes; None if there is no such threshold."""
    escape_curve: EscapeCurve
    confusion: Confusion
    error_counts: NDArray[np.int64]
    """(6, C) errors at the operating points, by `ERROR_KINDS` and class."""
    tide: TideDeltaAp50
    """Gain of AP50 without the errors of each kind, over all detections."""
    duplicates: Duplicates
    precision_recall: tuple[PrecisionRecall | None, ...]
    """C curves, by class index; None for a class without ground truth or detections."""
    samples: ScoreSamples | None
    """AP of resampled images; None without resamples."""
    kept: DetectionTable
    """Detections that the operating points keep."""
    kinds: ErrorKinds
    raw_overlaps: Overlaps
    """Overlaps of the raw detections from IoU 0.1 on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subset:
    """Some of the raw detections, with their overlaps."""

    ground_truth: GroundTruthTable
    detections: DetectionTable
    overlaps: Overlaps

    def take(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "_Subset":
        overlaps = self.overlaps.take(kept, num_detections=len(self.detections))
        return replace(self, detections=self.detections.take(kept), overlaps=overlaps)

    def assign(self, iou_thresholds: Sequence[float] = (IOU_50,)) -> Assignment:
        return assign(
            self.ground_truth, self.detections, overlaps=self.overlaps, iou_thresholds=iou_thresholds
        )

    def count_images(self) -> ImageLevel:
        return count_images(self.ground_truth, self.detections, overlaps=self.overlaps)

    def classify_errors(self, assignment: Assignment | None = None) -> ErrorKinds:
        return classify_errors(
            self.ground_truth,
            self.detections,
            overlaps=self.overlaps,
            assignment=assignment or self.assign(),
        )


def analyze_split(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    points: OperatingPoints,
    num_resamples: int,
) -> SplitAnalysis:
    """Analyze a split at given operating points.

    Args:
        ground_truth: The split.
        detections: Its raw detections.
        points: Operating points of the detector, chosen on this split or on another.
        num_resamples: Resamples behind the intervals; 0 for none.
    """
    raw = _Subset(
        ground_truth=ground_truth,
        detections=detections,
        overlaps=compute_overlaps(ground_truth, detections),
    )
    raw_assignment = raw.assign(COCO_IOU_THRESHOLDS)
    kept = raw.take(points.keep(detections))
    assignment = kept.assign()
    kinds = kept.classify_errors(assignment)
    stays = apply_nms(detections, points.nms)
    after_nms = raw.take(stays)
    nms_assignment = raw_assignment if stays.all() else after_nms.assign(COCO_IOU_THRESHOLDS)
    escape_level = None
    if points.escape_threshold is not None:
        escape_level = raw.take(detections.score >= points.escape_threshold).count_images()
    samples = None
    if num_resamples:
        samples = resample_scores(
            ground_truth, detections, assignment=raw_assignment, num_resamples=num_resamples
        )
    return SplitAnalysis(
        points=points,
        counts=count_classes(ground_truth, kept.detections, assignment),
        image_level=kept.count_images(),
        image_level_for_escapes=escape_level,
        escape_curve=trace_escapes(ground_truth, detections, overlaps=raw.overlaps),
        confusion=compute_confusion(
            ground_truth, kept.detections, overlaps=kept.overlaps, assignment=assignment
        ),
        error_counts=count_errors(ground_truth, kept.detections, kinds=kinds),
        tide=tide_delta_ap50(ground_truth, detections, overlaps=raw.overlaps, assignment=raw_assignment),
        duplicates=_count_duplicates(
            raw.take(detections.score >= points.thresholds[detections.label]),
            kinds,
            average_precisions(ground_truth, after_nms.detections, assignment=nms_assignment),
        ),
        precision_recall=_precision_recall(ground_truth, after_nms.detections, nms_assignment),
        samples=samples,
        kept=kept.detections,
        kinds=kinds,
        raw_overlaps=raw.overlaps,
    )


def _count_duplicates(above: _Subset, kinds: ErrorKinds, ap_by_iou: NDArray[np.float64]) -> Duplicates:
    """Count duplicates before and after NMS; `ap_by_iou` (10, C) is AP after it, by IoU threshold."""
    before, after = (result.kind == ErrorKind.DUPLICATE for result in (above.classify_errors(), kinds))
    ap_by_iou = ap_by_iou[:, ~np.isnan(ap_by_iou[0])]
    return Duplicates(
        num_before=int(before.sum()),
        rate_before=float(before.mean()) if len(before) else None,
        num_after=int(after.sum()),
        rate_after=float(after.mean()) if len(after) else None,
        ap=float(ap_by_iou.mean()) if ap_by_iou.size else None,
        ap50=float(ap_by_iou[0].mean()) if ap_by_iou.size else None,
    )


def _precision_recall(
    ground_truth: GroundTruthTable, detections: DetectionTable, assignment: Assignment
) -> tuple[PrecisionRecall | None, ...]:
    ranking = rank_by_score(ground_truth, detections)
    ranking = ranking[~assignment.is_ignored[0, ranking]]
    num_boxes = ground_truth.boxes_per_class
    curves: list[PrecisionRecall | None] = []
    for label in range(ground_truth.num_classes):
        order = ranking[detections.label[ranking] == label]
        if not num_boxes[label] or not len(order):
            curves.append(None)
            continue
        is_tp = assignment.is_tp[0, order]
        tp = np.cumsum(is_tp)
        ranks = np.arange(1, len(order) + 1)
        # Precision turns only at true positives: each of them and the one before draw the whole curve.
        turns = np.flatnonzero(is_tp)
        turns = np.unique(np.concatenate([[0], turns[turns > 0] - 1, turns, [len(order) - 1]]))
        chosen = turns[np.unique(np.linspace(0, len(turns) - 1, MAX_CURVE_POINTS).round().astype(np.int64))]
        curves.append(
            PrecisionRecall(
                thresholds=tuple(detections.score[order][chosen].tolist()),
                precision=tuple((tp / ranks)[chosen].tolist()),
                recall=tuple((tp / num_boxes[label])[chosen].tolist()),
            )
        )
    return tuple(curves)
