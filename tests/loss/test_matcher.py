"""The Hungarian matcher against brute force over all assignments."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from deim.errors import NonFiniteError
from deim.loss.matcher import HungarianMatcher, MatcherOptions, pack_targets
from deim.structures import LayerOutput, Target
from tests.loss.plain import plain_giou, plain_iou, sigmoid, to_xyxy
from tests.model.tiny import random_targets

CPU = torch.device("cpu")
LATE_EPOCH = 10
EARLY, LATE = 0, LATE_EPOCH
NUM_CLASSES = 3


@pytest.fixture
def matcher():
    return HungarianMatcher(MatcherOptions(), late_epoch=LATE_EPOCH)


def random_output(batch: int, num_queries: int, *, seed: int = 0) -> LayerOutput:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(batch, num_queries, 4, generator=generator) * 0.5 + 0.2
    return {
        "pred_logits": torch.randn(batch, num_queries, NUM_CLASSES, generator=generator),
        "pred_boxes": boxes,
    }


def plain_cost(logit: float, box: list[float], true_box: list[float], epoch: int) -> float:
    """Cost of one query and one box, by the formula."""
    p = sigmoid(logit)
    if epoch >= LATE_EPOCH:
        return -p * plain_iou(to_xyxy(box), to_xyxy(true_box)) ** 4
    positive = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8)
    negative = 0.75 * p**2 * -math.log(1 - p + 1e-8)
    distance = sum(abs(a - b) for a, b in zip(box, true_box, strict=True))
    return 5 * distance + 2 * (positive - negative) - 2 * plain_giou(to_xyxy(box), to_xyxy(true_box))


def plain_costs(output: LayerOutput, target: Target, image: int, epoch: int) -> list[list[float]]:
    """A row for each box, a column for each query."""
    logits, boxes = output["pred_logits"][image].tolist(), output["pred_boxes"][image].tolist()
    return [
        [plain_cost(logits[q][label], boxes[q], true_box, epoch) for q in range(len(boxes))]
        for true_box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
    ]


def cheapest(costs: list[list[float]], num_queries: int) -> set[tuple[int, int]]:
    """(query, box) pairs of the best assignment, found by trying them all."""
    count = len(costs)
    if count <= num_queries:
        best = min(
            permutations(range(num_queries), count), key=lambda qs: sum(costs[t][q] for t, q in enumerate(qs))
        )
        return {(q, t) for t, q in enumerate(best)}
    best = min(
        permutations(range(count), num_queries), key=lambda ts: sum(costs[t][q] for q, t in enumerate(ts))
    )
    return {(q, t) for q, t in enumerate(best)}


@pytest.mark.parametrize("epoch", [EARLY, LATE])
def test_a_batch_without_boxes_gives_no_pairs_for_each_output(matcher, epoch):
    packed = pack_targets(random_targets((0, 0)), device=CPU)
    actual = matcher.match([random_output(2, 5)] * 3, packed, epoch=epoch)
    assert [pairs.shape for pairs in actual] == [(3, 0)] * 3
    assert all(pairs.dtype == np.int64 for pairs in actual)


@pytest.mark.parametrize("epoch", [EARLY, LATE])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_the_cheapest_of_all_assignments(matcher, epoch, seed):
    counts, num_queries = (3, 0, 1, 4), 6
    targets = random_targets(counts, num_classes=NUM_CLASSES, seed=seed)
    outputs = [random_output(len(counts), num_queries, seed=10 * seed + k) for k in range(2)]
    packed = pack_targets(targets, device=CPU)
    for output, pairs in zip(outputs, matcher.match(outputs, packed, epoch=epoch), strict=True):
        for image, target in enumerate(targets):
            costs = plain_costs(output, target, image, epoch)
            mine = pairs[:, pairs[0] == image]
            actual = {(int(q), int(t) - packed.offsets[image]) for q, t in mine[1:].T}
            expected = cheapest(costs, num_queries) if costs else set()
            assert len(actual) == counts[image]
            # In the late cost, boxes that overlap no query cost 0 everywhere: equal sums, other pairs.
            actual_sum, expected_sum = (sum(costs[t][q] for q, t in pairs) for pairs in (actual, expected))
            assert actual_sum == pytest.approx(expected_sum, rel=1e-5, abs=1e-7)
            if epoch == EARLY:
                assert actual == expected


def test_more_boxes_than_queries_leave_the_dearest_boxes_alone(matcher):
    targets = random_targets((5,), num_classes=NUM_CLASSES)
    output = random_output(1, 3)
    (pairs,) = matcher.match([output], pack_targets(targets, device=CPU), epoch=EARLY)
    expected = cheapest(plain_costs(output, targets[0], 0, EARLY), 3)
    assert {(int(q), int(t)) for q, t in pairs[1:].T} == expected


@pytest.mark.parametrize("epoch", [EARLY, LATE])
def test_a_batch_is_matched_like_its_images_and_outputs_alone(matcher, epoch):
    targets = random_targets((3, 0, 5), num_classes=NUM_CLASSES)
    outputs = [random_output(3, 8, seed=k) for k in range(3)]
    packed = pack_targets(targets, device=CPU)
    together = matcher.match(outputs, packed, epoch=epoch)
    for output, pairs in zip(outputs, together, strict=True):
        for image, target in enumerate(targets):
            alone = {name: value[image : image + 1] for name, value in output.items()}
            (expected,) = matcher.match([alone], pack_targets([target], device=CPU), epoch=epoch)
            mine = pairs[:, pairs[0] == image]
            assert (mine[1] == expected[1]).all()
            assert (mine[2] - packed.offsets[image] == expected[2]).all()


def test_the_late_cost_starts_with_its_epoch(matcher):
    # Query 0 has the place and query 1 the score: first the score counts most, later the overlap does.
    targets: list[Target] = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]), "labels": torch.tensor([0])}]
    output: LayerOutput = {
        "pred_logits": torch.tensor([[[-0.85], [2.2]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.53, 0.53, 0.2, 0.2]]]),
    }
    packed = pack_targets(targets, device=CPU)
    chosen = [matcher.match([output], packed, epoch=epoch)[0][1].item() for epoch in (0, 9, 10, 11)]
    assert chosen == [1, 1, 0, 0]


@pytest.mark.parametrize("name", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("epoch", [EARLY, LATE])
def test_outputs_that_are_not_finite_are_refused(matcher, name, value, epoch):
    output = random_output(2, 5)
    output[name][1, 3] = value
    packed = pack_targets(random_targets((1, 2)), device=CPU)
    if name == "pred_logits" and value == math.inf:
        # A score of exactly 1 is finite, and so is its cost.
        assert len(matcher.match([output], packed, epoch=epoch)) == 1
        return
    with pytest.raises(NonFiniteError, match=r"^matcher: .* scores or boxes are NaN or infinite\.$"):
        matcher.match([output], packed, epoch=epoch)


def test_packed_targets_keep_the_order_of_images_and_boxes():
    targets = random_targets((2, 0, 3))
    packed = pack_targets(targets, device=CPU)
    assert packed.counts == (2, 0, 3)
    assert packed.offsets == [0, 2, 2, 5]
    assert packed.image_idx.tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(packed.boxes_cxcywh, torch.cat([target["boxes"] for target in targets]))
    assert torch.equal(packed.labels, torch.cat([target["labels"] for target in targets]))
