"""One training step: what it updates, and what it refuses to."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.schema import Config
from deim.data.batch import Batch
from deim.engine.device import select_precision
from deim.engine.ema import EmaSchedule, ModelEma
from deim.engine.optimizer import build_optimizer
from deim.engine.seeding import seed_everything
from deim.engine.step import StepContext, StepResult, train_step
from deim.errors import TrainingError
from deim.loss.criterion import Criterion
from deim.model.detector import Detector
from deim.structures import Target


@dataclass
class Setup:
    model: Detector
    optimizer: torch.optim.Optimizer
    config: Config

    def step(self, batch: Batch, *, clip_grad_norm: float = 0.1, **options: Any) -> StepResult:
        parts = StepContext(
            model=self.model,
            criterion=Criterion(self.config.loss, matcher_change_epoch=99),
            optimizer=self.optimizer,
            precision=select_precision("off", torch.device("cpu")),
            clip_grad_norm=clip_grad_norm,
        )
        return train_step(parts, batch, epoch=0, **options)

    def state(self) -> tuple[dict[str, Any], Any]:
        parameters = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        return parameters, copy.deepcopy(self.optimizer.state_dict()["state"])


@pytest.fixture
def setup(tmp_path: Path, tiny_config: Callable[..., Config]) -> Setup:
    seed_everything(0)
    config = tiny_config(tmp_path, tmp_path / "run", "recipe.lr=1e-3", "recipe.backbone_lr=1e-3")
    model = Detector(config.model, 3).train()
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


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


def test_a_batch_of_empty_images_touches_every_parameter(setup: Setup) -> None:
    result = setup.step(make_batch(num_boxes=(0, 0)))
    assert result.skip_reason is None
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


def test_an_infinite_input_leaves_weights_and_optimizer_as_they_are(setup: Setup) -> None:
    setup.step(make_batch())
    parameters, moments = setup.state()
    bad = make_batch()
    bad.images[1, 0, 20, 20] = float("inf")
    result = setup.step(bad)
    assert result.skip_reason == "matcher: the network's scores or boxes are NaN or infinite."
    assert math.isnan(result.loss)
    fitted_parameters, actual_moments = setup.state()
    assert_same(fitted_parameters, parameters)
    assert_same(actual_moments, moments)
    assert setup.step(make_batch()).skip_reason is None


def test_an_infinite_input_leaves_the_batch_norm_statistics_finite(setup: Setup) -> None:
    ema = ModelEma(setup.model, EmaSchedule(decay=0.5, warmup_steps=0))
    bad = make_batch()
    bad.images[1, 0, 20, 20] = float("inf")
    assert setup.step(bad).skip_reason is not None
    assert setup.step(make_batch()).skip_reason is None
    ema.update()
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
    assert result.skip_reason
    fitted_parameters, actual_moments = setup.state()
    assert_same(fitted_parameters, parameters)
    assert_same(actual_moments, moments)


def test_an_infinite_gradient_is_refused(setup: Setup) -> None:
    weight = setup.model.decoder.dec_score_head[0].weight
    weight.register_hook(lambda grad: grad * float("inf"))
    parameters, moments = setup.state()
    result = setup.step(make_batch())
    assert result.skip_reason == "non-finite gradient"
    assert not math.isfinite(result.grad_norm)
    assert result.terms
    assert_same(setup.state()[0], parameters)
    assert_same(setup.state()[1], moments)


def test_memory_that_runs_out_in_the_update_is_not_for_another_try(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(setup.optimizer, "step", fail)
    with pytest.raises(
        TrainingError, match=r"^out of memory in the update of the weights\. Lower data\.batch"
    ):
        setup.step(make_batch())


def test_an_infinite_activation_is_refused(setup: Setup) -> None:
    block = setup.model.backbone.pretrained.blocks[1]
    handle = block.register_forward_hook(lambda *args: args[-1] * float("inf"))
    parameters, moments = setup.state()
    assert setup.step(make_batch()).skip_reason
    assert_same(setup.state()[0], parameters)
    assert_same(setup.state()[1], moments)
    handle.remove()
    assert setup.step(make_batch()).skip_reason is None


def gradients(setup: Setup) -> dict[str, torch.Tensor]:
    named = setup.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


def freeze_batch_norm(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize(
    "num_boxes", [(1, 2, 0, 3), (0, 0, 0, 2), (0, 0, 0, 0)], ids=["boxes", "one full image", "empty"]
)
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    setup: Setup, micro_batch_size: int, num_boxes: tuple[int, ...]
) -> None:
    freeze_batch_norm(setup.model)
    batch = make_batch(num_boxes=num_boxes)
    for number, target in enumerate(batch.targets):
        target["noise_seed"] = number
    start = copy.deepcopy(setup.model.state_dict())
    whole = setup.step(batch, clip_grad_norm=1e9)
    expected = gradients(setup)
    setup.model.load_state_dict(start)
    parts = setup.step(batch, clip_grad_norm=1e9, micro_batch_size=micro_batch_size)
    actual = gradients(setup)
    assert parts.terms.keys() == whole.terms.keys()
    for name, value in whole.terms.items():
        assert parts.terms[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= 1e-5 * value.norm() + 1e-7, name


def test_a_refused_micro_batch_refuses_the_step(setup: Setup) -> None:
    bad = make_batch(num_boxes=(1, 2, 1))
    bad.images[2, 0, 20, 20] = float("inf")
    parameters, moments = setup.state()
    assert setup.step(bad, micro_batch_size=1).skip_reason
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
    for _ in range(40):
        result = setup.step(batch, clip_grad_norm=1.0)
        assert result.skip_reason is None
        losses.append(result.loss)
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])
