"""One training step: what it updates, and what it refuses to."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config import Config
from deim.data.collate import Batch
from deim.engine.device import select_precision
from deim.engine.ema import ModelEma
from deim.engine.optimizer import build_optimizer
from deim.engine.schedule import EmaSchedule
from deim.engine.seeding import seed_everything
from deim.engine.step import StepResult, train_step
from deim.loss.build import build_criterion
from deim.model.build import build_model
from deim.model.detector import Detector
from deim.structures import Target


@dataclass
class Setup:
    model: Detector
    optimizer: torch.optim.Optimizer
    config: Config

    def step(self, batch: Batch, *, clip_grad_norm: float = 0.1) -> StepResult:
        return train_step(
            self.model,
            build_criterion(self.config.loss, matcher_change_epoch=99),
            batch=batch,
            optimizer=self.optimizer,
            precision=select_precision("off", torch.device("cpu")),
            clip_grad_norm=clip_grad_norm,
            epoch=0,
        )

    def state(self) -> tuple[dict[str, Any], Any]:
        parameters = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        return parameters, copy.deepcopy(self.optimizer.state_dict()["state"])


@pytest.fixture
def setup(tmp_path: Path, tiny_config: Callable[..., Config]) -> Setup:
    seed_everything(0)
    config = tiny_config(tmp_path, tmp_path / "run", "recipe.lr=1e-3", "recipe.backbone_lr=1e-3")
    model = build_model(config.model, 3).train()
    return Setup(model, build_optimizer(model, config.recipe), config)


def make_batch(*, num_boxes: tuple[int, ...] = (1, 2)) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(num_boxes), 3, 64, 64, generator=generator)
    targets: list[Target] = [
        {
            "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.3,
            "labels": torch.arange(count),
            "file_name": f"{count}.png",
        }
        for count in num_boxes
    ]
    return Batch(images=images, targets=targets)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_a_batch_of_empty_images_touches_every_parameter(setup: Setup) -> None:
    result = setup.step(make_batch(num_boxes=(0, 0)))
    assert result.refused is None
    assert result.loss > 0
    without = [
        name
        for name, parameter in setup.model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_the_terms_of_an_empty_and_a_full_batch_are_the_same_ones(setup: Setup) -> None:
    empty, full = setup.step(make_batch(num_boxes=(0, 0))), setup.step(make_batch())
    assert set(empty.terms) == set(full.terms)
    assert all(math.isfinite(value) for value in full.terms.values())
    assert full.loss == pytest.approx(sum(full.terms.values()), rel=1e-5)


def test_an_infinite_input_leaves_weights_and_optimiser_as_they_are(setup: Setup) -> None:
    setup.step(make_batch())
    parameters, moments = setup.state()
    bad = make_batch()
    bad.images[1, 0, 20, 20] = float("inf")
    result = setup.step(bad)
    assert result.refused == "matcher: the network's scores or boxes are NaN or infinite."
    assert math.isnan(result.loss)
    found_parameters, found_moments = setup.state()
    assert_same(found_parameters, parameters)
    assert_same(found_moments, moments)
    assert setup.step(make_batch()).refused is None


def test_an_infinite_input_leaves_the_batch_norm_statistics_finite(setup: Setup) -> None:
    ema = ModelEma(setup.model, EmaSchedule(decay=0.5, warmup_steps=0))
    bad = make_batch()
    bad.images[1, 0, 20, 20] = float("inf")
    assert setup.step(bad).refused is not None
    assert setup.step(make_batch()).refused is None
    ema.update(setup.model)
    for kind, model in (("raw", setup.model), ("averaged", ema.model)):
        for name, value in model.state_dict().items():
            assert torch.isfinite(value).all(), f"{kind} {name}"


@pytest.mark.parametrize("name", ["backbone", "encoder", "decoder"])
def test_an_infinite_weight_is_refused_and_nothing_else_changes(setup: Setup, name: str) -> None:
    setup.step(make_batch())
    part = getattr(setup.model, name)
    weight = next(parameter for parameter in part.parameters() if parameter.ndim > 1)
    with torch.no_grad():
        weight.view(-1)[0] = float("inf")
    parameters, moments = setup.state()
    result = setup.step(make_batch())
    assert result.refused
    found_parameters, found_moments = setup.state()
    assert_same(found_parameters, parameters)
    assert_same(found_moments, moments)


def test_an_infinite_gradient_is_refused(setup: Setup) -> None:
    weight = setup.model.decoder.dec_score_head[0].weight
    weight.register_hook(lambda grad: grad * float("inf"))
    parameters, moments = setup.state()
    result = setup.step(make_batch())
    assert result.refused == "non-finite gradient"
    assert set(result.terms)
    assert_same(setup.state()[0], parameters)
    assert_same(setup.state()[1], moments)


def test_gradients_are_clipped_to_the_norm(setup: Setup) -> None:
    result = setup.step(make_batch(), clip_grad_norm=0.05)
    grads = [p.grad for p in setup.model.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm().item()
    assert result.grad_norm > 1  # the norm before clipping
    assert norm == pytest.approx(0.05, rel=1e-3)


def test_the_loss_falls_on_one_batch(setup: Setup) -> None:
    batch = make_batch()
    losses = []
    for _ in range(25):
        result = setup.step(batch, clip_grad_norm=1.0)
        assert result.refused is None
        losses.append(result.loss)
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])
