"""The report of one evaluation, as a tree of JSON types: the one source of its page, table and charts.

`REPORT_KEYS` says what stands where; the data classes that the blocks come from describe their fields.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deim.errors import DataError
from deim.metrics.analysis import SplitAnalysis
from deim.metrics.bootstrap import LEVEL, METHOD, SampledScore, interval
from deim.metrics.coco import CocoMetrics
from deim.metrics.convergence import Convergence, Curve, describe_convergence
from deim.metrics.tide import ERROR_KINDS
from deim.report.provenance import Provenance

SCHEMA_VERSION = 3
"""Raised whenever a key of the report changes its name or its meaning."""

REPORT_KEYS = {
    "schema_version": "this version of the report's keys",
    "created": "time of the evaluation, ISO 8601 in UTC",
    "split": "name of the split, such as `test`",
    "dataset": "`DatasetInfo`, and the numbers of images and boxes of `CocoMetrics`",
    "checkpoint": "`CheckpointInfo`: the weights that were scored",
    "model": "`ModelInfo`",
    "image_size_hw": "height and width of the network input, in pixels",
    "resize": "how images were brought to that size",
    "tiles": "`TilesOptions`: tiles that were brought to that size instead of images; null for none",
    "time_per_image_ms": "`TimePerImage`, in milliseconds",
    "device": "the device in words",
    "versions": "version of each package",
    "max_detections": "raw detections kept an image",
    "summary": "`CocoSummary`: the 12 COCO numbers, over all raw detections",
    "intervals": "level, method, images, resamples; [low, high] or null of `ap` and `ap50` of the summary",
    "classes": "for each class `ClassMetrics`, intervals of AP and AP50, `ClassThreshold` and `Counts`",
    "operating_points": "`OperatingPoints` but for the classes, and `Counts` of all classes together",
    "image_level": "`ImageLevel` at the operating points and at the threshold for escapes, and `EscapeCurve`",
    "confusion": "`Confusion` at the operating points, IoU 0.5",
    "errors": "for each kind of error of TIDE: count at the operating points, by class, and gain of AP50",
    "duplicates": "`Duplicates` among the detections that count",
    "precision_recall": "for each class `PrecisionRecall` at IoU 0.5, or null",
    "convergence": "`Convergence` of the run and its curve; null if the run's log is not there",
    "fusion": "of phase 2, see `multimodal/report.py`: text, the detector alone beside it; null in phase 1",
    "text_evidence": "what tools/ablate_text.py found out about the run's text; null if it was not called",
    "files": "SHA-256 of the ground truth and the predictions beside the report",
}
"""What each key of a report holds. A null always has a note beside it, or no ground truth to be about."""


def build_report(
    metrics: CocoMetrics,
    analysis: SplitAnalysis,
    provenance: Provenance,
    *,
    created: datetime,
    convergence: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    text_evidence: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the numbers and all that is needed to get them again into one tree.

    Args:
        metrics: What `compute_coco_metrics` gave.
        analysis: Of the same predictions.
        provenance: What they came from.
        created: Time of the evaluation, with a time zone.
        convergence: Of the run, from `convergence_entry`; None if its log is not there.
        fusion: How text fusion differs from its detector alone; None for a detector.
        text_evidence: Verdict on the run's text, of JSON types; None if there is none.

    Returns:
        The report, of JSON types only; see `REPORT_KEYS`.

    Raises:
        ValueError: If `created` has no time zone.
    """
    if created.tzinfo is None:
        raise ValueError(f"build_report: created has no time zone, got {created}. Use datetime.now(UTC).")
    made_from = provenance.to_dict()
    points = analysis.points.to_dict()
    del points["classes"]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created.astimezone(UTC).isoformat(timespec="seconds"),
        "split": made_from["split"],
        "dataset": made_from["dataset"]
        | {
            "num_images": metrics.num_images,
            "num_images_without_boxes": metrics.num_images_without_boxes,
            "num_boxes": metrics.num_boxes,
        },
        **{
            key: made_from[key]
            for key in (
                "checkpoint",
                "model",
                "image_size_hw",
                "resize",
                "tiles",
                "time_per_image_ms",
                "device",
                "versions",
                "max_detections",
            )
        },
        "summary": asdict(metrics.summary),
        "intervals": _summary_intervals(metrics, analysis),
        "classes": [_class_entry(metrics, analysis, label) for label in range(len(metrics.classes))],
        "operating_points": points | {"all_classes": asdict(analysis.total)},
        "image_level": {
            "at_operating_points": asdict(analysis.image_level),
            "at_escape_threshold": None
            if analysis.image_level_for_escapes is None
            else asdict(analysis.image_level_for_escapes),
            "curve": to_json_types(asdict(analysis.escape_curve)),
        },
        "confusion": to_json_types(asdict(analysis.confusion)),
        "errors": {
            kind.name.lower(): {
                "count": int(analysis.error_counts[kind].sum()),
                "by_class": analysis.error_counts[kind].tolist(),
                "ap50_gain": analysis.gains.gains[kind],
            }
            for kind in ERROR_KINDS
        },
        "duplicates": asdict(analysis.duplicates),
        "precision_recall": [
            None if curve is None else to_json_types(asdict(curve)) for curve in analysis.precision_recall
        ],
        "convergence": None if convergence is None else dict(convergence),
        "fusion": None if fusion is None else dict(fusion),
        "text_evidence": None if text_evidence is None else dict(text_evidence),
        "files": {},
    }


