"""The loss of phase 2: its terms by hand, what is matched and what is background, and parts of a batch."""

import math

import pytest
import torch
from torch import Tensor

from deim.errors import NonFiniteError
from deim.loss.criterion import LossCounts
from deim.loss.matcher import HungarianMatcher, MatcherOptions
from deim.structures import Target
from multimodal.fusion_head import TextScores
from multimodal.loss import FusionCriterion, FusionLossOptions
from multimodal.wrapper import FusedOutput
from tests.model.tiny import random_images, random_targets
from tests.multimodal.fused import loss_terms, open_gates, tiny_fused

ONES = FusionLossOptions(mal=1.0, contrastive=1.0, margin=1.0, anchor=1.0)
TERMS = ["loss_mal", "loss_contrastive", "loss_margin", "loss_anchor"]


def criterion(weights: FusionLossOptions = ONES, **options) -> FusionCriterion:
    return FusionCriterion(
        matcher=HungarianMatcher(MatcherOptions(), late_epoch=80), options=weights, **options
    )


def output_of(
    detector_logits: Tensor, boxes: Tensor, *, class_logits: Tensor, background_logits: Tensor
) -> FusedOutput:
    """An output whose text has moved nothing and whose adapter has turned every text by 60 degrees."""
    plain = torch.eye(3)
    return {
        "pred_logits": detector_logits.clone().requires_grad_(),
        "pred_boxes": boxes,
        "detector_logits": detector_logits,
        "text_scores": TextScores(
            class_logits=class_logits,
            background_logits=background_logits,
            class_text=0.5 * plain + math.sqrt(0.75) * plain.roll(1, dims=1),
            plain_text=plain,
        ),
    }


