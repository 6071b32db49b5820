"""The report of an evaluation as a tree of records: the one source of its page, tables and charts."""

import json
import re
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from deim.config.loader import OptionValue
from deim.data.formats.split import BoxCounts
from deim.data.images.tiling import TilesOptions
from deim.errors import DataError
from deim.files import CHANGED, SEAL_KEY, UNSEALED, is_unchanged, looked_in, seal, write_bytes
from deim.inference.operating_points import OperatingPoints
from deim.metrics.average_precision import PrecisionRecall
from deim.metrics.bootstrap import Interval
from deim.metrics.choose_thresholds import Counts
from deim.metrics.coco import ClassMetrics, CocoSummary
from deim.metrics.confusion import BACKGROUND, Confusion
from deim.metrics.convergence import Convergence
from deim.metrics.image_level import EscapeCurve, ImageLevel
from deim.metrics.tide import Duplicates
from deim.migration import FIRST_REPORT_VERSION, MIGRATION_ERRORS, migrate_report
from deim.parse import read_json, read_text
from deim.records import check_lengths, from_json, to_json

ADVICE = "Evaluate the checkpoint again with `deim evaluate`."
SCHEMA_VERSION = 4
"""Raised whenever a key of the report changes its name or its meaning."""
IMAGE_NAME = re.compile(r"[^/\\:]+\.png")
"""Name of an image in the folder of a report."""
MAX_RESAMPLES = 1_000_000
"""Resamples of the images that a report may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Annotations that the detector was evaluated on."""

    annotations_file: str
    sha256: str
    """Hash of the annotations, see `CocoSplit.annotations_sha256`."""
    image_dir: str
    """Folder of the images at that time."""
    normal_class: str | None
    """Class that marks a good surface; None if there is none."""
    box_counts: BoxCounts | None = None
    """What became of the boxes in the file; None in older reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Weights that were evaluated."""

    path: str
    sha256: str
    """Hash of the file, see `sha256_of_file`."""
    epoch: int | None
    """0-based epoch that the weights come from; None if the checkpoint holds weights only."""
    weights: Literal["ema", "raw"]
    """Averaged weights, or those of the last step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Model that was evaluated."""

    name: str
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePerImage:
    """Time per image in milliseconds; None where it was not measured."""

    network: float | None
    """Mean in batches: network, post-processing and merging of tiles."""
    total: float | None
    """The same with reading and preparing the images, which loading processes do meanwhile."""
    latency: float | None = None
    """Median of one input, or tile, at a time: network and post-processing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What is needed to get the numbers of a report again."""

    split: str
    dataset: DatasetInfo
    checkpoint: CheckpointInfo
    model: ModelInfo
    image_size_hw: tuple[int, int]
    """Size of the network input in pixels."""
    resize: str
    """How images were brought to that size, such as `stretch` or `letterbox`."""
    tiles: TilesOptions | None = None
    """Tiles that were brought to that size instead of images; None without tiles."""
    time_per_image_ms: TimePerImage
    device: str
    versions: dict[str, str | None]
    """Version of each package; None if a package runs without being installed."""
    max_detections: int
    """Raw detections per image."""
    options: dict[str, OptionValue] | None = None
    """Options of the experiment by dotted key, see `option_values`; None in older reports."""
    counted_detections: int = 100
    """Detections of an image and a class that COCO metrics count, from `evaluation.max_detections`."""
    overfull_images: int = 0
    """Images with more boxes than detections are made or counted, so that the rest is missed."""

    @property
    def language(self) -> str:
        """Code of the language of the page, from `evaluation.language`; English in older reports."""
        return str((self.options or {}).get("evaluation.language", "en"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """How far AP would move with other images of the same kind; see `deim.metrics.bootstrap.interval`."""

    level: float
    """Share of such intervals that hold the truth."""
    method: str
    num_images: int
    num_resamples: int
    seed: int
    ap: Interval | None
    """Interval of mAP; None if it cannot be computed."""
    ap50: Interval | None

    def __post_init__(self) -> None:
        if not 0 <= self.num_resamples <= MAX_RESAMPLES:
            raise ValueError(f"num_resamples: got {self.num_resamples}, needs 0 to {MAX_RESAMPLES}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassReport:
    """All numbers of one class; its threshold stands in `OperatingPoints.classes`."""

    metrics: ClassMetrics
    """COCO metrics over all raw detections."""
    ap_interval: Interval | None
    ap50_interval: Interval | None
    counts: Counts
    precision_recall: PrecisionRecall | None
    """Curve at IoU 0.5 after NMS; None without ground truth or detections."""
    ap50_after_nms: float | None = None
    """COCO's AP at IoU 0.5 of the detections that NMS leaves, the area below that curve; None without ground
    truth."""
    ap50_after_nms_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLevelReport:
    """Escapes and overkill."""

    at_operating_points: ImageLevel
    at_escape_threshold: ImageLevel | None
    """At the threshold for the limit of escapes; None if there is no such threshold."""
    curve: EscapeCurve
    """Of the detections that NMS leaves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReport:
    """Errors of one kind of TIDE."""

    count: int
    by_class: tuple[int, ...]
    ap50_delta: float | None
    """Gain of AP50 without these errors, over all raw detections; None if it cannot be computed."""
    kept_ap50_delta: float | None = None
    """The same gain over the kept detections, whose errors are counted here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSection:
    """What a training task adds to a report."""

    task: str
    title: str
    summary: tuple[str, ...]
    """Sentences for the console and the page."""
    data: dict[str, Any]
    """JSON types, described by the task."""
    images: tuple[str, ...] = ()
    """Names of PNG images in the folder of the report."""

    def __post_init__(self) -> None:
        for name in self.images:
            if not IMAGE_NAME.fullmatch(name):
                raise ValueError(f"images: got {name!r}, needs names of PNG files without a folder.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The report of one evaluation. A None has a note beside it, or there is no ground truth."""

    schema_version: int
    created: str
    """Time of the evaluation, ISO 8601 in UTC."""
    provenance: Provenance
    num_images: int
    """Images of the split, those without boxes included."""
    num_images_without_boxes: int
    num_boxes: int
    """Boxes of the split, crowd regions not counted."""
    summary: CocoSummary
    """The twelve COCO metrics over all raw detections."""
    intervals: Intervals | None
    """None without resamples."""
    classes: tuple[ClassReport, ...]
    """C entries, by class index."""
    operating_points: OperatingPoints
    counts: Counts
    """Counts of all classes at the operating points."""
    image_level: ImageLevelReport
    confusion: Confusion
    errors: dict[str, ErrorReport]
    """Errors by kind: `classification`, `localization`, `both`, `duplicate`, `background`, `missed`."""
    duplicates: Duplicates
    convergence: Convergence | None
    """Convergence of the run; None if its log is not beside the checkpoint."""
    task_section: TaskSection | None
    """What the training task adds; None for plain detection."""
    files: dict[str, str]
    """SHA-256 of the ground truth and the predictions beside the report, by file name."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of a newer version."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, by class index."""
        return tuple(entry.metrics.name for entry in self.classes)


def write_record(record: object, path: Path) -> None:
    """Write a record as a sealed JSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, seal_record(record))


def seal_record(record: object) -> bytes:
    """Return a record as the content of a sealed JSON file."""
    content = {SEAL_KEY: UNSEALED, **to_json(record)}
    return seal(f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode())


def read_report(path: Path) -> Report:
    """Read a report of this version, or of the first one.

    Raises:
        DataError: If it cannot be read, is of another version, lacks a key, or was changed since it was
            written.
    """
    report = read_unsealed_report(path)
    refuse_changed(path)
    return report


def refuse_changed(path: Path) -> None:
    """Raise a DataError if a sealed file was changed since it was written."""
    if not is_unchanged(read_text(path).encode("utf-8")):
        raise DataError(f"{path}: {CHANGED}. {ADVICE}")


def read_unsealed_report(path: Path) -> Report:
    """Read a report as `read_report`, whether or not it was changed: other problems come first."""
    try:
        content: Any = read_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such report{looked_in(path)}. {ADVICE}") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (SCHEMA_VERSION, FIRST_REPORT_VERSION):
        raise DataError(
            f"{path}: not a report of this version, got version {version}. This version reads "
            f"{SCHEMA_VERSION} and {FIRST_REPORT_VERSION}. {ADVICE}"
        )
    content.pop(SEAL_KEY, None)
    try:
        content = migrate_report(content)
    except MIGRATION_ERRORS as error:
        raise DataError(f"{path}: not a complete report, got {error!r}. {ADVICE}") from None
    where = f"{path}: not a complete report"
    report = from_json(Report, content, where=where, error=DataError, advice=ADVICE)
    try:
        _check_lengths(report)
        datetime.fromisoformat(report.created)
    except ValueError as error:
        raise DataError(f"{where}: {error} {ADVICE}") from None
    return report


def _check_lengths(report: Report) -> None:
    """Raise a ValueError if columns of a report that belong together differ in length."""
    classes, confusion, curve = report.classes, report.confusion, report.image_level.curve
    check_lengths(classes=classes, operating_points=report.operating_points.classes)
    check_lengths(classes=(*classes, BACKGROUND), labels=confusion.labels)
    for rows in (confusion.counts, confusion.row_percent):
        check_lengths(labels=confusion.labels, rows=rows, columns=min(rows, key=len, default=()))
        check_lengths(labels=confusion.labels, columns=max(rows, key=len, default=()))
    for errors in report.errors.values():
        check_lengths(classes=classes, by_class=errors.by_class)
    for record in (curve, *(entry.precision_recall for entry in classes)):
        if record is not None:
            check_lengths(**{column.name: getattr(record, column.name) for column in fields(record)})
    convergence = report.convergence
    if convergence is not None:
        check_lengths(epochs=convergence.epochs, ap=convergence.ap, ap50=convergence.ap50)
        if not convergence.epochs:
            raise ValueError("convergence.epochs: got none, needs at least one.")


def check_report_path(path: Path) -> None:
    """Raise a `DataError` if a path is a folder, or its suffix is not `.json`."""
    if path.is_dir() or path.suffix != ".json":
        raise DataError(f"{path}: not the name of a JSON file. Name the report like report.json.")
