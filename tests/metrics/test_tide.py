"""Kinds of errors on boxes made by hand, and gains against COCO's numbers of detections that were mended."""

from typing import Any

import numpy as np
import pytest

from deim.metrics.assignment import rank_in_class
from deim.metrics.average_precision import average_precision
from deim.metrics.tide import (
    ERROR_KINDS,
    ErrorKind,
    ErrorKinds,
    TideDeltaAp50,
    classify_errors,
    count_errors,
    tide_delta_ap50,
)
from tests.metrics.random_results import Split, coco_metrics, random_split, split_tables

SCRATCH, PIT = 5, 6
FIRST = [100.0, 100.0, 40.0, 40.0]
OFF = [120.0, 100.0, 40.0, 40.0]
"""IoU 1/3 with `FIRST`."""
NEAR = [104.0, 100.0, 40.0, 40.0]
"""IoU 9/11 with `FIRST`."""
FAR = [300.0, 300.0, 40.0, 40.0]


def split_of(
    truth: list[tuple[int, list[float]]], actual: list[tuple[int, list[float], float]], *, crowd: bool = False
) -> Split:
    """One image, two classes."""
    return split_tables(
        {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": SCRATCH, "name": "scratch"}, {"id": PIT, "name": "pit"}],
            "annotations": [
                {"image_id": 1, "category_id": category, "bbox": box, "iscrowd": int(crowd)}
                for category, box in truth
            ],
        },
        [
            {"image_id": 1, "category_id": category, "bbox": box, "score": score}
            for category, box, score in actual
        ],
    )


def kinds_of(results: Split) -> ErrorKinds:
    return classify_errors(results.overlaps)


def deltas_of(results: Split) -> TideDeltaAp50:
    return tide_delta_ap50(results.overlaps)


@pytest.mark.parametrize(
    ("truth", "actual", "kind", "about", "missed"),
    [
        ([(SCRATCH, FIRST)], [(SCRATCH, NEAR, 0.9)], ErrorKind.TP, 0, [False]),
        ([(SCRATCH, FIRST)], [(PIT, NEAR, 0.9)], ErrorKind.CLASSIFICATION, 0, [False]),
        ([(SCRATCH, FIRST)], [(SCRATCH, OFF, 0.9)], ErrorKind.LOCALIZATION, 0, [False]),
        ([(SCRATCH, FIRST)], [(PIT, OFF, 0.9)], ErrorKind.BOTH, 0, [True]),
        ([(SCRATCH, FIRST)], [(SCRATCH, FAR, 0.9)], ErrorKind.BACKGROUND, -1, [True]),
        ([], [(SCRATCH, FAR, 0.9)], ErrorKind.BACKGROUND, -1, []),
        ([(SCRATCH, FIRST)], [(SCRATCH, NEAR, 0.1), (SCRATCH, FIRST, 0.9)], ErrorKind.DUPLICATE, 0, [False]),
    ],
)
def test_each_kind(
    truth: list[Any], actual: list[Any], kind: ErrorKind, about: int, missed: list[bool]
) -> None:
    kinds = kinds_of(split_of(truth, actual))
    assert kinds.kind[-1] == kind
    assert kinds.truth[-1] == about
    assert kinds.is_fn.tolist() == missed


@pytest.mark.parametrize(
    ("truth", "actual", "kind", "about"),
    [
        # Its own class lies a little off, and another class exactly here.
        ([(SCRATCH, OFF), (PIT, FIRST)], [(SCRATCH, FIRST, 0.9)], ErrorKind.LOCALIZATION, 0),
        # Its own class is here but hit already, and so is another class.
        (
            [(SCRATCH, FIRST), (PIT, NEAR)],
            [(SCRATCH, FIRST, 0.9), (SCRATCH, NEAR, 0.5)],
            ErrorKind.CLASSIFICATION,
            1,
        ),
        # Its own class is here but hit already, and another class is near.
        (
            [(SCRATCH, FIRST), (PIT, OFF)],
            [(SCRATCH, FIRST, 0.9), (SCRATCH, FIRST, 0.5)],
            ErrorKind.DUPLICATE,
            0,
        ),
    ],
)
def test_order_of_the_tests(truth: list[Any], actual: list[Any], kind: ErrorKind, about: int) -> None:
    kinds = kinds_of(split_of(truth, actual))
    assert kinds.kind[-1] == kind
    assert kinds.truth[-1] == about


