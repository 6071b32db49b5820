"""Thresholds against brute force, and what they keep."""

from typing import Any

import numpy as np
import pytest

from deim.inference.operating_points import (
    BestF1Goal,
    FalseBoxesGoal,
    Goal,
    NmsRule,
    OperatingPoints,
    RecallGoal,
)
from deim.metrics.choose_thresholds import (
    choose_operating_points,
    count_all,
    count_classes,
    mean_f1,
)
from deim.records import from_json, to_json
from tests.metrics.random_results import CLASS_NAMES, Split, random_split, split_tables

GOALS: list[Goal] = [
    BestF1Goal(),
    RecallGoal(type="recall", at_least=0.5),
    FalseBoxesGoal(type="false_boxes", at_most_per_image=0.2),
]


def choose(results: Split, goal: Goal = BestF1Goal(), *rules: NmsRule) -> OperatingPoints:  # noqa: B008
    return choose_operating_points(
        *results,
        goal=goal,
        rules=rules or [NmsRule()],
        split_name="val",
        annotations_sha256="c" * 64,
        default_threshold=0.4,
        max_escape_rate=0.01,
    )


def keep(results: Split, points: OperatingPoints) -> Split:
    return results.keep(points.keep(results.detections))


def plain_counts(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], category_id: int, threshold: float
) -> tuple[int, int, int]:
    """Right and false boxes and the number of ground-truth boxes, by loops over the files' entries."""
    truth = [box for box in ground_truth["annotations"] if box["category_id"] == category_id]
    actual = [
        item for item in predictions if item["category_id"] == category_id and item["score"] >= threshold
    ]
    taken: set[int] = set()
    right = false = 0

    def iou(a: list[float], b: list[float], *, crowd: int) -> float:
        across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        shared = max(across, 0) * max(down, 0)
        return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)

    for item in sorted(actual, key=lambda entry: -entry["score"]):
        near = [
            (iou(item["bbox"], box["bbox"], crowd=box["iscrowd"]), box)
            for box in truth
            if box["image_id"] == item["image_id"]
        ]
        near = [(overlap, box) for overlap, box in near if overlap >= 0.5]
        free = [(o, box["id"]) for o, box in near if not box["iscrowd"] and box["id"] not in taken]
        if free:
            taken.add(max(free)[1])
            right += 1
        elif not any(box["iscrowd"] for _, box in near):
            false += 1
    return right, false, sum(not box["iscrowd"] for box in truth)


def brute_force(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], category_id: int, goal: Goal
) -> tuple[int, int]:
    """Right and false boxes at the best of all thresholds."""
    scores = sorted(
        {item["score"] for item in predictions if item["category_id"] == category_id}, reverse=True
    )
    trials = [plain_counts(ground_truth, predictions, category_id, score) for score in scores]
    num_boxes = trials[0][2]
    match goal:
        case BestF1Goal():
            best = max(trials, key=lambda trial: 2 * trial[0] / (trial[0] + trial[1] + num_boxes))
        case RecallGoal():
            enough = [trial for trial in trials if trial[0] / num_boxes >= goal.at_least]
            best = enough[0] if enough else max(trials, key=lambda trial: trial[0])
        case FalseBoxesGoal():
            few = [
                trial for trial in trials if trial[1] / len(ground_truth["images"]) <= goal.at_most_per_image
            ]
            best = few[-1] if few else (0, 0, num_boxes)
    return best[0], best[1]


@pytest.mark.parametrize("decimals", [1, 6])
@pytest.mark.parametrize("goal", GOALS, ids=["best F1", "recall", "false boxes"])
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_and_counts_equal_brute_force(seed: int, goal: Goal, decimals: int) -> None:
    ground_truth, predictions = random_split(seed, decimals=decimals)
    results = split_tables(ground_truth, predictions)
    points = choose(results, goal)
    kept = keep(results, points)
    counts = count_classes(kept.overlaps)
    for label, name in enumerate(CLASS_NAMES):
        entry = points.classes[label]
        category_id = results.truth.category_ids[label]
        # The counts of the report are those of plain loops, whatever the threshold.
        plain = plain_counts(ground_truth, predictions, category_id, entry.threshold)
        assert (counts[label].tp, counts[label].fp, counts[label].num_boxes) == plain
        if name not in ("absent", "never predicted", "only crowd"):
            assert plain[:2] == brute_force(ground_truth, predictions, category_id, goal), name
            assert entry.origin == "its own boxes"
    assert sum(entry.tp for entry in counts) > 3


@pytest.mark.parametrize("goal", GOALS, ids=["best F1", "recall", "false boxes"])
def test_thresholds_lie_between_scores(goal: Goal) -> None:
    results = split_tables(*random_split(0, decimals=6))
    for label, entry in enumerate(choose(results, goal).classes):
        scores = results.detections.score[results.detections.label == label]
        assert not (scores == entry.threshold).any()