def _class_entry(metrics: CocoMetrics, analysis: SplitAnalysis, label: int) -> dict[str, Any]:
    point, counts = analysis.points.classes[label], analysis.counts[label]
    numbers = asdict(metrics.classes[label])
    samples = analysis.samples
    return numbers | {
        "ap_interval": None if samples is None else _ends(samples.ap[label]),
        "ap50_interval": None if samples is None else _ends(samples.ap50[label]),
        "threshold": point.threshold,
        "threshold_origin": point.origin,
        "threshold_note": point.note,
        **{name: value for name, value in asdict(counts).items() if name != "num_truth"},
    }


def _summary_intervals(metrics: CocoMetrics, analysis: SplitAnalysis) -> dict[str, Any] | None:
    samples = analysis.samples
    if samples is None:
        return None
    return {
        "level": LEVEL,
        "method": METHOD,
        "num_images": metrics.num_images,
        "num_resamples": len(samples.mean_ap.resampled),
        "seed": samples.seed,
        "ap": _ends(samples.mean_ap),
        "ap50": _ends(samples.mean_ap50),
    }


def _ends(score: SampledScore) -> list[float] | None:
    found = interval(score)
    return None if found is None else [found.low, found.high]


def convergence_entry(convergence: Convergence, curve: Curve) -> dict[str, Any]:
    """What a report says of the run behind it.

    Args:
        convergence: Of the run.
        curve: What it was read from.
    """
    columns = {"epochs": curve.epochs, "ap": curve.ap, "ap50": curve.ap50, "hours": curve.hours}
    return {
        **to_json_types(asdict(convergence)),
        "in_words": describe_convergence(convergence),
        "curve": {name: [_finite(value) for value in column.tolist()] for name, column in columns.items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def to_json_types(value: Any) -> Any:
    """Tuples as lists, so that a report is the same before and after it is written.

    Args:
        value: Dicts, lists and tuples of plain values, such as `dataclasses.asdict` gives.
    """
    if isinstance(value, dict):
        return {key: to_json_types(item) for key, item in value.items()}
    return [to_json_types(item) for item in value] if isinstance(value, tuple | list) else value


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON.

    Args:
        report: What `build_report` gave.
        path: The file to write; its folder is made if it does not exist.

    Raises:
        ValueError: If the report holds NaN or infinity; nothing is written then.
        OSError: If the file cannot be written.
    """
    write_whole(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_whole(text: str, path: Path) -> None:
    """Write a text file; a reader sees the old file or the whole new one, never a part.

    Args:
        text: Its content.
        path: The file to write; its folder is made if it does not exist.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of this version.

    Raises:
        DataError: If it cannot be read, or is of another version.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable report ({error}). Name the report.json of a run, or one that "
            f"tools/evaluate.py has written."
        ) from None
    version = report.get("schema_version") if isinstance(report, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: has report version {version}, this version reads {SCHEMA_VERSION}. Evaluate the "
            f"checkpoint again with tools/evaluate.py."
        )
    absent = [key for key in REPORT_KEYS if key not in report]
    if absent:
        raise DataError(
            f"{path}: not a whole report, it lacks {', '.join(absent)}. Evaluate the checkpoint again with "
            f"tools/evaluate.py."
        )
    return dict(report)
