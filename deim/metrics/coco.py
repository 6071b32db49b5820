"""The COCO metrics of a split, in total and by class; faster-coco-eval matches the boxes.

A number that COCO cannot compute, because there is no ground truth, is None, never -1; no class is left out.
"""

from dataclasses import dataclass, replace

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from deim.errors import DataError
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.language import ENGLISH

NUM_IOU_THRESHOLDS, IOU_50_ROW, IOU_75_ROW = 10, 0, 5
"""IoU thresholds 0.50, 0.55, …, 0.95 and the positions of two of them."""
NUM_RECALL_THRESHOLDS = 101
"""Recall 0.00, 0.01, …, 1.00."""
AREAS_AND_MAX_DETS = (4, 3)
"""Area ranges all, small, medium and large (limits 32² and 96² px); 1, 10 and at most 100 detections."""
MAX_DETECTIONS = 100
"""Detections of an image and a class that COCO counts."""
MAX_DETECTIONS_AT_ONCE = 200_000
"""Detections that the evaluator holds as dictionaries at once, about 1 kB each; at least one class."""
NUM_LISTED = 10
"""Rows that a message lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSummary:
    """The twelve COCO metrics, each in [0, 1]: means over the classes that have ground truth.

    AP and AR are means over the IoU thresholds 0.50, 0.55, …, 0.95; AR counts the best 1, 10 or 100
    detections of an image and a class; `evaluation.max_detections` replaces the 100. Small boxes have an area
    up to 32² px, large ones from 96² px. A metric is None if no class has ground truth of its size.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """The metrics of one class, as in `CocoSummary`; 0.0 if it was never predicted.

    Crowd regions do not count as boxes.
    """

    category_id: int
    name: str
    num_images: int
    """Images with at least one box of the class."""
    num_boxes: int
    num_predictions: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ar100: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    note: str | None
    """Why metrics are None, and whether the class was never predicted; None if neither holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoMetrics:
    """The COCO metrics of one split."""

    num_images: int
    """Images of the split, those without boxes included."""
    num_images_without_boxes: int
    """Images without a box; crowd regions are not counted."""
    num_boxes: int
    summary: CocoSummary
    classes: tuple[ClassMetrics, ...]
    """One entry per category, in the order of the COCO file."""


def compute_coco_metrics(
    ground_truth: GroundTruthTable, detections: DetectionTable, *, max_detections: int = MAX_DETECTIONS
) -> CocoMetrics:
    """Evaluate raw detections by COCO's protocol for boxes.

    The IoU thresholds are 0.50 to 0.95 in steps of 0.05; at most `max_detections` per image and class count,
    at least 10; the area limits are 32² and 96² px; crowd regions are ignored.

    Raises:
        DataError: If the box or the score of a detection is not finite.
    """
    _check_finite(detections)
    num_classes = ground_truth.num_classes
    precision = np.full((NUM_IOU_THRESHOLDS, NUM_RECALL_THRESHOLDS, num_classes, *AREAS_AND_MAX_DETS), -1.0)
    recall = np.full((NUM_IOU_THRESHOLDS, num_classes, *AREAS_AND_MAX_DETS), -1.0)
    num_boxes = ground_truth.boxes_per_class
    num_predictions = np.bincount(detections.label, minlength=num_classes)
    # Groups of consecutive classes bound the memory of the evaluator.
    group = np.cumsum(num_predictions) // MAX_DETECTIONS_AT_ONCE
    for labels in np.split(np.arange(num_classes), np.flatnonzero(np.diff(group)) + 1):
        if num_boxes[labels].any():
            precision[:, :, labels], recall[:, labels] = _evaluate(
                ground_truth, detections, labels, max_detections=max_detections
            )
    counted = ~ground_truth.is_crowd
    pairs = np.unique(np.stack([ground_truth.label[counted], ground_truth.image[counted]]), axis=1)
    num_images = np.bincount(pairs[0], minlength=num_classes)
    by_id = np.argsort(ground_truth.category_ids)  # the order in which COCO adds classes up
    return CocoMetrics(
        num_images=ground_truth.num_images,
        num_images_without_boxes=ground_truth.num_images - len(np.unique(pairs[1])),
        num_boxes=int(counted.sum()),
        summary=_summarize(precision[:, :, by_id], recall[:, by_id]),
        classes=tuple(
            _class_metrics(
                ground_truth,
                label,
                _summarize(precision[:, :, label], recall[:, label]),
                num_images=int(num_images[label]),
                num_predictions=int(num_predictions[label]),
            )
            for label in range(num_classes)
        ),
    )


def worst_class(metrics: CocoMetrics) -> ClassMetrics | None:
    """Return the class with the lowest AP50, the first of several; None if no class has ground truth."""
    rated = [(entry.ap50, entry) for entry in metrics.classes if entry.ap50 is not None]
    return min(rated, key=lambda pair: pair[0])[1] if rated else None


def _check_finite(detections: DetectionTable) -> None:
    numbers = np.column_stack([detections.boxes_xywh, detections.score])
    wild = np.flatnonzero(~np.isfinite(numbers).all(axis=1)).tolist()
    if wild:
        listed = ", ".join(map(str, wild[:NUM_LISTED])) + (" …" if len(wild) > NUM_LISTED else "")
        raise DataError(
            f"predictions: bbox or score is not finite, got NaN or infinity in the rows {listed}."
            " Only finite numbers can be ranked. Look for non-finite weights in the checkpoint."
        )


def _evaluate(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    labels: NDArray[np.int64],
    *,
    max_detections: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run the evaluator on some classes; their numbers do not depend on the other classes.

    Returns:
        Precision (10, 101, c, 4, 3) by IoU threshold, recall threshold, class, area range and detections per
        image, and recall (10, c, 4, 3); -1 where there is no ground truth.
    """
    rows = detections.take(np.isin(detections.label, labels))
    # Categories are numbered by class index, and ids count from 1: the evaluator takes 0 for "not matched".
    results = rows.to_coco(ground_truth.image_ids, range(ground_truth.num_classes))
    annotations = [
        {**entry, "id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        for number, entry in enumerate(results, start=1)
    ]
    truth = replace(ground_truth, category_ids=tuple(range(ground_truth.num_classes))).to_coco()
    names = set(labels.tolist())
    truth["categories"] = [entry for entry in truth["categories"] if entry["id"] in names]
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["category_id"] in names]
    silent = {"print_function": lambda *_: None}
    detected = COCO({**truth, "annotations": annotations}, **silent)
    evaluator = COCOeval_faster(COCO(truth, **silent), detected, iouType="bbox", **silent)
    evaluator.params.maxDets = [1, 10, max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    shape = (len(labels), *AREAS_AND_MAX_DETS)
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)
    return (
        precision.reshape(NUM_IOU_THRESHOLDS, NUM_RECALL_THRESHOLDS, *shape),
        recall.reshape(NUM_IOU_THRESHOLDS, *shape),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _summarize(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> CocoSummary:
    every, small, medium, large = (precision[..., area, -1] for area in range(4))
    return CocoSummary(
        ap=_mean(every),
        ap50=_mean(every[IOU_50_ROW]),
        ap75=_mean(every[IOU_75_ROW]),
        ap_small=_mean(small),
        ap_medium=_mean(medium),
        ap_large=_mean(large),
        ar1=_mean(recall[..., 0, 0]),
        ar10=_mean(recall[..., 0, 1]),
        ar100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., 1, 2]),
        ar_medium=_mean(recall[..., 2, 2]),
        ar_large=_mean(recall[..., 3, 2]),
    )


