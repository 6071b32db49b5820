"""The controls: each differs from the real text in one thing, and starts as the detector."""

import re

import pytest
import torch
from torch import nn

from deim.engine.optimizer import RecipeOptions
from deim.errors import ConfigError
from deim.loss.matcher import HungarianMatcher, MatcherOptions
from multimodal.ablation.variants import (
    ABLATED_VARIANTS,
    VARIANTS,
    FusionModel,
    Variant,
    build_variant,
    derangement,
    swap_text,
    variant_groups,
)
from multimodal.fusion_head import FusionHead
from multimodal.loss import FusionCriterion, FusionLossOptions
from multimodal.options import TextFusionOptions
from multimodal.wrapper import DetectorOutputs
from tests.model.tiny import random_targets
from tests.multimodal.fused import loss_terms, open_gates, random_text, small_head, state_hash

RECIPE = RecipeOptions(lr=5e-5, weight_decay=1e-4)


def options_of(class_head_from_epoch: int | None = None) -> TextFusionOptions:
    return TextFusionOptions(
        detector="best.pth", hidden_dim=64, adapter_dim=24, class_head_from_epoch=class_head_from_epoch
    )


def build(
    variant: Variant, head: FusionHead | None = None, *, start: int | None = None, seed: int = 0
) -> FusionModel:
    return build_variant(variant, head or small_head(), options_of(start), seed=seed)


def detector_outputs(seed: int = 0) -> DetectorOutputs:
    generator = torch.Generator().manual_seed(seed)
    return DetectorOutputs(
        query_features=torch.randn(2, 20, 32, generator=generator),
        pred_logits=torch.randn(2, 20, 3, generator=generator),
        pred_boxes=torch.rand(2, 20, 4, generator=generator) / 2 + 0.2,
    )


def num_trained(model: FusionModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_starts_as_the_detector_and_learns_through_all_that_it_trains(variant):
    model = build(variant)
    actual, targets = detector_outputs(), random_targets((1, 2))
    assert torch.equal(model(actual)["pred_logits"], actual.pred_logits)
    groups = variant_groups(variant, model, RECIPE, class_head_from_epoch=None)
    optimizer = torch.optim.AdamW(groups)
    criterion = FusionCriterion(
        matcher=HungarianMatcher(MatcherOptions(), late_epoch=80),
        options=FusionLossOptions(),
        confused=[(0, 1)],
    )
    for _ in range(3):
        optimizer.zero_grad()
        sum(loss_terms(criterion, model(actual, targets), targets).values()).backward()
        optimizer.step()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group["params"]} == trained
    assert sum(len(group["params"]) for group in groups) == len(trained)
    idle = {name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()}
    # Of prompts that are all the same, the weights do not matter.
    assert idle <= ({"head.prompt_logits"} if variant == "one_hot" else set())
    output = model(actual)
    assert not torch.allclose(output["pred_logits"], actual.pred_logits, atol=1e-4)
    assert torch.equal(output["pred_boxes"], actual.pred_boxes)
    assert torch.equal(output["detector_logits"], actual.pred_logits)


def test_sizes():
    sizes = {name: num_trained(build(name)) for name in VARIANTS}
    text = sizes["text"]
    assert sizes["random"] == sizes["shuffled"] == sizes["one_hot"] == text
    assert sizes["free"] == text + 3 * 3 * 48
    # The nearest width of its first layer: a unit more has 32 + 1 + 48 parameters.
    assert abs(sizes["mlp"] - text) <= 81 / 2
    assert sizes["class_head"] == 32 * 3 + 3


def test_rates_are_those_of_the_fusion_head():
    text = {
        "text_layers": 5e-4,
        "text_layers_undecayed": 5e-4,
        "background": 5e-4,
        "scales": 1e-3,
        "gate": 1e-2,
    }
    expected = dict.fromkeys(("text", "random", "shuffled", "one_hot"), text)
    expected["free"] = text | {"text": 5e-4}
    expected["mlp"] = {name: rate for name, rate in text.items() if name != "background"}
    for variant, rates in expected.items():
        for start in (None, 7):
            model = build(variant, start=start)
            groups = variant_groups(variant, model, RECIPE, class_head_from_epoch=start)
            expected_rates = rates if start is None else rates | {"class_head": 5e-5}
            assert {group["name"]: group["flat_lr"] for group in groups} == pytest.approx(expected_rates)
            assert {g["first_epoch"] for g in groups if g["name"] == "class_head"} == {start} - {None}
            decayed = {group["name"] for group in groups if group["weight_decay"]}
            assert decayed == {"text_layers"}


