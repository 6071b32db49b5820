"""Time the evaluation of random predictions beside pycocotools, and the resampling behind intervals.

    python tools/benchmark_evaluation.py --images 5000 --boxes 300

Prints one JSON line: seconds of the COCO numbers here and by pycocotools, their ratio, the largest difference
of the 12 numbers, seconds of 1000 resamples and of a whole analysis, and the peak memory in MB. Seconds are
those of the processor, so that other work on the machine counts less.
"""

import argparse
import contextlib
import io
import json
import resource
import sys
import time
from typing import Any

import numpy as np

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


def main() -> int:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=300, help="predictions an image")
    args = parser.parse_args()
    if min(args.images, args.boxes) < 1:
        parser.error("--images and --boxes are at least 1")
    try:
        print(json.dumps(time_evaluation(args.images, args.boxes)))
    except ImportError as error:
        print(
            f"{error}. Install the packages of the tests: python -m pip install -e '.[test]'", file=sys.stderr
        )
        return 2
    return 0


def time_evaluation(num_images: int, num_boxes: int) -> dict[str, Any]:
    """Make a set, score it here and by pycocotools, and analyze it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ground_truth, predictions = random_set(num_images, num_boxes)
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
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Last: pycocotools writes into the predictions.
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        official = COCOeval(truth, truth.loadRes(predictions), "bbox")
        official.evaluate()
        official.accumulate()
        official.summarize()
    theirs = time.process_time() - started
    numbers = [getattr(summary, name) for name in type(summary).__dataclass_fields__]
    pairs = zip(numbers, official.stats.tolist(), strict=True)
    return {
        "images": num_images,
        "boxes": num_boxes,
        "coco_s": round(ours, 2),
        "pycocotools_s": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
        "largest_difference": max(abs((-1 if mine is None else mine) - other) for mine, other in pairs),
        "resampling_s": round(resampling, 2),
        "analysis_s": round(analysis, 2),
        "peak_mb": round(peak_mb),
    }


def random_set(num_images: int, num_boxes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images with 0 to 8 boxes; of the predictions three in ten lie near a box."""
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
        found, seen = random_boxes(rng, num_boxes), rng.integers(1, NUM_CLASSES + 1, num_boxes)
        if number:
            near = rng.uniform(size=num_boxes) < 0.3
            about = rng.integers(0, number, num_boxes)
            found[near] = boxes[about[near]] + rng.normal(0, 8, (int(near.sum()), 4))
            seen[near] = labels[about[near]]
        predictions += [
            {"image_id": image_id, "category_id": int(label), "bbox": box, "score": score}
            for box, label, score in zip(
                np.maximum(found, 1).tolist(), seen, rng.uniform(size=num_boxes).tolist(), strict=True
            )
        ]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(number, 4) xywh in pixels."""
    return np.concatenate([rng.uniform(0, 800, (number, 2)), rng.uniform(20, 200, (number, 2))], axis=1)


if __name__ == "__main__":
    sys.exit(main())
