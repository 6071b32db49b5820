"""Reports of random splits, and all that they are made from."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deim.inference.detection_table import split_results
from deim.inference.nms import NmsOptions, candidate_rules
from deim.inference.thresholds import BestF1Goal
from deim.metrics.analysis import analyze_split
from deim.metrics.choose_thresholds import choose_operating_points
from deim.metrics.coco import compute_coco_metrics
from deim.report.build import build_report
from deim.report.files import Scored
from deim.report.provenance import (
    CheckpointInfo,
    DatasetInfo,
    ModelInfo,
    Provenance,
    TimePerImage,
    installed_versions,
)
from tests.metrics.random_results import random_split


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


def make_scored(
    image_dir: Path, *, seed: int = 0, num_resamples: int = 50, predictions: bool = True, **options: Any
) -> Scored:
    """A random split, scored; images are written to `image_dir` but for the last one.

    Args:
        image_dir: For the images.
        seed: Of the split.
        num_resamples: Behind intervals.
        predictions: False leaves all of them out.
        options: Of `random_split`.
    """
    ground_truth, found = random_split(seed, **options)
    found = found if predictions else []
    image_dir.mkdir(parents=True, exist_ok=True)
    for image in ground_truth["images"][:-1]:
        pixels = np.full((image["height"], image["width"], 3), 140, dtype=np.uint8)
        Image.fromarray(pixels).save(image_dir / image["file_name"])
    points = choose_operating_points(
        split_results(ground_truth, found),
        goal=BestF1Goal(),
        rules=candidate_rules(NmsOptions(mode="agnostic", iou_threshold=0.7)),
        split_name="val",
        annotations_sha256="c" * 64,
        default_threshold=0.4,
        max_escape_rate=0.2,
    )
    return Scored(
        ground_truth=ground_truth,
        predictions=found,
        points=points,
        provenance=make_provenance(image_dir),
        metrics=compute_coco_metrics(ground_truth, found),
        num_resamples=num_resamples,
    )


def make_report(image_dir: Path, **options: Any) -> dict[str, Any]:
    """The report of `make_scored`; arguments as there."""
    return report_of(make_scored(image_dir, **options))


def report_of(scored: Scored) -> dict[str, Any]:
    """The numbers alone, without any file."""
    results = split_results(scored.ground_truth, scored.predictions)
    return build_report(
        scored.metrics,
        analyze_split(results, scored.points, num_resamples=scored.num_resamples),
        scored.provenance,
        created=datetime(2026, 11, 22, tzinfo=UTC),
    )