def test_classes_without_boxes_take_the_threshold_of_all() -> None:
    results = split_tables(*random_split(0))
    points = {entry.name: entry for entry in choose(results).classes}
    for name, note in (
        ("absent", "no ground-truth box of this class to choose on"),
        ("only crowd", "no ground-truth box of this class to choose on"),
        ("never predicted", "never predicted to choose on"),
    ):
        assert points[name].origin == "all classes together"
        assert points[name].note == note
    assert points["absent"].threshold == points["never predicted"].threshold > 0


@pytest.mark.parametrize("empty", ["truth", "predictions"])
def test_without_anything_to_choose_on_the_default_threshold_holds(empty: str) -> None:
    ground_truth, predictions = random_split(0, empty=empty == "truth")
    results = split_tables(ground_truth, [] if empty == "predictions" else predictions)
    points = choose(results)
    assert {entry.threshold for entry in points.classes} == {0.4}
    assert {entry.origin for entry in points.classes} == {"default"}
    assert points.default_reason is not None
    assert "stay at the default, 0.4" in points.default_reason
    kept = keep(results, points)
    assert (kept.detections.score >= 0.4).all()


def hits_among_false(num_fp: int, *, num_hits: int = 2) -> Split:
    """Two boxes, some of them found with low scores: with both hits, mAP50 is 2 / (2 + num_fp)."""
    images = [{"id": n, "width": 100, "height": 100, "file_name": f"{n}.png"} for n in range(2)]
    boxes = [{"id": n + 1, "image_id": n, "category_id": 3, "bbox": [5, 5, 20, 20]} for n in range(2)]
    entries = [entry | {"area": 400, "iscrowd": 0} for entry in boxes]
    truth = {"images": images, "annotations": entries, "categories": [{"id": 3, "name": "pit"}]}
    plain = {"category_id": 3, "query": 0}
    hits = [plain | {"image_id": n, "bbox": [5.0, 5.0, 20.0, 20.0], "score": 0.1} for n in range(num_hits)]
    false = [plain | {"image_id": n % 2, "bbox": [60.0, 60.0, 9.0, 9.0], "score": 0.9} for n in range(num_fp)]
    return split_tables(truth, hits + false)


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.type)
@pytest.mark.parametrize("num_fp", [0, 100, 180, 194])
def test_a_detector_that_has_learned_something_gets_thresholds_for_its_goal(goal: Goal, num_fp: int) -> None:
    points = choose(hits_among_false(num_fp), goal)
    assert points.default_reason is None
    assert points.classes[0].origin == "its own boxes"
    assert points.escape_threshold is not None
    assert points.describe_origin().endswith(", chosen on val")


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.type)
@pytest.mark.parametrize("num_hits", [0, 1])
def test_a_detector_that_has_learned_nothing_keeps_the_default(goal: Goal, num_hits: int) -> None:
    results = hits_among_false(198, num_hits=num_hits)
    points = choose(results, goal, NmsRule(), NmsRule(mode="agnostic", iou_threshold=0.5))
    (pit,) = points.classes
    assert (pit.threshold, pit.origin, points.nms) == (0.4, "default", NmsRule())
    assert points.escape_threshold is None
    assert points.default_reason is not None
    assert points.default_reason.startswith("The detector has learned nothing: mAP50 on val is 0")
    assert "more epochs, or start from trained weights with model.init_from" in points.default_reason
    assert points.describe_origin() == "default thresholds, none chosen on val"
    assert from_json(OperatingPoints, to_json(points)) == points


def test_goals_out_of_reach_are_said_to_be() -> None:
    results = split_tables(*random_split(0))
    scratch = choose(results, RecallGoal(type="recall", at_least=1.0)).classes[0]
    assert scratch.note is not None
    assert scratch.note.startswith("recall 1 is out of reach, the highest is 0.")
    pit = choose(results, FalseBoxesGoal(type="false_boxes", at_most_per_image=0.0)).classes[1]
    assert pit.note == "even the highest scores are false in more than 0 boxes an image"
    assert pit.threshold > results.detections.score[results.detections.label == 1].max()


