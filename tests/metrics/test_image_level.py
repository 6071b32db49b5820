"""Escapes and overkill against loops over the files' entries."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from deim.metrics.image_level import count_images, threshold_for_escapes, trace_escapes
from tests.metrics.random_results import (
    CATEGORY_IDS,
    CLASS_NAMES,
    Split,
    random_split,
    split_tables,
)

NORMAL = CATEGORY_IDS[CLASS_NAMES.index("NORMAL")]


def shares_an_iou_of_half(a: list[float], b: list[float]) -> bool:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) >= 0.5


def plain(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], threshold: float, normal: int | None
) -> dict[str, int]:
    counts = dict.fromkeys(("defective", "escaped", "unmarked", "good", "overkilled", "boxes", "excluded"), 0)
    for image in ground_truth["images"]:
        boxes = [
            box
            for box in ground_truth["annotations"]
            if box["image_id"] == image["id"] and box["category_id"] != normal
        ]
        actual = [
            first
            for first in predictions
            if first["image_id"] == image["id"]
            and first["category_id"] != normal
            and first["score"] >= threshold
        ]
        real = [box for box in boxes if not box["iscrowd"]]
        if real:
            counts["defective"] += 1
            hits = [
                first
                for first in actual
                if any(shares_an_iou_of_half(first["bbox"], box["bbox"]) for box in real)
            ]
            counts["escaped"] += not hits
            counts["unmarked"] += not actual
        elif boxes:
            counts["excluded"] += 1
        else:
            counts["good"] += 1
            counts["overkilled"] += bool(actual)
            counts["boxes"] += len(actual)
    return counts


@pytest.mark.parametrize("normal", [None, "NORMAL"])
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_brute_force(seed: int, normal: str | None) -> None:
    ground_truth, predictions = random_split(seed)
    results = split_tables(ground_truth, predictions, normal_class=normal)
    for threshold in (0.0, 0.35, 0.65, 0.85, 1.1):
        kept = results.keep(results.detections.score >= threshold)
        actual = count_images(kept.overlaps)
        expected = plain(ground_truth, predictions, threshold, NORMAL if normal else None)
        assert expected == {
            "defective": actual.num_defective,
            "escaped": actual.num_escaped,
            "unmarked": actual.num_unmarked,
            "good": actual.num_good,
            "overkilled": actual.num_overkilled,
            "boxes": round((actual.fp_per_good_image or 0) * actual.num_good),
            "excluded": actual.num_ignored,
        }
        assert actual.escape_rate == expected["escaped"] / expected["defective"]
        assert actual.overkill_rate == expected["overkilled"] / expected["good"]
        assert expected["defective"] > 5


def test_images_with_nothing_but_normal_boxes_are_good() -> None:
    ground_truth, _ = random_split(0, empty=True)
    box = {"image_id": 1000, "category_id": NORMAL, "bbox": [0.0, 0.0, 400.0, 400.0]}
    ground_truth["annotations"] = [box | {"id": 1, "iscrowd": 0}]
    predictions = [box | {"score": 0.9}]
    for normal, num_good, num_overkilled in ((None, 23, 0), ("NORMAL", 24, 0)):
        results = split_tables(ground_truth, predictions, normal_class=normal)
        actual = count_images(results.overlaps)
        assert (actual.num_good, actual.num_overkilled) == (num_good, num_overkilled)
        assert actual.num_defective == 24 - num_good


def curve_points(results: Split) -> list[tuple[float, float, float, float]]:
    curve = trace_escapes(results.overlaps)
    columns = (curve.thresholds, curve.escape_rate, curve.overkill_rate, curve.fp_per_good_image)
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("decimals", [1, 6])
def test_each_point_of_the_curve_is_what_counting_gives(decimals: int) -> None:
    results = split_tables(*random_split(1, decimals=decimals), normal_class="NORMAL")
    points = curve_points(results)
    for threshold, *rates in points:
        kept = results.keep(results.detections.score >= threshold)
        actual = count_images(kept.overlaps)
        expected = [actual.escape_rate, actual.overkill_rate, actual.fp_per_good_image]
        assert rates == pytest.approx(expected)
    thresholds = [point[0] for point in points]
    assert thresholds == sorted(thresholds, reverse=True)
    assert points[0][1:] == (1.0, 0.0, 0.0)  # the first keeps nothing
    assert points[-1][1] == count_images(results.overlaps).escape_rate  # the last everything


@pytest.mark.parametrize(("seed", "num_images"), [(2, 400), (3, 31)])
def test_the_rates_of_every_threshold_are_a_point_of_the_curve(seed: int, num_images: int) -> None:
    results = split_tables(*random_split(seed, num_images=num_images, decimals=6))
    points = curve_points(results)
    assert len(points) <= num_images + 2
    assert all(first[1:3] != other[1:3] for first, other in pairwise(points[:-1]))
    for threshold in np.random.default_rng(seed).choice(results.detections.score, 40):
        actual = count_images(results.keep(results.detections.score >= threshold).overlaps)
        assert (actual.escape_rate, actual.overkill_rate) in {point[1:3] for point in points}


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_for_escapes_is_the_highest_that_holds_the_limit(seed: int, limit: float) -> None:
    results = split_tables(*random_split(seed, num_images=60), normal_class="NORMAL")
    threshold = threshold_for_escapes(results.overlaps, max_rate=limit)

    def escapes(at: float) -> float:
        kept = results.keep(results.detections.score >= at)
        rate = count_images(kept.overlaps).escape_rate
        assert rate is not None
        return rate

    if threshold is None:
        assert escapes(0.0) > limit
        return
    assert escapes(threshold) <= limit
    higher = results.detections.score[results.detections.score >= threshold].min()
    assert escapes(float(np.nextafter(higher, 2.0))) > limit


@pytest.mark.parametrize("empty", ["truth", "predictions", "images"])
def test_what_cannot_be_told_is_none(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=empty != "predictions")
    if empty == "images":
        ground_truth, predictions = ground_truth | {"images": []}, []
    results = split_tables(ground_truth, [] if empty == "predictions" else predictions)
    overlaps = results.overlaps
    actual = count_images(overlaps)
    assert threshold_for_escapes(overlaps, max_rate=0.01) is None
    curve = trace_escapes(overlaps)
    if empty == "predictions":
        assert (actual.escape_rate, actual.unmarked_rate, actual.overkill_rate) == (1.0, 1.0, 0.0)
        assert (curve.escape_rate, curve.overkill_rate) == ((1.0,), (0.0,))
    else:
        assert (actual.escape_rate, actual.unmarked_rate) == (None, None)
        assert set(curve.escape_rate) == {None}
        assert (actual.overkill_rate is None) == (empty == "images")