def five_queries() -> tuple[FusedOutput, list[Target]]:
    """One image with one box of class 1.

    Query 0 lies on the box; 1 too, nearly; 2 to 4 lie elsewhere, 4 with the surest score and 2 with the
    least.
    """
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.3, 0.3, 0.2, 0.19], *[[0.8, 0.8, 0.1, 0.1]] * 3])[None]
    logits = torch.tensor(
        [[-3.0, 2.0, -3.0], [-3.0, 1.0, -3.0], [-3.0, -2.9, -3.0], [-2.0, -3.0, -3.0], [-3.0, -3.0, 0.5]]
    )[None]
    class_logits = torch.tensor(
        [[1.0, 2.0, 0.5], [0.0, 9.0, 0.0], [7.0, 0.0, 0.0], [1.0, 0.0, -1.0], [0.0, 3.0, 1.0]]
    )[None]
    background_logits = torch.tensor([[-1.0, -9.0, -7.0, 2.0, 0.5]])
    target: Target = {"boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2]]), "labels": torch.tensor([1])}
    output = output_of(logits, boxes, class_logits=class_logits, background_logits=background_logits)
    return output, [target]


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


def test_background_is_what_the_detector_is_surest_of_away_from_objects():
    output, targets = five_queries()
    for number, expected in ((1, [4]), (2, [4, 3]), (3, [4, 3, 2]), (9, [4, 3, 2])):
        matched = criterion(background_per_match=number).match(output, targets, epoch=0)
        assert matched.matching.query_idx.tolist() == [0]
        assert matched.background.query_idx.tolist() == expected
        assert matched.background.weight.tolist() == pytest.approx([1 / len(expected)] * len(expected))
    close = criterion(background_per_match=1, max_background_iou=0.99).match(output, targets, epoch=0)
    assert close.background.query_idx.tolist() == [1]


def test_terms_are_those_of_the_formulas():
    output, targets = five_queries()
    terms = loss_terms(criterion(confused=[(2, 1)], background_per_match=2), output, targets)
    assert list(terms) == TERMS
    # Matched: query 0 of class 1, with an overlap of 1; background: queries 4 and 3.
    objects = cross_entropy([1.0, 2.0, 0.5, -1.0], 1)
    surface = (cross_entropy([0.0, 3.0, 1.0, 0.5], 3) + cross_entropy([1.0, 0.0, -1.0, 2.0], 3)) / 2
    assert terms["loss_contrastive"].item() == pytest.approx((objects + 2 * surface) / 3, rel=1e-5)
    assert terms["loss_margin"].item() == pytest.approx(math.log1p(math.exp(1.0 - (2.0 - 0.5))), rel=1e-5)
    assert terms["loss_anchor"].item() == pytest.approx(0.5, rel=1e-5)
    expected = 0.0
    for query, row in enumerate(output["detector_logits"][0].tolist()):
        for label, logit in enumerate(row):
            share = 1 / (1 + math.exp(-logit))
            hit = (query, label) == (0, 1)
            expected -= math.log(share) if hit else share**1.5 * math.log(1 - share)
    assert terms["loss_mal"].item() == pytest.approx(expected, rel=1e-4)


def test_weights_scale_the_terms():
    output, targets = five_queries()
    ones = loss_terms(criterion(confused=[(0, 1)]), output, targets)
    weighted = loss_terms(criterion(FusionLossOptions(), confused=[(0, 1)]), output, targets)
    factors = [(weighted[name] / ones[name]).item() for name in TERMS]
    assert factors == pytest.approx([1.0, 0.5, 0.25, 0.1], rel=1e-5)


def test_margin_is_between_confused_classes_alone_and_in_both_directions():
    output, targets = five_queries()
    assert loss_terms(criterion(), output, targets)["loss_margin"] == 0
    assert loss_terms(criterion(confused=[(0, 2)]), output, targets)["loss_margin"] == 0
    first = loss_terms(criterion(confused=[(0, 1)]), output, targets)["loss_margin"]
    assert torch.equal(first, loss_terms(criterion(confused=[(1, 0)]), output, targets)["loss_margin"])
    other = loss_terms(criterion(confused=[(1, 2)]), output, targets)["loss_margin"]
    both = loss_terms(criterion(confused=[(0, 1), (1, 2)]), output, targets)["loss_margin"]
    assert both.item() == pytest.approx((first + other).item() / 2)


def test_matches_do_not_depend_on_the_text():
    model, targets = tiny_fused(), random_targets((2, 3))
    before = criterion().match(model(random_images(2)), targets, epoch=0)
    open_gates(model.head)
    after = criterion().match(model(random_images(2)), targets, epoch=0)
    for name in ("image_idx", "query_idx", "target_idx"):
        assert torch.equal(getattr(before.matching, name), getattr(after.matching, name))
    assert torch.equal(before.background.query_idx, after.background.query_idx)


def test_images_and_batches_without_boxes_show_background():
    model = tiny_fused()
    for counts in ((0, 0), (0, 2)):
        output, targets = model(random_images(2)), random_targets(counts)
        matched = criterion().match(output, targets, epoch=0)
        per_image = matched.background.image_idx.bincount(minlength=2).tolist()
        assert per_image == [3 * max(count, 1) for count in counts]
        terms = loss_terms(criterion(confused=[(0, 1)]), output, targets)
        assert all(term.isfinite() for term in terms.values())
        assert terms["loss_contrastive"] > 0
        sum(terms.values()).backward()
        assert model.head.background.grad.any()


def test_more_boxes_than_queries_leave_no_background():
    model = tiny_fused()
    targets = random_targets((25,))
    matched = criterion().match(model(random_images(1)), targets, epoch=0)
    assert len(matched.matching) == 20
    assert len(matched.background.query_idx) == 0
    assert all(term.isfinite() for term in loss_terms(criterion(), model(random_images(1)), targets).values())


def test_parts_of_a_batch_add_up_to_the_whole():
    model = tiny_fused()
    open_gates(model.head)
    images, targets = random_images(4), random_targets((2, 0, 3, 1))
    loss = criterion(confused=[(0, 1), (0, 2)])
    with torch.no_grad():
        whole = loss_terms(loss, model(images), targets)
        pieces = [(model(images[part]), targets[part]) for part in (slice(0, 1), slice(1, 4))]
        matched = [loss.match(output, mine, epoch=0) for output, mine in pieces]
        counts = LossCounts(
            images=sum(part.counts.images for part in matched),
            boxes=sum(part.counts.boxes for part in matched),
            pairs=sum(part.counts.pairs for part in matched),
        )
        shares = [loss.terms(output, part, counts) for (output, _), part in zip(pieces, matched, strict=True)]
    for name in TERMS:
        assert sum(share[name].item() for share in shares) == pytest.approx(whole[name].item(), rel=1e-4)


def test_mixed_precision_does_not_reach_the_loss():
    output, targets = five_queries()
    plain = loss_terms(criterion(confused=[(0, 1)]), output, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = loss_terms(criterion(confused=[(0, 1)]), output, targets)
    assert all(torch.equal(plain[name], mixed[name]) for name in TERMS)


def test_the_gradient_of_each_term_reaches_what_it_is_about():
    model = tiny_fused()
    parameters = dict(open_gates(model.head).named_parameters())
    loss = criterion(confused=[(0, 1), (1, 2), (0, 2)])
    reached = {}
    for name in TERMS:
        model.zero_grad()
        loss_terms(loss, model(random_images(2)), random_targets((2, 3)))[name].backward()
        reached[name] = {key for key, p in parameters.items() if p.grad is not None and p.grad.any()}
    everything = set(parameters)
    assert reached["loss_mal"] == everything
    assert reached["loss_contrastive"] == everything - {"gate", "bias"}
    assert reached["loss_margin"] == everything - {"gate", "bias", "background"}
    assert reached["loss_anchor"] == {"prompt_logits"} | {k for k in everything if k.startswith("adapter")}


def test_nan_in_the_network_is_reported():
    output, targets = five_queries()
    output["detector_logits"][0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        loss_terms(criterion(), output, targets)