def test_the_class_head_alone_learns_from_the_first_epoch_at_a_rate_to_be_reckoned_with():
    for start in (None, 7):
        model = build("class_head", start=start)
        (group,) = variant_groups("class_head", model, RECIPE, class_head_from_epoch=start)
        assert (group["name"], group["first_epoch"]) == ("class_head", 0)
        assert group["flat_lr"] == pytest.approx(5e-4)
        assert not any(parameter.requires_grad for parameter in model.head.parameters())


def test_what_stands_for_the_text():
    heads = {name: build(name, seed=3).head for name in ("text", *ABLATED_VARIANTS) if name != "mlp"}
    real = heads["text"].text
    for name in ("random", "free", "one_hot"):
        assert heads[name].text.shape == real.shape
        assert not torch.isclose(heads[name].text, real).all(dim=-1).any()
        assert heads[name].background.shape == heads["text"].background.shape
    torch.testing.assert_close(heads["random"].text.norm(dim=-1), torch.ones(3, 3))
    assert torch.equal(heads["random"].text, build("random", seed=3).head.text)
    assert not torch.equal(heads["random"].text, build("random", seed=4).head.text)
    assert isinstance(heads["free"].text, nn.Parameter)
    assert torch.equal(heads["free"].text, heads["random"].text)
    shuffled = heads["shuffled"]
    owners = [int((real == rows).flatten(1).all(dim=1).nonzero()) for rows in shuffled.text]
    assert sorted(owners) == [0, 1, 2]
    assert all(owner != label for label, owner in enumerate(owners))
    assert torch.equal(shuffled.background, heads["text"].background)
    one_hot = heads["one_hot"]
    cosines = one_hot.text[:, 0] @ torch.cat([one_hot.text[:, 1], one_hot.background]).T
    assert torch.equal(cosines, torch.eye(3, 7))
    assert torch.equal(heads["class_head"].text, real)


def test_layers_of_a_seed_start_alike_whatever_the_text():
    state = torch.random.get_rng_state()
    heads = [build(name, seed=5).head for name in ("text", "random", "one_hot", "free")]
    for head in heads[1:]:
        assert state_hash(head.projection) == state_hash(heads[0].projection)
        assert state_hash(head.adapter) == state_hash(heads[0].adapter)
    other = build("text", seed=6).head
    assert state_hash(other.projection) != state_hash(heads[0].projection)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_hot_vectors_need_room():
    message = (
        "text: got width 6 for 3 classes and 4 background prompts. One-hot vectors need one number each. "
        "Leave one_hot out of --variants."
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build("one_hot", small_head(random_text(width=6)))


def test_a_derangement_leaves_nothing_in_its_place():
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(derangement(4, generator).tolist()) for _ in range(300)]
    assert all(order[place] != place for order in drawn for place in range(4))
    assert all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert len(set(drawn)) == 9  # all that there are
    assert derangement(2, generator).tolist() == [1, 0]


def test_exchanged_texts_change_nothing_behind_shut_gates_and_two_columns_behind_open_ones():
    model = build("text").eval()
    actual = detector_outputs()
    with torch.no_grad():
        assert torch.equal(swap_text(model, (0, 2))(actual)["pred_logits"], actual.pred_logits)
        open_gates(model.head)
        before = state_hash(model)
        mine, swapped = model(actual)["text_scores"], swap_text(model, (0, 2))(actual)["text_scores"]
        twice = swap_text(swap_text(model, (0, 2)), (2, 0))
    torch.testing.assert_close(swapped.class_logits, mine.class_logits[..., [2, 1, 0]])
    assert torch.equal(swapped.background_logits, mine.background_logits)
    assert state_hash(model) == state_hash(twice) == before
