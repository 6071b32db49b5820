"""The COCO numbers of a split, in total and class by class; faster-coco-eval does the matching.

A number that COCO cannot compute, for want of ground truth, is None, never -1; no class is ever left out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from deim.errors import DataError

_NUM_IOU_THRESHOLDS, _IOU_50, _IOU_75 = 10, 0, 5
"""IoU thresholds 0.50, 0.55, …, 0.95 and the positions of two of them."""
NUM_RECALL_THRESHOLDS, NUM_AREA_RANGES, NUM_MAX_DETS = 101, 4, 3
"""Recall 0.00 to 1.00; all, small, medium, large (limits 32² and 96² px); 1, 10, 100 detections."""
MAX_DETECTIONS = 100
"""Detections of an image and a class that AP counts."""
NAMED_IDS = 10  # how many wrong ids a message lists


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSummary:
    """The twelve COCO numbers, each in [0, 1], the mean over the classes that have ground truth.

    A number is None if no class has ground truth of its size.
    """

    ap: float | None
    """AP, mean over the IoU thresholds 0.50, 0.55, …, 0.95."""
    ap50: float | None
    """AP at IoU 0.50."""
    ap75: float | None
    """AP at IoU 0.75."""
    ap_small: float | None
    """`ap` of boxes with area up to 32² px."""
    ap_medium: float | None
    """`ap` of boxes with area from 32² to 96² px."""
    ap_large: float | None
    """`ap` of boxes with area from 96² px."""
    ar1: float | None
    """Recall with one detection per image and class, mean over the IoU thresholds."""
    ar10: float | None
    """The same with 10 detections."""
    ar100: float | None
    """The same with 100 detections."""
    ar_small: float | None
    """`ar100` of boxes with area up to 32² px."""
    ar_medium: float | None
    """`ar100` of boxes with area from 32² to 96² px."""
    ar_large: float | None
    """`ar100` of boxes with area from 96² px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """The numbers of one class. A class that was never predicted has 0.0, one without ground truth None."""

    category_id: int
    """The id in the COCO file."""
    name: str
    """The name in the COCO file."""
    num_images: int
    """Images with at least one box of the class, crowd regions not counted."""
    num_boxes: int
    """Boxes of the class, crowd regions not counted."""
    num_predictions: int
    """Predictions of the class, whatever their score."""
    ap: float | None
    """AP, mean over the IoU thresholds 0.50, 0.55, …, 0.95."""
    ap50: float | None
    """AP at IoU 0.50."""
    ap75: float | None
    """AP at IoU 0.75."""
    ar100: float | None
    """Recall with 100 detections per image, mean over the IoU thresholds."""
    ap_small: float | None
    """`ap` of boxes with area up to 32² px."""
    ap_medium: float | None
    """`ap` of boxes with area from 32² to 96² px."""
    ap_large: float | None
    """`ap` of boxes with area from 96² px."""
    note: str | None
    """Why numbers are None and whether the class was never predicted; None if nothing needs explaining."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoMetrics:
    """The COCO numbers of one split."""

    num_images: int
    """Images of the split, those without boxes included."""
    num_images_without_boxes: int
    """Images without a box; a crowd region is no box."""
    num_boxes: int
    """Boxes of the split, crowd regions not counted."""
    summary: CocoSummary
    """The twelve numbers over all classes."""
    classes: tuple[ClassMetrics, ...]
    """One entry per category, in the order of the COCO file."""


def compute_coco_metrics(
    ground_truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> CocoMetrics:
    """Score predictions against a COCO ground truth by boxes.

    The protocol is COCO's: IoU thresholds 0.50 to 0.95 in steps of 0.05, at most 100 detections per image and
    class, area limits 32² and 96² px, crowd regions ignored. Neither argument is changed.

    Args:
        ground_truth: COCO dict with `images`, `annotations` (`bbox` xywh and `area` in pixels, `iscrowd`; an
            absent area is w · h, an absent iscrowd 0) and `categories`. Any of them may be empty.
        predictions: COCO results: `image_id`, `category_id`, `bbox` (xywh in pixels), `score`. May be empty.

    Returns:
        The metrics; numbers without ground truth are None.

    Raises:
        DataError: If an annotation or a prediction names an image or a category that the ground truth does
            not have, or if the box or the score of a prediction is not finite.
    """
    numbers = _checked_numbers(ground_truth, predictions)
    boxes = [box for box in ground_truth["annotations"] if not box.get("iscrowd", 0)]
    precision, recall = _evaluate(ground_truth, predictions, numbers, has_boxes=bool(boxes))
    positions = {key: k for k, key in enumerate(sorted(one["id"] for one in ground_truth["categories"]))}
    box_counts = Counter(box["category_id"] for box in boxes)
    image_counts = Counter(key for key, _ in {(box["category_id"], box["image_id"]) for box in boxes})
    prediction_counts = Counter(prediction["category_id"] for prediction in predictions)
    classes = tuple(
        _class_metrics(
            category,
            num_images=image_counts[category["id"]],
            num_boxes=box_counts[category["id"]],
            num_predictions=prediction_counts[category["id"]],
            precision=precision[:, :, positions[category["id"]]],
            recall=recall[:, positions[category["id"]]],
        )
        for category in ground_truth["categories"]
    )
    return CocoMetrics(
        num_images=len(ground_truth["images"]),
        num_images_without_boxes=len(ground_truth["images"]) - len({box["image_id"] for box in boxes}),
        num_boxes=len(boxes),
        summary=_summarize(precision, recall),
        classes=classes,
    )


def worst_class(metrics: CocoMetrics) -> ClassMetrics | None:
    """The class with the lowest AP50 among those with ground truth.

    Args:
        metrics: The metrics of a split.

    Returns:
        The class, the first in order if several are equal; None if no class has ground truth.
    """
    scored = [(entry.ap50, entry) for entry in metrics.classes if entry.ap50 is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _checked_numbers(
    ground_truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64]:
    """Refuse what cannot be scored; (D, 5) box xywh and score of each prediction."""
    problems = []
    for where, entries in (("ground truth", ground_truth["annotations"]), ("predictions", predictions)):
        for key, kind in (("image_id", "images"), ("category_id", "categories")):
            strangers = {entry[key] for entry in entries} - {known["id"] for known in ground_truth[kind]}
            if strangers:
                problems.append(
                    f"{where}: unknown {key}, got {_listed(strangers)}. Every {key} must be among the {kind}"
                    " of the ground truth. Use the annotation file of the images that were predicted."
                )
    numbers = np.array([[*one["bbox"], one["score"]] for one in predictions], dtype=np.float64).reshape(-1, 5)
    wild = np.flatnonzero(~np.isfinite(numbers).all(axis=1)).tolist()
    if wild:
        problems.append(
            f"predictions: bbox or score is not finite, got NaN or infinity at the positions {_listed(wild)}."
            " Only finite numbers can be ranked. Look for non-finite weights in the checkpoint."
        )
    if problems:
        raise DataError("\n".join(problems))
    return numbers


def _listed(ids: Iterable[Any]) -> str:
    ordered = sorted(ids)
    more = f" and {len(ordered) - NAMED_IDS} more" if len(ordered) > NAMED_IDS else ""
    return ", ".join(str(one) for one in ordered[:NAMED_IDS]) + more


def _evaluate(
    ground_truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    numbers: NDArray[np.float64],
    *,
    has_boxes: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run the evaluator on copies of what it needs.

    Returns:
        Precision (10, 101, C, 4, 3) by IoU threshold, recall threshold, category in ascending id, area range
        and detections per image, and recall (10, C, 4, 3); -1 where there is no ground truth.
    """
    shape = (len(ground_truth["categories"]), NUM_AREA_RANGES, NUM_MAX_DETS)
    precision_shape = (_NUM_IOU_THRESHOLDS, NUM_RECALL_THRESHOLDS, *shape)
    recall_shape = (_NUM_IOU_THRESHOLDS, *shape)
    if not has_boxes:
        return np.full(precision_shape, -1.0), np.full(recall_shape, -1.0)
    truth = _coco(ground_truth, [_gt_entry(box) for box in ground_truth["annotations"]])
    results = _coco(ground_truth, _result_entries(predictions, numbers))
    evaluator = COCOeval_faster(truth, results, iouType="bbox", print_function=_silent)
    evaluator.evaluate()
    evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)
    return precision.reshape(precision_shape), recall.reshape(recall_shape)