def test_iou_of_one_half_is_no_localization_error_and_of_one_tenth_no_background() -> None:
    half = split_of([(SCRATCH, [0, 0, 20, 10])], [(PIT, [0, 0, 10, 10], 0.9)])
    tenth = split_of([(SCRATCH, [0, 0, 100, 10])], [(SCRATCH, [0, 0, 10, 10], 0.9)])
    assert kinds_of(half).kind[0] == ErrorKind.CLASSIFICATION
    assert kinds_of(tenth).kind[0] == ErrorKind.LOCALIZATION


def test_crowd_regions_explain_nothing_and_are_not_missed() -> None:
    kinds = kinds_of(split_of([(SCRATCH, FIRST)], [(SCRATCH, NEAR, 0.9), (PIT, FIRST, 0.8)], crowd=True))
    assert kinds.kind.tolist() == [ErrorKind.IGNORED, ErrorKind.BACKGROUND]
    assert kinds.truth.tolist() == [-1, -1]
    assert kinds.is_fn.tolist() == [False]


def test_an_error_is_about_the_box_that_it_overlaps_most() -> None:
    kinds = kinds_of(split_of([(PIT, NEAR), (PIT, FIRST), (PIT, OFF)], [(SCRATCH, FIRST, 0.9)]))
    assert kinds.truth.tolist() == [1]
    assert kinds.is_fn.tolist() == [True, False, True]


@pytest.mark.parametrize("seed", range(3))
def test_every_detection_has_a_kind_and_counts_add_up(seed: int) -> None:
    results = split_tables(*random_split(seed))
    overlaps = results.overlaps
    assignment = overlaps.assignment
    kinds = classify_errors(overlaps)
    np.testing.assert_array_equal(kinds.kind == ErrorKind.TP, assignment.is_tp[0])
    np.testing.assert_array_equal(kinds.kind == ErrorKind.IGNORED, assignment.is_ignored[0])
    np.testing.assert_array_equal(kinds.kind >= 0, assignment.is_fp[0])
    assert set(kinds.kind[kinds.kind >= 0].tolist()) == {0, 1, 2, 3, 4}
    counts = count_errors(overlaps, kinds)
    assert counts.shape == (len(ERROR_KINDS), results.truth.num_classes)
    np.testing.assert_array_equal(
        counts[:5].sum(axis=0), np.bincount(results.detections.label[assignment.is_fp[0]], minlength=7)
    )
    assert counts[ErrorKind.MISSED].sum() == kinds.is_fn.sum() > 0
    absent, never, crowd = 3, 4, 5
    assert counts[ErrorKind.MISSED, [absent, crowd]].tolist() == [0, 0]
    assert counts[:5, never].tolist() == [0] * 5
    assert counts[ErrorKind.MISSED, never] > 0


@pytest.mark.parametrize(
    ("is_hit", "num_truth", "expected"),
    [
        ([], 0, None),
        ([False], 0, None),
        ([], 2, 0.0),
        ([False], 2, 0.0),
        ([True], 1, 1.0),
        ([False, True], 1, 0.5),
        ([True, False, False], 1, 1.0),
        # Precision 1 up to recall 0.25 (26 levels), 2/3 up to 0.50 (25 levels), nothing beyond.
        ([True, False, True], 4, (26 + 25 * 2 / 3) / 101),
    ],
)
def test_average_precision(is_hit: list[bool], num_truth: int, expected: float | None) -> None:
    assert average_precision(np.array(is_hit, dtype=np.bool_), num_truth) == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [1, 6])
def test_ap50_is_that_of_coco_and_every_kind_costs_some(seed: int, decimals: int) -> None:
    ground_truth, predictions = random_split(seed, decimals=decimals)
    # Equal scores are ranked by the id of the image, whatever its place in the file.
    ground_truth["images"] = ground_truth["images"][::-1]
    actual = deltas_of(split_tables(ground_truth, predictions))
    expected = coco_metrics(ground_truth, predictions).summary.ap50
    assert actual.ap50 == pytest.approx(expected, abs=1e-9)
    assert tuple(actual.deltas) == ERROR_KINDS
    assert all(gain is not None and gain > 1e-4 for gain in actual.deltas.values())


