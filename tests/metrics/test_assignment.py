"""COCO's assignment against pycocotools, detection by detection."""

import contextlib
import io

import numpy as np
import pytest

from deim.metrics.assignment import rank_in_class
from tests.metrics.random_results import CATEGORY_IDS, Split, random_split, split_tables


def official_matches(ground_truth: dict, results: Split) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) id of the annotation that each detection hits (0: none), and whether it is ignored."""
    coco_module = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        actual = results.detections
        detections = coco.loadRes(
            [
                {
                    "image_id": results.truth.image_ids[actual.image[k]],
                    "category_id": results.truth.category_ids[actual.label[k]],
                    "bbox": actual.boxes_xywh[k].tolist(),
                    "score": float(actual.score[k]),
                }
                for k in range(len(actual))
            ]
        )
        evaluated = cocoeval.COCOeval(coco, detections, "bbox")
        evaluated.params.maxDets = [1000]
        evaluated.params.areaRng, evaluated.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluated.evaluate()
    hit = np.zeros((10, len(actual)), dtype=np.int64)
    ignored = np.zeros((10, len(actual)), dtype=bool)
    for entry in evaluated.evalImgs:
        if entry is not None:
            columns = np.array(entry["dtIds"], dtype=np.int64) - 1  # loadRes counts from 1, in our order
            hit[:, columns] = entry["dtMatches"]
            ignored[:, columns] = entry["dtIgnore"]
    return hit, ignored


@pytest.mark.parametrize("seed", range(4))
def test_hits_and_ignored_detections_equal_those_of_pycocotools(seed: int) -> None:
    ground_truth, predictions = random_split(seed)
    results = split_tables(ground_truth, predictions)
    actual = results.overlaps.coco_assignment
    hit, ignored = official_matches(ground_truth, results)
    ids = np.array([box["id"] for box in ground_truth["annotations"]])
    ours = np.where(actual.is_tp, ids[actual.truth], 0)
    np.testing.assert_array_equal(ours, np.where(ignored, 0, hit))
    np.testing.assert_array_equal(actual.is_ignored, ignored)
    assert actual.is_tp[0].sum() > 20
    assert actual.is_ignored[0].sum() > 3
    assert (actual.is_tp[0] != actual.is_tp[-1]).any()


def test_a_box_is_hit_once_and_only_by_its_own_class() -> None:
    ground_truth, predictions = random_split(5)
    results = split_tables(ground_truth, predictions)
    actual = results.overlaps.assignment
    hits = np.flatnonzero(actual.is_tp[0])
    truths = actual.truth[0, hits]
    assert len(set(truths.tolist())) == len(truths)
    np.testing.assert_array_equal(results.truth.label[truths], results.detections.label[hits])
    np.testing.assert_array_equal(results.truth.image[truths], results.detections.image[hits])
    assert not results.truth.is_crowd[truths].any()


def test_leaving_out_low_scores_changes_no_hit_of_high_ones() -> None:
    results = split_tables(*random_split(6, decimals=6))
    overlaps = results.overlaps
    all_hits = overlaps.assignment.truth[0]
    kept = results.detections.score >= 0.4
    for fewer in (results.keep(kept).overlaps, overlaps.take(kept), overlaps.take(np.flatnonzero(kept))):
        np.testing.assert_array_equal(fewer.assignment.truth[0], all_hits[kept])
    assert overlaps.take(np.ones_like(kept)) is overlaps


@pytest.mark.parametrize("empty", ["truth", "predictions", "images"])
def test_nothing_to_assign(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=True)
    if empty == "predictions":
        predictions = []
    if empty == "images":
        ground_truth, predictions = ground_truth | {"images": []}, []
    results = split_tables(ground_truth, predictions)
    actual = results.overlaps.assignment
    assert actual.truth.shape == (1, len(predictions))
    assert not actual.is_tp.any()
    assert actual.is_fp.all()


def test_results_are_sorted_by_image_and_falling_score_whatever_the_order_of_the_file() -> None:
    ground_truth, predictions = random_split(1)
    actual = split_tables(ground_truth, predictions).detections
    key = list(zip(actual.image.tolist(), (-actual.score).tolist(), strict=True))
    assert key == sorted(key)
    assert len(actual) == len(predictions)
    assert {CATEGORY_IDS[label] for label in actual.label} == {first["category_id"] for first in predictions}


def test_rank_in_class_counts_from_the_best_of_each_image_and_class() -> None:
    actual = split_tables(*random_split(2)).detections
    expected, seen = [], {}
    for image, label in zip(actual.image.tolist(), actual.label.tolist(), strict=True):
        expected.append(seen.get((image, label), 0))
        seen[image, label] = expected[-1] + 1
    assert rank_in_class(actual).tolist() == expected
    assert max(expected) > 100
