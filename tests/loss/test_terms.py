"""The loss terms against loops over pairs, edges and bins, written from the specification, section 5."""

import math

import pytest
import torch
from torch import Tensor

from deim.loss.terms import (
    Teacher,
    decoupled_distillation_loss,
    fine_grained_localization_loss,
    matchability_aware_loss,
    soften,
)
from tests.loss.plain import sigmoid, softmax

BATCH, QUERIES, CLASSES, BINS = 2, 5, 3, 9
GAMMA, TEMPERATURE = 1.5, 5.0
Index = tuple[Tensor, Tensor]
NOTHING: Index = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
PAIRS: Index = (torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2]))
EVERYTHING: Index = (
    torch.arange(BATCH).repeat_interleave(QUERIES),
    torch.arange(QUERIES).repeat(BATCH),
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# MAL


def plain_mal(logits: Tensor, classes: dict[tuple[int, int], tuple[int, float]]) -> float:
    """`classes`: class and overlap of each matched (image, query)."""
    total = 0.0
    for image in range(logits.shape[0]):
        for query in range(logits.shape[1]):
            for c in range(logits.shape[2]):
                p = sigmoid(logits[image, query, c].item())
                matched_class, overlap = classes.get((image, query), (None, 0.0))
                is_match = matched_class == c
                target = overlap**GAMMA if is_match else 0.0
                weight = 1.0 if is_match else p**GAMMA
                total += weight * -(target * math.log(p) + (1 - target) * math.log(1 - p))
    return total


def mal(logits: Tensor, index: Index, classes: list[int], quality: list[float]) -> Tensor:
    return matchability_aware_loss(
        logits, (*index, torch.tensor(classes, dtype=torch.long)), torch.tensor(quality), gamma=GAMMA
    )


def test_mal_without_pairs_equals_the_loops():
    logits = 2 * torch.randn(BATCH, QUERIES, CLASSES)
    assert mal(logits, NOTHING, [], []).item() == pytest.approx(plain_mal(logits, {}), rel=1e-5)


def test_mal_equals_the_loops():
    logits = 2 * torch.randn(BATCH, QUERIES, CLASSES)
    expected = plain_mal(logits, {(0, 1): (2, 0.9), (0, 4): (0, 0.0), (1, 2): (1, 0.4)})
    assert mal(logits, PAIRS, [2, 0, 1], [0.9, 0.0, 0.4]).item() == pytest.approx(expected, rel=1e-5)


def test_mal_is_least_where_the_score_is_the_overlap_to_the_power_of_gamma():
    index = (torch.tensor([0]), torch.tensor([0]))
    scores = torch.linspace(0.01, 0.99, 99)
    losses = [mal(torch.logit(score).view(1, 1, 1), index, [0], [0.6]).item() for score in scores]
    assert scores[losses.index(min(losses))].item() == pytest.approx(0.6**GAMMA, abs=0.01)


def test_mal_vanishes_for_sure_and_right_scores():
    logits = torch.full((BATCH, QUERIES, CLASSES), -30.0)
    logits[PAIRS[0], PAIRS[1], torch.tensor([2, 0, 1])] = 30.0
    assert mal(logits, PAIRS, [2, 0, 1], [1.0, 1.0, 1.0]).item() == pytest.approx(0, abs=1e-6)


def test_mal_passes_no_gradient_through_its_weights():
    logits = torch.randn(BATCH, QUERIES, CLASSES, requires_grad=True)
    mal(logits, NOTHING, [], []).backward()
    p = logits.detach().sigmoid()
    assert torch.allclose(logits.grad, p**GAMMA * p, atol=1e-6)


# FGL


def plain_fgl(corners: Tensor, left: Tensor, weight_right: Tensor, quality: Tensor) -> float:
    total = 0.0
    for pair in range(corners.shape[0]):
        for edge in range(4):
            p = softmax(corners[pair, edge].tolist())
            i, w = int(left[pair, edge]), weight_right[pair, edge].item()
            total += quality[pair].item() * -((1 - w) * math.log(p[i]) + w * math.log(p[i + 1]))
    return total


def test_fgl_without_pairs_is_zero():
    nothing = torch.zeros(0, 4)
    loss = fine_grained_localization_loss(torch.zeros(0, 4, BINS), nothing.long(), nothing, torch.zeros(0))
    assert loss.item() == 0


def test_fgl_equals_the_loops():
    corners, quality = torch.randn(6, 4, BINS), torch.rand(6)
    left, weight_right = torch.randint(0, BINS - 1, (6, 4)), torch.rand(6, 4)
    # Both ends of the bins: the first alone, and the last alone.
    left[0, 0], weight_right[0, 0] = 0, 0.0
    left[0, 1], weight_right[0, 1] = BINS - 2, 1.0
    loss = fine_grained_localization_loss(corners, left, weight_right, quality)
    assert loss.item() == pytest.approx(plain_fgl(corners, left, weight_right, quality), rel=1e-5)


def test_fgl_is_least_for_the_distribution_of_the_two_weights():
    left, weight_right = torch.full((1, 4), 3), torch.full((1, 4), 0.25)
    corners = torch.full((1, 4, BINS), -30.0)
    corners[..., 3], corners[..., 4] = math.log(0.75), math.log(0.25)
    corners.requires_grad_()
    loss = fine_grained_localization_loss(corners, left, weight_right, torch.ones(1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert loss.item() == pytest.approx(4 * entropy, rel=1e-5)
    loss.backward()
    assert corners.grad.abs().max() < 1e-6


# DDF

Layers = tuple[Tensor, Tensor, Tensor]


def plain_ddf(
    student: Tensor, teacher: Tensor, scores: Tensor, quality: dict[tuple[int, int], float], num_images: int
) -> float:
    """`student`, `teacher`: (B, Q, 4, R+1) logits; `scores`: (B, Q, C) logits of the teacher."""
    matched, other = [], []
    for image in range(student.shape[0]):
        for query in range(student.shape[1]):
            pair = (image, query)
            best = max(sigmoid(value) for value in scores[image, query].tolist())
            weight = quality.get(pair, best)
            for edge in range(4):
                p = softmax((teacher[image, query, edge] / TEMPERATURE).tolist())
                q = softmax((student[image, query, edge] / TEMPERATURE).tolist())
                divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
                (matched if pair in quality else other).append(weight * TEMPERATURE**2 * divergence)
    n_matched = math.sqrt(len(matched) * 8 / num_images)
    n_other = math.sqrt(len(other) * 8 / num_images)
    mean_matched = sum(matched) / max(len(matched), 1)
    mean_other = sum(other) / max(len(other), 1)
    return (mean_matched * n_matched + mean_other * n_other) / (n_matched + n_other)


def ddf(
    student: Tensor, teacher: Tensor, scores: Tensor, index: Index, quality: Tensor, counts: tuple[int, int]
) -> Tensor:
    return decoupled_distillation_loss(
        student.flatten(2),
        Teacher(
            log_probabilities=soften(teacher.flatten(2), TEMPERATURE),
            confidence=scores.max(dim=-1).values.sigmoid(),
            balance=counts,
            sizes=(len(index[0]), BATCH * QUERIES - len(index[0])),
        ),
        index,
        quality,
        temperature=TEMPERATURE,
    )


@pytest.fixture
def layers() -> Layers:
    """Student, teacher and the teacher's scores."""
    return (
        4 * torch.randn(BATCH, QUERIES, 4, BINS),
        4 * torch.randn(BATCH, QUERIES, 4, BINS),
        torch.randn(BATCH, QUERIES, CLASSES),
    )


@pytest.mark.parametrize("index", [NOTHING, PAIRS, EVERYTHING], ids=["none", "some", "all"])
def test_ddf_equals_the_loops_with_no_some_and_all_queries_matched(layers: Layers, index: Index) -> None:
    quality = torch.rand(len(index[0]))
    pairs = zip(index[0].tolist(), index[1].tolist(), strict=True)
    by_pair = dict(zip(pairs, quality.tolist(), strict=True))
    counts = (len(quality), BATCH * QUERIES - len(quality))
    loss = ddf(*layers, index, quality, counts)
    assert loss.item() == pytest.approx(plain_ddf(*layers, by_pair, BATCH), rel=1e-4)


def test_ddf_of_the_teacher_with_itself_is_zero(layers):
    _, teacher, scores = layers
    assert ddf(teacher, teacher, scores, PAIRS, torch.ones(3), (3, 7)).item() == 0


def test_ddf_balances_the_two_groups_by_the_square_roots_of_the_counts(layers: Layers) -> None:
    def loss(counts: tuple[int, int]) -> float:
        return ddf(*layers, PAIRS, torch.ones(3), counts).item()

    matched_mean, other_mean = loss((1, 0)), loss((0, 1))
    assert matched_mean != pytest.approx(other_mean)
    assert loss((4, 9)) == pytest.approx((2 * matched_mean + 3 * other_mean) / 5, rel=1e-5)


def test_ddf_leaves_the_confidences_of_its_teacher_unchanged(layers):
    student, teacher, scores = layers
    shared = Teacher(
        log_probabilities=soften(teacher.flatten(2), TEMPERATURE),
        confidence=scores.max(dim=-1).values.sigmoid(),
        balance=(3, 7),
        sizes=(3, 7),
    )
    before = shared.confidence.clone()
    losses = [
        decoupled_distillation_loss(student.flatten(2), shared, PAIRS, torch.ones(3), temperature=TEMPERATURE)
        for _ in range(2)
    ]
    assert torch.equal(shared.confidence, before)
    assert losses[0] == losses[1]
