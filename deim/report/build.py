"""From the detections of a split to its report."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.operating_points import OperatingPoints, apply_nms
from deim.metrics.assignment import Overlaps, compute_overlaps
from deim.metrics.average_precision import average_precisions, precision_recall_curves
from deim.metrics.bootstrap import LEVEL, METHOD, ScoreSamples, interval, resample_scores
from deim.metrics.choose_thresholds import count_all, count_classes
from deim.metrics.coco import CocoMetrics, compute_coco_metrics
from deim.metrics.confusion import compute_confusion
from deim.metrics.convergence import Convergence
from deim.metrics.image_level import count_images, trace_escapes
from deim.metrics.tide import (
    ERROR_KINDS,
    ErrorKinds,
    classify_errors,
    count_duplicates,
    count_errors,
    tide_delta_ap50,
)
from deim.report.schema import (
    SCHEMA_VERSION,
    ClassReport,
    ErrorReport,
    ImageLevelReport,
    Intervals,
    Provenance,
    Report,
    TaskSection,
)

DISTRIBUTIONS = ("deim-defects", "torch", "torchvision", "faster-coco-eval")
"""Packages that can change the numbers."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything that a report is made from."""

    ground_truth: GroundTruthTable
    detections: DetectionTable
    """Raw detections."""
    points: OperatingPoints
    provenance: Provenance
    num_resamples: int
    """Resamples behind intervals; 0 for none."""
    convergence: Convergence | None = None
    task_section: TaskSection | None = None
    image_folder: Path | None = None
    """Folder that holds the images of the task section; None if they are in the folder of the report."""
    created: datetime | None = None
    """Time of the evaluation, with a time zone; None for now."""

    @cached_property
    def metrics(self) -> CocoMetrics:
        """COCO metrics of the raw detections."""
        limit = self.provenance.counted_detections
        return compute_coco_metrics(self.ground_truth, self.detections, max_detections=limit)

    @cached_property
    def raw(self) -> Overlaps:
        """The raw detections beside the ground truth."""
        limit = self.provenance.counted_detections
        return compute_overlaps(self.ground_truth, self.detections, max_detections=limit)

    @cached_property
    def kept(self) -> Overlaps:
        """The detections that the operating points keep."""
        return self.raw.take(self.points.keep(self.detections))

    @cached_property
    def after_nms(self) -> Overlaps:
        """The raw detections that NMS leaves, whatever their score: what curves over thresholds follow."""
        return self.raw.take(apply_nms(self.detections, self.points.nms))

    @cached_property
    def kinds(self) -> ErrorKinds:
        """Kinds of errors of the kept detections."""
        return classify_errors(self.kept)


def build_report(inputs: ReportInputs, *, files: dict[str, str]) -> Report:
    """Build the report; `files` are the SHA-256 of the files beside it, by name."""
    created = inputs.created or datetime.now(UTC)
    metrics, points, detections = inputs.metrics, inputs.points, inputs.detections
    raw, after_nms = inputs.raw, inputs.after_nms
    samples = samples_after_nms = None
    if inputs.num_resamples:
        samples = samples_after_nms = resample_scores(raw, num_resamples=inputs.num_resamples)
        if after_nms is not raw:
            samples_after_nms = resample_scores(after_nms, num_resamples=inputs.num_resamples)
    above = raw.take(detections.score >= points.thresholds[detections.label])
    with_few_escapes = None
    if points.escape_threshold is not None:
        with_few_escapes = count_images(after_nms.take(after_nms.detections.score >= points.escape_threshold))
    counts = count_classes(inputs.kept)
    curves, ap_after_nms = precision_recall_curves(after_nms), average_precisions(after_nms)
    return Report(
        schema_version=SCHEMA_VERSION,
        created=created.astimezone(UTC).isoformat(timespec="seconds"),
        provenance=inputs.provenance,
        num_images=metrics.num_images,
        num_images_without_boxes=metrics.num_images_without_boxes,
        num_boxes=metrics.num_boxes,
        summary=metrics.summary,
        intervals=None if samples is None else _intervals(samples),
        classes=tuple(
            ClassReport(
                metrics=entry,
                ap_interval=None if samples is None else interval(samples.ap[label]),
                ap50_interval=None if samples is None else interval(samples.ap50[label]),
                counts=counts[label],
                precision_recall=curves[label],
                ap50_after_nms=float(ap_after_nms[0, label]) if entry.num_boxes else None,
                ap50_after_nms_interval=(
                    None if samples_after_nms is None else interval(samples_after_nms.ap50[label])
                ),
            )
            for label, entry in enumerate(metrics.classes)
        ),
        operating_points=points,
        counts=count_all(counts),
        image_level=ImageLevelReport(
            at_operating_points=count_images(inputs.kept),
            at_escape_threshold=with_few_escapes,
            curve=trace_escapes(after_nms),
        ),
        confusion=compute_confusion(inputs.kept),
        errors=_error_reports(inputs),
        duplicates=count_duplicates(above, inputs.kinds, ap_after_nms),
        convergence=inputs.convergence,
        task_section=inputs.task_section,
        files=files,
    )


def installed_versions() -> dict[str, str | None]:
    """Return the versions of `deim`, `torch`, `torchvision`, `faster_coco_eval` and `python`.

    None stands for a package that runs from a checkout without being installed.
    """
    versions: dict[str, str | None] = {}
    for distribution in DISTRIBUTIONS:
        key = distribution.removesuffix("-defects").replace("-", "_")
        try:
            versions[key] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[key] = None
    return {**versions, "python": platform.python_version()}


def _error_reports(inputs: ReportInputs) -> dict[str, ErrorReport]:
    counts = count_errors(inputs.kept, inputs.kinds)
    of_raw, of_kept = tide_delta_ap50(inputs.raw), tide_delta_ap50(inputs.kept)
    return {
        kind.name.lower(): ErrorReport(
            count=int(counts[kind].sum()),
            by_class=tuple(counts[kind].tolist()),
            ap50_delta=of_raw.deltas[kind],
            kept_ap50_delta=of_kept.deltas[kind],
        )
        for kind in ERROR_KINDS
    }


def _intervals(samples: ScoreSamples) -> Intervals:
    return Intervals(
        level=LEVEL,
        method=METHOD,
        num_images=len(samples.image_ids),
        num_resamples=len(samples.mean_ap.resampled),
        seed=samples.seed,
        ap=interval(samples.mean_ap),
        ap50=interval(samples.mean_ap50),
    )
