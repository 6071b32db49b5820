"""The comparison of runs as a tree of records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.assignment import Assignment
from deim.metrics.bootstrap import Difference
from deim.report.schema import DatasetInfo, Report

COMPARISON_VERSION = 2
"""Raised whenever a key of the comparison changes its name or its meaning."""

Verdict = Literal["better", "worse", "not distinguishable", "cannot be compared"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run of a comparison, in memory."""

    name: str
    """Short, and different from those of the other runs."""
    path: Path
    report: Report
    ground_truth: GroundTruthTable
    raw: DetectionTable
    kept: DetectionTable
    """Those that the run's operating points keep."""
    assignment: Assignment
    """Assignment of the kept detections at IoU 0.5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreDifference:
    """Difference of a score of a run from that of the first run."""

    value: float | None
    """Score of the run minus that of the first run, in [-1, 1]; None if it cannot be computed."""
    low: float | None
    """Lower end of the interval of the difference; None without a value."""
    high: float | None
    num_boxes: int | None
    """Ground-truth boxes behind the score; None without a value."""
    verdict: Verdict
    """Whether the interval lies above 0, below it, or holds it."""

    @classmethod
    def from_difference(cls, difference: Difference | None) -> "ScoreDifference":
        """Judge a difference of the bootstrap."""
        if difference is None:
            return cls(value=None, low=None, high=None, num_boxes=None, verdict="cannot be compared")
        verdict: Verdict = "not distinguishable"
        if difference.is_distinguishable:
            verdict = "better" if difference.value > 0 else "worse"
        return cls(
            value=difference.value,
            low=difference.interval.low,
            high=difference.interval.high,
            num_boxes=difference.num_boxes,
            verdict=verdict,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDifference:
    """Difference of a run from the first one."""

    name: str
    ap: ScoreDifference
    ap50: ScoreDifference
    class_ap: tuple[ScoreDifference, ...]
    class_ap50: tuple[ScoreDifference, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Main numbers of one run; all others stand in its report."""

    name: str
    report: str
    checkpoint_sha256: str
    model: str
    ap: float | None
    ap50: float | None
    class_ap50: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs side by side, and the difference of each from the first."""

    schema_version: int
    split: str
    """Split that all runs were evaluated on."""
    dataset: DatasetInfo
    num_images: int
    num_boxes: int
    level: float
    """Share of intervals that hold the truth."""
    num_resamples: int
    class_names: tuple[str, ...]
    runs: tuple[RunSummary, ...]
    differences: tuple[RunDifference, ...]
    """One for each run but the first."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of a newer version."""
