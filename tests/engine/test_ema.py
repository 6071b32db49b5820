"""The averaged copy of a model."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deim.config.schema import Config
from deim.engine.ema import EmaSchedule, ModelEma
from deim.model.build import build_variant
from deim.model.detector import Detector


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_before_any_update_the_average_is_the_model_and_shares_nothing_with_it() -> None:
    model = make_model()
    ema = ModelEma(model, EmaSchedule(decay=0.9, warmup_steps=3))
    before = copy.deepcopy(ema.model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in ema.model.state_dict().items())
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_the_average_follows_the_formula(warmup_steps: int) -> None:
    model = make_model()
    ema = ModelEma(model, EmaSchedule(decay=0.9, warmup_steps=warmup_steps))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(1, 13):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(8, 4))  # moves the statistics of the batch norm
        ema.update()
        decay = 0.9 * (1 - math.exp(-update / warmup_steps)) if warmup_steps else 0.9
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value
    actual = ema.model.state_dict()
    assert ema.updates == 12
    assert int(actual["1.num_batches_tracked"]) == 12
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-5)
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(actual[name], model.state_dict()[name])


def test_a_horizon_of_one_step_copies_the_model() -> None:
    model = make_model()
    ema = ModelEma(model, EmaSchedule(decay=0.0, warmup_steps=0))
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    assert torch.equal(ema.model[0].weight, model[0].weight)


@pytest.mark.parametrize("name", ["nano", "l"])
def test_constants_never_change(name: str) -> None:
    model = build_variant(name, num_classes=2)
    ema = ModelEma(model, EmaSchedule(decay=0.7, warmup_steps=0))
    learned = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    statistics = {
        key
        for key in model.state_dict()
        if key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    constants = [key for key in everything if key not in learned | statistics]
    assert any("num_points_scale" in key for key in constants)
    assert any("periods" in key for key in constants)
    if name == "l":
        assert any("bias_mask" in key for key in constants)
    with torch.no_grad():  # if constants were averaged, this would show
        for key in constants:
            everything[key].add_(1)
    averaged = dict(ema.model.named_parameters()) | dict(ema.model.named_buffers())
    before = {key: averaged[key].clone() for key in constants}
    ema.update()
    for key in constants:
        assert torch.equal(averaged[key], before[key]), key


def test_loading_an_average_goes_on_averaging_it(
    tmp_path: Path, tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    model = Detector(tiny_config(tiny_set, tmp_path / "run").model, 3)
    ema = ModelEma(model, EmaSchedule(decay=0.5, warmup_steps=0))
    ema.model.load_state_dict({name: torch.zeros_like(v) for name, v in ema.model.state_dict().items()})
    ema.update()
    weight = model.decoder.dec_score_head[0].weight
    torch.testing.assert_close(ema.model.decoder.dec_score_head[0].weight, weight * 0.5)
