"""The report of one evaluation: a JSON file for machines, a table for the console."""

import hashlib
import json
import os
import platform
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from deim.evaluation.coco_metrics import ClassMetrics, CocoMetrics, CocoSummary

SCHEMA_VERSION = 1
"""Raised whenever a key of the report changes its name or its meaning."""

DASH = "\N{EN DASH}"
MAX_NAME_WIDTH = 32
COLUMNS = (
    ("images", 7),
    ("boxes", 7),
    ("AP50", 7),
    ("AP", 7),
    ("AP75", 7),
    ("AR100", 7),
    ("AP small", 10),
    ("AP medium", 11),
    ("AP large", 10),
)
"""Heads of the number columns and their widths in characters, the gap on the left included."""
DISTRIBUTIONS = {
    "deim": "deim-defects",
    "torch": "torch",
    "torchvision": "torchvision",
    "faster_coco_eval": "faster-coco-eval",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Which annotations were scored; the counts come from the metrics."""

    annotations_file: str
    """Name of the annotation file, without its folder."""
    sha256: str
    """Hash of that file, see `sha256_of_file`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """Which weights were scored."""

    path: str
    """Where the checkpoint lay."""
    sha256: str
    """Hash of that file, see `sha256_of_file`."""
    epoch: int | None
    """0-based epoch it was written after; None if it holds weights only."""
    weights: Literal["ema", "raw"]
    """Averaged weights or those of the last step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Which model was scored."""

    name: str
    """Name of the model, such as `deimv2_s`."""
    parameters: int
    """Number of its parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimePerImage:
    """Mean time for one image, in milliseconds; None where it was not measured."""

    network: float | None
    """Network and postprocess."""
    total: float | None
    """Reading and preparing the image included."""


def build_report(
    metrics: CocoMetrics,
    *,
    created: datetime,
    split: str,
    dataset: DatasetInfo,
    checkpoint: CheckpointInfo,
    model: ModelInfo,
    image_size_hw: tuple[int, int],
    resize: str,
    time_per_image_ms: TimePerImage,
    device: str,
    versions: Mapping[str, str | None],
    max_detections: int,
    score_threshold: float | None = None,
) -> dict[str, Any]:
    """Put the numbers and all that is needed to get them again into one tree.

    Args:
        metrics: What `compute_coco_metrics` gave.
        created: Time of the evaluation, with a time zone.
        split: Name of the split, such as `val`.
        dataset: The annotations.
        checkpoint: The weights.
        model: The model.
        image_size_hw: Size of the network input, in pixels.
        resize: How images were brought to that size, such as `stretch` or `letterbox`.
        time_per_image_ms: Mean times for one image, in milliseconds.
        device: The device in words, such as `cpu` or `NVIDIA RTX 3060`.
        versions: Version of each package, see `installed_versions`.
        max_detections: Detections kept per image.
        score_threshold: Detections below it were dropped before scoring; None if none were.

    Returns:
        The report, of JSON types only. Keys are described in this module's data classes and in
        `coco_metrics.py`; `image_size_hw` is a list, `created` is ISO 8601 in UTC.

    Raises:
        ValueError: If `created` has no time zone.
    """
    if created.tzinfo is None:
        raise ValueError(f"build_report: created has no time zone, got {created}. Use datetime.now(UTC).")
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created.astimezone(UTC).isoformat(timespec="seconds"),
        "split": split,
        "dataset": {
            **asdict(dataset),
            "num_images": metrics.num_images,
            "num_images_without_boxes": metrics.num_images_without_boxes,
            "num_boxes": metrics.num_boxes,
        },
        "checkpoint": asdict(checkpoint),
        "model": asdict(model),
        "image_size_hw": list(image_size_hw),
        "resize": resize,
        "time_per_image_ms": asdict(time_per_image_ms),
        "device": device,
        "versions": dict(versions),
        "summary": asdict(metrics.summary),
        "classes": [asdict(entry) for entry in metrics.classes],
        "settings": {"max_detections": max_detections, "score_threshold": score_threshold},
    }


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON; a reader sees the old file or the whole new one, never a part.

    Args:
        report: What `build_report` gave.
        path: The file to write; its folder is made if it does not exist.

    Raises:
        ValueError: If the report holds NaN or infinity; nothing is written then.
        OSError: If the file cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """Hash a file.

    Args:
        path: The file, of any size.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_versions() -> dict[str, str | None]:
    """Versions of what can change the numbers.

    Returns:
        Version by `deim`, `torch`, `torchvision`, `faster_coco_eval` and `python`; None for a package that
        runs from a checkout without being installed.
    """
    versions = {key: _version(distribution) for key, distribution in DISTRIBUTIONS.items()}
    return {**versions, "python": platform.python_version()}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def format_class_table(metrics: CocoMetrics) -> str:
    """Lay the numbers out for the console.

    Args:
        metrics: What `compute_coco_metrics` gave.

    Returns:
        Lines of equal width, at most 120 columns: the heads, a row per class and a row `all`. Under `images`,
        a class has the images with a box of it and `all` has every image of the split. A dash stands for a
        number without ground truth. Long names are cut.
    """
    names = [entry.name for entry in metrics.classes]
    width = min(max(_width(name) for name in ["class", *names]), MAX_NAME_WIDTH)
    rows = [_row("class", [head for head, _ in COLUMNS], name_width=width)]
    for entry in metrics.classes:
        cells = [str(entry.num_images), str(entry.num_boxes), *_number_cells(entry)]
        rows.append(_row(entry.name, cells, name_width=width))
    totals = [str(metrics.num_images), str(metrics.num_boxes), *_number_cells(metrics.summary)]
    rows.append(_row("all", totals, name_width=width))
    return "\n".join(rows)


def _number_cells(values: ClassMetrics | CocoSummary) -> list[str]:
    numbers = (
        values.ap50,
        values.ap,
        values.ap75,
        values.ar100,
        values.ap_small,
        values.ap_medium,
        values.ap_large,
    )
    return [DASH if number is None else f"{number:.3f}" for number in numbers]


def _row(name: str, cells: Sequence[str], *, name_width: int) -> str:
    aligned = (cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))
    return _fit(name, name_width) + "".join(aligned)


def _fit(text: str, width: int) -> str:
    """Cut or pad a text to a width in console columns; control characters become blanks."""
    text = "".join(" " if unicodedata.category(one) == "Cc" else one for one in text)
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    # Chinese, Japanese and Korean characters take two columns, combining marks none.
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )
