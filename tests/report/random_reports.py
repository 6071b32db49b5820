"""Reports of random splits, and everything that they are made from."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deim.inference.operating_points import BestF1Goal, NmsOptions, candidate_rules
from deim.metrics.choose_thresholds import choose_operating_points
from deim.report.build import ReportInputs, build_report, installed_versions
from deim.report.schema import CheckpointInfo, DatasetInfo, ModelInfo, Provenance, Report, TimePerImage
from tests.metrics.random_results import Split, random_split, split_tables


def make_provenance(image_dir: Path, **changes: Any) -> Provenance:
    arguments = {
        "split": "test",
        "dataset": DatasetInfo(
            annotations_file="test.json", sha256="a" * 64, image_dir=str(image_dir), normal_class=None
        ),
        "checkpoint": CheckpointInfo(path="outputs/best.pth", sha256="b" * 64, epoch=11, weights="ema"),
        "model": ModelInfo(name="deimv2_s", parameters=9_700_000),
        "image_size_hw": (1024, 768),
        "resize": "stretch",
        "time_per_image_ms": TimePerImage(network=12.5, total=None),
        "device": "cpu",
        "versions": installed_versions(),
        "max_detections": 300,
    }
    return Provenance(**(arguments | changes))


def make_inputs(
    image_dir: Path,
    *,
    seed: int = 0,
    num_resamples: int = 50,
    predictions: bool = True,
    first_name: str | None = None,
    **options: Any,
) -> ReportInputs:
    """What the report of a random split is made from; images are written to `image_dir` but for the last one.

    Args:
        image_dir: For the images.
        seed: Of the split.
        num_resamples: Behind intervals.
        predictions: False drops all of them.
        first_name: Another name for the first class.
        options: Of `random_split`.
    """
    coco, results = random_split(seed, **options)
    if first_name is not None:
        coco["categories"][0]["name"] = first_name
    split = split_tables(coco, results if predictions else [])
    image_dir.mkdir(parents=True, exist_ok=True)
    for name, (height, width) in zip(split.truth.file_names[:-1], split.truth.sizes_hw, strict=False):
        Image.fromarray(np.full((height, width, 3), 140, dtype=np.uint8)).save(image_dir / name)
    return inputs_of(split, image_dir, num_resamples=num_resamples)


def inputs_of(
    split: Split,
    image_dir: Path,
    *,
    num_resamples: int,
    nms: NmsOptions = NmsOptions(mode="agnostic", iou_threshold=0.7),  # noqa: B008  immutable
) -> ReportInputs:
    points = choose_operating_points(
        *split,
        goal=BestF1Goal(),
        rules=candidate_rules(nms),
        split_name="val",
        annotations_sha256="c" * 64,
        default_threshold=0.4,
        max_escape_rate=0.2,
    )
    return ReportInputs(
        ground_truth=split.truth,
        detections=split.detections,
        points=points,
        provenance=make_provenance(image_dir),
        num_resamples=num_resamples,
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )


def make_report(image_dir: Path, **options: Any) -> Report:
    """The report of `make_inputs`; arguments as there."""
    return report_of(make_inputs(image_dir, **options))


def report_of(inputs: ReportInputs, *, files: dict[str, str] | None = None) -> Report:
    """The numbers alone, without any file."""
    return build_report(inputs, files=files or {})