def _class_metrics(
    ground_truth: GroundTruthTable,
    label: int,
    summary: CocoSummary,
    *,
    num_images: int,
    num_predictions: int,
) -> ClassMetrics:
    """Build the entry of a class from the summary of its slice."""
    num_boxes = int(ground_truth.boxes_per_class[label])
    by_size = {"small": summary.ap_small, "medium": summary.ap_medium, "large": summary.ap_large}
    missing = " or ".join(size for size, value in by_size.items() if value is None)
    notes = [ENGLISH.text("never predicted")] if num_boxes > 0 and num_predictions == 0 else []
    if missing and num_boxes > 0:
        template = "no {sizes_phrase} ground-truth box of this class in the split"
        notes.append(ENGLISH.text(template, sizes_phrase=missing))
    elif missing:
        notes.append(ENGLISH.text("no ground-truth box of this class in the split"))
    return ClassMetrics(
        category_id=ground_truth.category_ids[label],
        name=ground_truth.class_names[label],
        num_images=num_images,
        num_boxes=num_boxes,
        num_predictions=num_predictions,
        ap=summary.ap,
        ap50=summary.ap50,
        ap75=summary.ap75,
        ar100=summary.ar100,
        ap_small=summary.ap_small,
        ap_medium=summary.ap_medium,
        ap_large=summary.ap_large,
        note="; ".join(notes) or None,
    )
