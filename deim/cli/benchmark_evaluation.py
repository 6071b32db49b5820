"""Time the evaluation of random predictions beside pycocotools, and the resampling for intervals.

Times are seconds of processor time, so that other work on the machine counts less. Memory is the peak of the
process in MB.
"""

import contextlib
import io
import time
from argparse import Namespace
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from deim.cli.benchmark_step import peak_memory_mb
from deim.errors import DeimError
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.operating_points import BestF1Goal, NmsRule
from deim.metrics.assignment import compute_overlaps
from deim.metrics.bootstrap import resample_scores
from deim.metrics.choose_thresholds import choose_operating_points
from deim.metrics.coco import MAX_DETECTIONS, compute_coco_metrics
from deim.report.build import ReportInputs, build_report
from deim.report.schema import Provenance

SIDE = 1024
NUM_CLASSES = 6
NUM_RESAMPLES = 1000


def measure(args: Namespace) -> dict[str, float]:
    """Make predictions, evaluate them here and with pycocotools, and analyze them.

    Raises:
        DeimError: If pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise DeimError(
            "pycocotools: is not installed. Install it with python -m pip install -e '.[test]'"
        ) from None
    ground_truth, detections = random_set(args.images, args.boxes)
    started = time.process_time()
    summary = compute_coco_metrics(ground_truth, detections).summary
    ours = time.process_time() - started
    raw = compute_overlaps(ground_truth, detections)
    assert raw.coco_assignment is not None  # made here, so that it is not timed
    started = time.process_time()
    resample_scores(raw, num_resamples=NUM_RESAMPLES)
    resampling = time.process_time() - started
    points = choose_operating_points(
        ground_truth,
        detections,
        goal=BestF1Goal(),
        rules=[NmsRule()],
        split_name="val",
        annotations_sha256="",
        default_threshold=0.4,
        max_escape_rate=0.01,
    )
    inputs = ReportInputs(
        ground_truth=ground_truth,
        detections=detections,
        points=points,
        provenance=cast(Provenance, SimpleNamespace(counted_detections=MAX_DETECTIONS)),  # no more is read
        num_resamples=NUM_RESAMPLES,
    )
    assert inputs.metrics.num_images == args.images  # made here, so that they are not timed
    started = time.process_time()
    build_report(inputs, files={})
    analysis = time.process_time() - started
    peak_mb = peak_memory_mb(torch.device("cpu"))
    predictions = list(detections.to_coco(ground_truth.image_ids, ground_truth.category_ids))
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        official_truth = COCO()
        official_truth.dataset = ground_truth.to_coco()
        official_truth.createIndex()
        official = COCOeval(official_truth, official_truth.loadRes(predictions), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    theirs = time.process_time() - started
    numbers = [getattr(summary, name) for name in type(summary).__dataclass_fields__]
    pairs = zip(numbers, official.stats.tolist(), strict=True)
    return {
        "images": args.images,
        "boxes": args.boxes,
        "coco_s": round(ours, 3),
        "pycocotools_s": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
        "largest_difference": max(abs((-1 if value is None else value) - other) for value, other in pairs),
        "resampling_s": round(resampling, 2),
        "analysis_s": round(analysis, 2),
        "peak_mb": round(peak_mb),
    }


def random_set(num_images: int, num_boxes: int) -> tuple[GroundTruthTable, DetectionTable]:
    """Return images with 0 to 8 boxes, and detections, three in ten of them near a box."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, num_images)
    truth, truth_label = random_boxes(rng, counts.sum()), rng.integers(0, NUM_CLASSES, counts.sum())
    image = np.repeat(np.arange(num_images), num_boxes)
    boxes, label = random_boxes(rng, len(image)), rng.integers(0, NUM_CLASSES, len(image))
    near = (rng.uniform(size=len(image)) < 0.3) & (counts[image] > 0)
    nearest = (np.cumsum(counts) - counts)[image[near]] + rng.integers(0, counts[image[near]])
    boxes[near] = np.maximum(truth[nearest] + rng.normal(0, 8, (len(nearest), 4)), 1)
    label[near] = truth_label[nearest]
    score = rng.uniform(size=len(image))
    best_first = np.lexsort((-score, image))
    ground_truth = GroundTruthTable(
        class_names=tuple(f"class {number}" for number in range(1, NUM_CLASSES + 1)),
        category_ids=tuple(range(1, NUM_CLASSES + 1)),
        normal_class=None,
        image_ids=tuple(range(1, num_images + 1)),
        file_names=tuple(f"{number}.png" for number in range(1, num_images + 1)),
        sizes_hw=np.full((num_images, 2), SIDE, dtype=np.int64),
        image=np.repeat(np.arange(num_images), counts),
        label=truth_label,
        boxes_xywh=truth,
        area=truth[:, 2] * truth[:, 3],
        is_crowd=np.zeros(len(truth), dtype=np.bool_),
    )
    detections = DetectionTable(
        image=image,
        label=label[best_first],
        boxes_xywh=boxes[best_first],
        score=score[best_first],
        query=np.full(len(image), -1, dtype=np.int64),
    )
    return ground_truth, detections


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return (number, 4) boxes, xywh in pixels."""
    return np.concatenate([rng.uniform(0, 800, (number, 2)), rng.uniform(20, 200, (number, 2))], axis=1)
