"""Non-maximum suppression."""

import numpy as np
import pytest

from deim.errors import ConfigError
from deim.inference.detection_table import DetectionTable
from deim.inference.operating_points import NmsOptions, NmsRule, apply_nms, candidate_rules
from tests.metrics.random_results import random_split, split_tables


def actual(*rows: tuple[int, int, list[float], float, int]) -> DetectionTable:
    """Detections of image, label, box, score, query."""
    image, label, boxes, scores, query = zip(*rows, strict=True)
    return DetectionTable(
        image=np.array(image),
        label=np.array(label),
        boxes_xywh=np.array(boxes, dtype=np.float64),
        score=np.array(scores),
        query=np.array(query),
    )


A, NEAR_A, FAR = [10.0, 10.0, 40.0, 40.0], [12.0, 10.0, 40.0, 40.0], [200.0, 10.0, 40.0, 40.0]
ROWS = actual(
    (0, 0, A, 0.9, 0),
    (0, 1, A, 0.8, 0),  # the same query, another class
    (0, 0, NEAR_A, 0.7, 1),  # another query, the same class
    (0, 2, NEAR_A, 0.6, 2),
    (0, 0, FAR, 0.5, 3),
    (1, 0, A, 0.4, 0),  # another image
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (NmsRule(), [True] * 6),
        (NmsRule(best_class_per_query=True), [True, False, True, True, True, True]),
        (NmsRule(mode="class_aware", iou_threshold=0.5), [True, True, False, True, True, True]),
        (NmsRule(mode="agnostic", iou_threshold=0.5), [True, False, False, False, True, True]),
        (NmsRule(mode="agnostic", iou_threshold=0.95), [True, False, True, False, True, True]),
        (
            NmsRule(best_class_per_query=True, mode="class_aware", iou_threshold=0.5),
            [True, False, False, True, True, True],
        ),
    ],
)
def test_what_each_rule_keeps(rule: NmsRule, expected: list[bool]) -> None:
    assert apply_nms(ROWS, rule).tolist() == expected


def test_identical_boxes_with_two_labels_become_one_box() -> None:
    two = actual((0, 0, A, 0.9, 5), (0, 1, A, 0.9, 5))
    for rule in (NmsRule(best_class_per_query=True), NmsRule(mode="agnostic", iou_threshold=0.7)):
        assert apply_nms(two, rule).tolist() == [True, False]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_stays_overlaps_a_better_one_that_stays(seed: int) -> None:
    every = split_tables(*random_split(seed, decimals=6)).detections
    kept = every.take(apply_nms(every, NmsRule(mode="agnostic", iou_threshold=0.4)))
    assert 0 < len(kept) < len(every)
    for image in np.unique(kept.image):
        boxes = kept.boxes_xywh[kept.image == image]
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
        shared = sides.clip(0).prod(axis=-1)
        area = boxes[:, 2:].prod(axis=1)
        iou = shared / (area[:, None] + area[None] - shared)
        assert (iou[np.triu_indices(len(boxes), 1)] <= 0.4).all()


def test_unknown_queries_are_no_reason_to_suppress() -> None:
    unknown = actual((0, 0, A, 0.9, -1), (0, 1, A, 0.8, -1))
    assert apply_nms(unknown, NmsRule(best_class_per_query=True)).tolist() == [True, True]


def test_no_detections() -> None:
    nothing = ROWS.take(np.zeros(6, dtype=bool))
    rule = NmsRule(best_class_per_query=True, mode="agnostic", iou_threshold=0.5)
    assert apply_nms(nothing, rule).shape == (0,)


def test_auto_searches_from_gentle_to_hard_and_fixed_options_stay() -> None:
    rules = candidate_rules(NmsOptions())
    assert rules[0] == NmsRule()
    assert len(rules) == len(set(rules)) == 2 * (1 + 5 + 5)
    (fixed,) = candidate_rules(NmsOptions(mode="agnostic", iou_threshold=0.7, best_class_per_query=True))
    assert fixed == NmsRule(best_class_per_query=True, mode="agnostic", iou_threshold=0.7)
    (off,) = candidate_rules(NmsOptions(mode="none", best_class_per_query=False))
    assert off == NmsRule()


def test_options_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"iou_threshold: got 0\.7, of no use with mode none"):
        NmsOptions(mode="none", iou_threshold=0.7)
    with pytest.raises(ConfigError, match=r"iou_threshold: got 1\.0, needs \(0, 1\)"):
        NmsOptions(mode="agnostic", iou_threshold=1.0)


def test_rules_in_words() -> None:
    assert NmsRule().describe() == "none"
    assert (
        NmsRule(best_class_per_query=True, mode="class_aware", iou_threshold=0.7).describe()
        == "best class of each query; no box that overlaps a better one of its class by IoU > 0.7"
    )
