"""The confusion matrix: its sums, its diagonal, its words."""

from typing import Any

import numpy as np
import pytest

from deim.metrics.choose_thresholds import count_classes
from deim.metrics.confusion import Confusion, compute_confusion
from tests.metrics.random_results import CLASS_NAMES, Split, random_split, split_tables


def confusion_of(results: Split) -> Confusion:
    return compute_confusion(results.overlaps)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_rows_sum_to_ground_truth_columns_to_detections_and_the_diagonal_is_right(
    seed: int, threshold: float
) -> None:
    results = split_tables(*random_split(seed))
    results = results.keep(results.detections.score >= threshold)
    counts = np.array(confusion_of(results).counts)
    assignment = results.overlaps.assignment
    truth = results.truth.label[~results.truth.is_crowd]
    np.testing.assert_array_equal(counts[:-1].sum(axis=1), np.bincount(truth, minlength=7))
    counted = results.detections.label[~assignment.is_ignored[0]]
    np.testing.assert_array_equal(counts[:, :-1].sum(axis=0), np.bincount(counted, minlength=7))
    right = [entry.tp for entry in count_classes(results.overlaps)]
    assert np.diag(counts)[:-1].tolist() == right
    assert counts[-1, -1] == 0
    if threshold == 2.0:
        assert counts[:, :-1].sum() == 0


def boxes(*rows: tuple[int, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image with a box a row: true class and found class, each at a place of its own."""
    content, _ = random_split(0, num_classes=3, empty=True)
    ids = [category["id"] for category in content["categories"]]
    places = [{"image_id": 1000, "bbox": [60.0 * k, 10.0, 40.0, 40.0]} for k in range(len(rows))]
    for place, (true, _) in zip(places, rows, strict=True):
        content["annotations"].append(
            place | {"id": len(content["annotations"]), "category_id": ids[true], "iscrowd": 0}
        )
    actual = [
        place | {"category_id": ids[seen], "score": 0.9}
        for place, (_, seen) in zip(places, rows, strict=True)
        if seen >= 0
    ]
    return content, actual


def test_the_most_confused_pair_is_named_with_both_directions() -> None:
    actual = confusion_of(split_tables(*boxes((0, 2), (0, 2), (0, 0), (2, 0), (1, 0), (1, -1))))
    assert actual.most_confused == (
        "2 of 3 scratch were predicted as crack (67%), and 1 of 1 crack as scratch (100%)"
    )
    assert actual.labels == ("scratch", "pit", "crack", "background")
    assert actual.counts == ((1, 0, 2, 0), (1, 0, 0, 1), (1, 0, 0, 0), (0, 0, 0, 0))
    assert actual.row_percent[0] == pytest.approx((100 / 3, 0, 200 / 3, 0))
    assert actual.row_percent[3] == (None, None, None, None)


def test_without_confusion_nothing_is_named() -> None:
    assert confusion_of(split_tables(*boxes((0, 0), (1, -1)))).most_confused is None


def test_a_right_box_counts_as_right_though_another_class_overlaps_better() -> None:
    content, actual = boxes((0, 0))
    shifted = actual[0] | {"bbox": [0.0, 14.0, 40.0, 40.0]}
    wrong = actual[0] | {"category_id": content["categories"][1]["id"], "score": 0.95}
    counts = confusion_of(split_tables(content, [shifted, wrong])).counts
    assert counts[0] == (1, 0, 0, 0)
    assert counts[3] == (0, 1, 0, 0)  # the other one found nothing that was left


def test_only_empty_images() -> None:
    results = split_tables(*random_split(0, empty=True))
    actual = confusion_of(results)
    assert np.array(actual.counts)[:-1].sum() == 0
    assert np.array(actual.counts)[-1].sum() == len(results.detections)
    assert actual.most_confused is None
    assert len(actual.labels) == len(CLASS_NAMES) + 1
