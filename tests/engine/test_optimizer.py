"""Parameter groups of AdamW."""

from typing import Any

import pytest
import torch
from torch import nn

from deim.engine.optimizer import RecipeOptions, build_optimizer, set_learning_rates
from deim.model.build import build_variant
from deim.model.detector import Detector

NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


@pytest.fixture(scope="module", params=["nano", "s", "l"])
def variant(request: pytest.FixtureRequest) -> tuple[str, Detector]:
    with torch.device("meta"):
        return request.param, build_variant(request.param, num_classes=4)


def groups_of(model: Detector, rule: Any) -> list[dict]:
    return build_optimizer(model, RecipeOptions(parameter_groups=rule)).param_groups


@pytest.mark.parametrize("rule", ["by_type", "reference"])
def test_every_parameter_is_in_exactly_one_group(variant: tuple[str, Detector], rule: str) -> None:
    _, model = variant
    actual = [id(parameter) for group in groups_of(model, rule) for parameter in group["params"]]
    expected = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(actual) == len(set(actual))
    assert sorted(actual) == sorted(expected)


@pytest.mark.parametrize("rule", ["by_type", "reference"])
def test_groups_are_transformer_decayed_and_not_then_the_rest(
    variant: tuple[str, Detector], rule: str
) -> None:
    _, model = variant
    groups = groups_of(model, rule)
    assert [group["weight_decay"] for group in groups] == [1e-4, 0, 0, 1e-4]
    assert [group["lr"] for group in groups] == [2.5e-5, 2.5e-5, 5e-4, 5e-4]
    assert [group["flat_lr"] for group in groups] == [group["lr"] for group in groups]
    in_vit = {id(parameter) for parameter in model.backbone.pretrained.parameters()}
    for group, of_vit in zip(groups, (True, True, False, False), strict=True):
        assert group["params"]
        assert {id(parameter) in in_vit for parameter in group["params"]} == {of_vit}


def test_by_type_decays_weights_of_layers_and_nothing_else(variant: tuple[str, Detector]) -> None:
    _, model = variant
    decayed = {
        id(parameter)
        for group in groups_of(model, "by_type")
        if group["weight_decay"]
        for parameter in group["params"]
    }
    num_weights = num_norms = 0
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            num_weights += 1
            assert id(module.weight) in decayed
            assert module.bias is None or id(module.bias) not in decayed
        if isinstance(module, NORMS):
            num_norms += 1
            assert all(id(parameter) not in decayed for parameter in module.parameters())
    assert num_weights > 50
    assert num_norms > 20
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or any(word in name for word in ("token", "gamma", "bias")):
            assert id(parameter) not in decayed, name


@pytest.mark.parametrize(("name", "counts"), [("s", (50, 97, 194, 138)), ("l", (76, 99, 226, 154))])
def test_reference_groups_have_the_sizes_of_the_reference(name: str, counts: tuple[int, ...]) -> None:
    """Spec 8.1, measured on the official code."""
    with torch.device("meta"):
        model = build_variant(name, num_classes=80)
    assert tuple(len(group["params"]) for group in groups_of(model, "reference")) == counts


def test_learning_rates_are_shares_of_the_flat_ones() -> None:
    model = build_variant("nano", num_classes=2)
    optimizer = build_optimizer(model, RecipeOptions(lr=1e-3, backbone_lr=1e-4, betas=(0.8, 0.9)))
    set_learning_rates(optimizer, 0.25)
    set_learning_rates(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 5e-5, 5e-4, 5e-4]
    assert optimizer.defaults["betas"] == (0.8, 0.9)