def _coco(ground_truth: Mapping[str, Any], entries: list[dict[str, Any]]) -> Any:
    dataset = {
        "images": [{"id": image["id"]} for image in ground_truth["images"]],
        "categories": [{"id": category["id"]} for category in ground_truth["categories"]],
        # Counted anew, from 1: the evaluator takes id 0 for "not matched", and files may repeat ids.
        "annotations": entries,
    }
    for number, entry in enumerate(entries, start=1):
        entry["id"] = number
    return COCO(dataset, print_function=_silent)


def _gt_entry(box: Mapping[str, Any]) -> dict[str, Any]:
    left, top, width, height = (float(value) for value in box["bbox"])
    return {
        "image_id": box["image_id"],
        "category_id": box["category_id"],
        "bbox": [left, top, width, height],
        "area": float(box.get("area", width * height)),
        "iscrowd": int(box.get("iscrowd", 0)),
    }


def _result_entries(
    predictions: Sequence[Mapping[str, Any]], numbers: NDArray[np.float64]
) -> list[dict[str, Any]]:
    # By the million: one pass, and floats from one array.
    return [
        {
            "image_id": prediction["image_id"],
            "category_id": prediction["category_id"],
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "score": score,
            "iscrowd": 0,
        }
        for prediction, bbox, score in zip(
            predictions, numbers[:, :4].tolist(), numbers[:, 4].tolist(), strict=True
        )
    ]


def _silent(*_: object) -> None:
    pass


def _mean(values: NDArray[np.float64]) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _summarize(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> CocoSummary:
    every, small, medium, large = (precision[..., area, -1] for area in range(NUM_AREA_RANGES))
    return CocoSummary(
        ap=_mean(every),
        ap50=_mean(every[_IOU_50]),
        ap75=_mean(every[_IOU_75]),
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
    category: Mapping[str, Any],
    *,
    num_images: int,
    num_boxes: int,
    num_predictions: int,
    precision: NDArray[np.float64],
    recall: NDArray[np.float64],
) -> ClassMetrics:
    # One class is a split with one class: its numbers are the summary of its slice.
    own = _summarize(precision, recall)
    by_size = {"small": own.ap_small, "medium": own.ap_medium, "large": own.ap_large}
    missing = " or ".join(size for size, value in by_size.items() if value is None)
    notes = ["never predicted"] if num_boxes > 0 and num_predictions == 0 else []
    if missing:
        size = f"{missing} " if num_boxes > 0 else ""
        notes.append(f"no {size}ground-truth box of this class in the split")
    return ClassMetrics(
        category_id=category["id"],
        name=category["name"],
        num_images=num_images,
        num_boxes=num_boxes,
        num_predictions=num_predictions,
        ap=own.ap,
        ap50=own.ap50,
        ap75=own.ap75,
        ar100=own.ar100,
        ap_small=own.ap_small,
        ap_medium=own.ap_medium,
        ap_large=own.ap_large,
        note="; ".join(notes) or None,
    )
