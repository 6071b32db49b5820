"""From the detections of a split to its report."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.thresholds import OperatingPoints
from deim.metrics.analysis import SplitAnalysis
from deim.metrics.bootstrap import LEVEL, METHOD, ScoreSamples, interval
from deim.metrics.choose_thresholds import count_all
from deim.metrics.coco import CocoMetrics
from deim.metrics.convergence import Convergence
from deim.metrics.tide import ERROR_KINDS
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

DISTRIBUTIONS = {
    "deim": "deim-defects",
    "torch": "torch",
    "torchvision": "torchvision",
    "faster_coco_eval": "faster-coco-eval",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """Everything that a report is made from."""

    ground_truth: GroundTruthTable
    detections: DetectionTable
    """Raw detections."""
    metrics: CocoMetrics
    """COCO metrics of these detections."""
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


def build_report(inputs: ReportInputs, analysis: SplitAnalysis, *, files: dict[str, str]) -> Report:
    """Build the report.

    Args:
        inputs: Detections of a split.
        analysis: Analysis of the same detections.
        files: SHA-256 of the files beside the report, by name.
    """
    created = inputs.created or datetime.now(UTC)
    metrics, samples = inputs.metrics, analysis.samples
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
                counts=analysis.counts[label],
                precision_recall=analysis.precision_recall[label],
            )
            for label, entry in enumerate(metrics.classes)
        ),
        operating_points=analysis.points,
        counts=count_all(analysis.counts),
        image_level=ImageLevelReport(
            at_operating_points=analysis.image_level,
            at_escape_threshold=analysis.image_level_for_escapes,
            curve=analysis.escape_curve,
        ),
        confusion=analysis.confusion,
        errors={
            kind.name.lower(): ErrorReport(
                count=int(analysis.error_counts[kind].sum()),
                by_class=tuple(analysis.error_counts[kind].tolist()),
                ap50_delta=analysis.tide.deltas[kind],
            )
            for kind in ERROR_KINDS
        },
        duplicates=analysis.duplicates,
        convergence=inputs.convergence,
        task_section=inputs.task_section,
        files=files,
    )


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the packages that can change the numbers, and of Python.

    Returns:
        Versions by `deim`, `torch`, `torchvision`, `faster_coco_eval` and `python`; None for a package that
        runs from a checkout without being installed.
    """
    versions = {key: _version(distribution) for key, distribution in DISTRIBUTIONS.items()}
    return {**versions, "python": platform.python_version()}


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


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