def test_precision_recall_and_f1_are_those_of_the_counts() -> None:
    results = split_tables(*random_split(3))
    kept = keep(results, choose(results))
    counts = count_classes(kept.overlaps)
    for entry in counts:
        assert entry.num_detections == entry.tp + entry.fp
        assert entry.num_boxes == entry.tp + entry.fn
        assert (entry.precision is None) == (entry.num_detections == 0)
        assert (entry.recall is None) == (entry.f1 is None) == (entry.num_boxes == 0)
        if entry.tp:
            expected = 2 / (1 / entry.precision + 1 / entry.recall)
            assert entry.f1 == pytest.approx(expected)
    total = count_all(counts)
    for name in ("num_boxes", "num_detections", "tp", "fp", "fn"):
        assert getattr(total, name) == sum(getattr(entry, name) for entry in counts)
    assert counts[CLASS_NAMES.index("never predicted")].f1 == 0
    assert counts[CLASS_NAMES.index("absent")].f1 is None


def test_the_rule_of_suppression_with_the_best_f1_wins_and_of_equals_the_first() -> None:
    ground_truth, predictions = random_split(4, decimals=6)
    doubled = [*predictions, *({**item, "score": item["score"] * 0.999} for item in predictions)]
    rules = [NmsRule(), NmsRule(mode="class_aware", iou_threshold=0.7)]
    results = split_tables(ground_truth, doubled)
    points = choose(results, BestF1Goal(), *rules)
    assert points.nms == rules[1]
    same = [NmsRule(), NmsRule(best_class_per_query=True)]  # every query has one class here
    assert choose(split_tables(ground_truth, predictions), BestF1Goal(), *same).nms == same[0]
    scores = []
    for rule in rules:
        kept = keep(results, choose(results, BestF1Goal(), rule))
        scores.append(mean_f1(count_classes(kept.overlaps)))
    assert scores[1] > scores[0]


def test_a_box_below_its_threshold_hides_no_other() -> None:
    ground_truth, _ = random_split(0, num_classes=2)
    image_id = ground_truth["images"][0]["id"]
    box = {"image_id": image_id, "bbox": [10.0, 10.0, 50.0, 50.0], "query": 0}
    predictions = [box | {"category_id": 90, "score": 0.5}, box | {"category_id": 3, "score": 0.45}]
    results = split_tables(ground_truth, predictions)
    points = choose(results, BestF1Goal(), NmsRule(best_class_per_query=True))
    content = to_json(points)
    content["classes"][0]["threshold"], content["classes"][1]["threshold"] = 0.6, 0.4
    kept = keep(results, from_json(OperatingPoints, content))
    assert kept.detections.label.tolist() == [1]


def test_they_survive_a_checkpoint() -> None:
    points = choose(split_tables(*random_split(0)), BestF1Goal(), NmsRule(mode="agnostic", iou_threshold=0.6))
    content = to_json(points)
    assert from_json(OperatingPoints, content) == points
    assert content["nms"] == to_json(points.nms)
    np.testing.assert_array_equal(points.thresholds, [entry["threshold"] for entry in content["classes"]])


def test_a_recall_is_not_given_up_for_a_better_f1() -> None:
    ground_truth, predictions = random_split(4, decimals=6)
    doubled = [*predictions, *({**item, "score": item["score"] * 0.999} for item in predictions)]
    # A second box of the class within the first: nms would lose it.
    first = ground_truth["annotations"][0]
    x, y, width, height = first["bbox"]
    inner = first | {"id": 9999, "bbox": [x, y, width, 0.8 * height], "iscrowd": 0}
    ground_truth["annotations"].append(inner)
    actual = {"image_id": first["image_id"], "category_id": first["category_id"], "query": 7}
    doubled += [
        actual | {"bbox": box["bbox"], "score": 0.9 + k / 100} for k, box in enumerate((first, inner))
    ]
    rules = [NmsRule(), NmsRule(mode="agnostic", iou_threshold=0.5)]
    results = split_tables(ground_truth, doubled)
    for at_least in (0.3, 0.6, 0.9, 1.0):
        goal = RecallGoal(type="recall", at_least=at_least)
        chosen = choose(results, goal, *rules)
        reached = {
            rule: sum(entry.note is None for entry in choose(results, goal, rule).classes) for rule in rules
        }
        assert sum(entry.note is None for entry in chosen.classes) == max(reached.values())


@pytest.mark.parametrize("seed", range(20))
def test_a_goal_without_a_note_is_kept_by_what_counts_in_the_end(seed: int) -> None:
    results = split_tables(*random_split(seed, decimals=6))
    rules = [
        NmsRule(mode="agnostic", iou_threshold=0.5),
        NmsRule(best_class_per_query=True, mode="agnostic", iou_threshold=0.3),
    ]
    for rule in rules:
        points = choose(results, FalseBoxesGoal(type="false_boxes", at_most_per_image=0.1), rule)
        kept = keep(results, points)
        counts = count_classes(kept.overlaps)
        for point, entry in zip(points.classes, counts, strict=True):
            if point.origin == "its own boxes":
                assert (entry.fp <= 0.1 * results.truth.num_images + 1e-9) == (point.note is None)