def mended(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], kind: ErrorKind
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The files as they would be without the errors of one kind, box by box."""
    results = split_tables(ground_truth, predictions)
    kinds = kinds_of(results)
    truth_labels = results.truth.label
    best: dict[int, int] = {}
    for first in range(len(results.detections)):
        if kinds.kind[first] in (ErrorKind.TP, kind):
            best.setdefault(int(kinds.truth[first]), first)
    fixed = []
    for first in range(len(results.detections)):
        entry = {
            "image_id": results.truth.image_ids[results.detections.image[first]],
            "category_id": results.truth.category_ids[results.detections.label[first]],
            "bbox": results.detections.boxes_xywh[first].tolist(),
            "score": float(results.detections.score[first]),
        }
        box = int(kinds.truth[first])
        if kind in (ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION):
            if kinds.kind[first] in (ErrorKind.TP, kind) and best[box] != first:
                continue
            if kinds.kind[first] == kind:
                entry["category_id"] = results.truth.category_ids[truth_labels[box]]
                entry["bbox"] = results.truth.boxes_xywh[box].tolist()
        elif kinds.kind[first] == kind:
            continue
        fixed.append(entry)
    missed = {
        (results.truth.image_ids[results.truth.image[box]], *results.truth.boxes_xywh[box].tolist())
        for box in np.flatnonzero(kinds.is_fn)
    }
    kept = [
        box
        for box in ground_truth["annotations"]
        if kind != ErrorKind.MISSED or (box["image_id"], *box["bbox"]) not in missed
    ]
    return ground_truth | {"annotations": kept}, fixed


@pytest.mark.parametrize("kind", ERROR_KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_gains_are_those_of_mended_files(seed: int, kind: ErrorKind) -> None:
    ground_truth, predictions = random_split(seed, decimals=6)
    results = split_tables(ground_truth, predictions)
    # With room below the limit of 100 for those that change their class.
    few = set(results.detections.query[rank_in_class(results.detections) < 40].tolist())
    predictions = [entry for entry in predictions if entry["query"] in few]
    actual = deltas_of(split_tables(ground_truth, predictions))
    expected = coco_metrics(*mended(ground_truth, predictions, kind)).summary.ap50
    assert actual.ap50 + actual.deltas[kind] == pytest.approx(expected, abs=1e-9)


def test_a_mended_detection_yields_to_a_higher_score_on_its_box() -> None:
    truth = [(SCRATCH, FIRST)]
    late = deltas_of(split_of(truth, [(SCRATCH, FIRST, 0.9), (PIT, FIRST, 0.5)]))
    assert late.ap50 == 1.0
    assert late.deltas[ErrorKind.CLASSIFICATION] == 0.0
    early = deltas_of(split_of(truth, [(SCRATCH, FAR, 0.7), (SCRATCH, FIRST, 0.6), (PIT, FIRST, 0.9)]))
    assert early.ap50 == 0.5
    assert early.deltas[ErrorKind.CLASSIFICATION] == pytest.approx(0.5)
    assert early.deltas[ErrorKind.BACKGROUND] == pytest.approx(0.5)
    assert early.deltas[ErrorKind.MISSED] == 0.0


def test_detections_beyond_the_hundredth_do_not_count() -> None:
    crowded = [(SCRATCH, [*FAR[:2], 5.0 + k, 5.0], 0.9 - 0.001 * k) for k in range(100)]
    actual = deltas_of(split_of([(SCRATCH, FIRST)], [*crowded, (SCRATCH, FIRST, 0.1)]))
    assert actual.ap50 == 0.0
    assert actual.deltas[ErrorKind.BACKGROUND] == 0.0
    assert actual.deltas[ErrorKind.MISSED] is None  # every box is missed


def test_a_class_that_is_missed_throughout_leaves_the_mean() -> None:
    actual = deltas_of(split_of([(SCRATCH, FIRST), (PIT, FAR)], [(SCRATCH, FIRST, 0.9)]))
    assert actual.ap50 == 0.5
    assert actual.deltas[ErrorKind.MISSED] == 0.5


@pytest.mark.parametrize("empty", ["truth", "predictions", "images"])
def test_sets_without_truth_or_detections(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=empty != "predictions")
    if empty != "truth":
        predictions = []
    if empty == "images":
        ground_truth = ground_truth | {"images": []}
    results = split_tables(ground_truth, predictions)
    kinds, improvements = kinds_of(results), deltas_of(results)
    if empty == "predictions":
        assert kinds.is_fn.sum() == (~results.truth.is_crowd).sum()
        assert improvements.ap50 == 0.0
        assert improvements.deltas == dict.fromkeys(ERROR_KINDS, 0.0) | {ErrorKind.MISSED: None}
    else:
        assert (kinds.kind == ErrorKind.BACKGROUND).all()
        assert improvements.ap50 is None
        assert improvements.deltas == dict.fromkeys(ERROR_KINDS)
    assert count_errors(results.overlaps, kinds).shape == (6, 7)
