"""Time the evaluation of random predictions beside pycocotools, and the resampling for intervals.

Times are seconds of processor time, so that other work on the machine counts less. Memory is the peak of the
process in MB.
"""

import contextlib
import io
import time
from argparse import Namespace
from typing import Any

import numpy as np
import torch

from deim.cli.benchmark_step import peak_memory_mb
from deim.errors import DeimError
from deim.inference.detection_table import split_results
from deim.inference.nms import NmsRule
from deim.inference.thresholds import BestF1Goal
from deim.metrics.analysis import analyze_split
from deim.metrics.assignment import COCO_IOU_THRESHOLDS, assign, compute_overlaps
from deim.metrics.bootstrap import resample_scores
from deim.metrics.choose_thresholds import choose_operating_points
from deim.metrics.coco import compute_coco_metrics

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
    ground_truth, predictions = random_set(args.images, args.boxes)
    started = time.process_time()
    summary = compute_coco_metrics(ground_truth, predictions).summary
    ours = time.process_time() - started
    results = split_results(ground_truth, predictions)
    assignment = assign(results, compute_overlaps(results), iou_thresholds=COCO_IOU_THRESHOLDS)
    started = time.process_time()
    resample_scores(results, assignment, num_resamples=NUM_RESAMPLES)
    resampling = time.process_time() - started
    points = choose_operating_points(
        results,
        goal=BestF1Goal(),
        rules=[NmsRule()],
        split_name="val",
        annotations_sha256="",
        default_threshold=0.4,
        max_escape_rate=0.01,
    )
    started = time.process_time()
    analyze_split(results, points, num_resamples=NUM_RESAMPLES)
    analysis = time.process_time() - started
    peak_mb = peak_memory_mb(torch.device("cpu"))
    # pycocotools comes last because it writes into the predictions.
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        official_truth = COCO()
        official_truth.dataset = ground_truth
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


def random_set(num_images: int, num_boxes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return images with 0 to 8 boxes, and predictions, three in ten of them near a box."""
    rng = np.random.default_rng(0)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": SIDE, "height": SIDE})
        number = int(rng.integers(0, 9))
        boxes, labels = random_boxes(rng, number), rng.integers(1, NUM_CLASSES + 1, number)
        annotations += [
            {
                "id": len(annotations) + k + 1,
                "image_id": image_id,
                "category_id": int(labels[k]),
                "bbox": boxes[k].tolist(),
                "area": float(boxes[k, 2] * boxes[k, 3]),
                "iscrowd": 0,
            }
            for k in range(number)
        ]
        boxes_xywh, predicted = random_boxes(rng, num_boxes), rng.integers(1, NUM_CLASSES + 1, num_boxes)
        if number:
            near = rng.uniform(size=num_boxes) < 0.3
            nearest = rng.integers(0, number, num_boxes)
            boxes_xywh[near] = boxes[nearest[near]] + rng.normal(0, 8, (int(near.sum()), 4))
            predicted[near] = labels[nearest[near]]
        predictions += [
            {"image_id": image_id, "category_id": int(label), "bbox": box, "score": score}
            for box, label, score in zip(
                np.maximum(boxes_xywh, 1).tolist(),
                predicted,
                rng.uniform(size=num_boxes).tolist(),
                strict=True,
            )
        ]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return (number, 4) boxes, xywh in pixels."""
    return np.concatenate([rng.uniform(0, 800, (number, 2)), rng.uniform(20, 200, (number, 2))], axis=1)
