"""The fused detector: exact at the start, boxes untouched, the detector frozen, C classes in predictions."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deim.engine.ema import EmaSchedule, ModelEma
from deim.engine.optimizer import RecipeOptions
from deim.inference.postprocess import select_detections
from deim.loss.matcher import HungarianMatcher, MatcherOptions
from deim.model.build import build_variant
from deim.structures import Placement
from multimodal.fusion_head import FusionHead, parameter_groups
from multimodal.loss import FusionCriterion, FusionLossOptions
from multimodal.wrapper import TextFusedDetector
from tests.model.tiny import Kind, random_images, random_targets, tiny_detector
from tests.multimodal.fused import (
    adamw,
    fuse,
    loss_terms,
    open_gates,
    random_text,
    small_head,
    state_hash,
    tiny_fused,
)

ROOT = Path(__file__).resolve().parents[2]
HEAD_PARAMETERS = {"nano": 922_143, "s": 987_807, "m": 1_053_471, "l": 1_020_639, "x": 1_053_471}
"""Of 6 classes, 3 prompts and 4 background prompts: 1,053,471 less 1,026 for each missing channel."""


def criterion_of() -> FusionCriterion:
    return FusionCriterion(
        matcher=HungarianMatcher(MatcherOptions(), late_epoch=80),
        options=FusionLossOptions(),
        confused=[(0, 1)],
    )


def train_step(model: TextFusedDetector, optimizer: torch.optim.Optimizer, *, seed: int = 0) -> Tensor:
    images, targets = random_images(2, seed=seed), random_targets((1, 2), seed=seed)
    optimizer.zero_grad()
    loss = sum(loss_terms(criterion_of(), model(images, targets), targets).values())
    loss.backward()
    optimizer.step()
    return loss


def trained(model: TextFusedDetector, *, steps: int = 3) -> TextFusedDetector:
    optimizer = adamw(model)
    for step in range(steps):
        train_step(model, optimizer, seed=step)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["vit_tiny", "dinov3"])
@pytest.mark.parametrize("size_hw", [(64, 64), (32, 96)])
def test_at_the_start_the_output_is_the_detectors(kind: Kind, training, size_hw):
    model = tiny_fused(tiny_detector(kind, shake=0.1)).train(training)
    alone = copy.deepcopy(model.detector).eval()
    images = random_images(2, *size_hw)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
            fused, expected = model(images), alone(images)
        assert torch.equal(fused["pred_logits"], expected["pred_logits"].float())
        assert torch.equal(fused["pred_boxes"], expected["pred_boxes"])
        assert torch.equal(fused["detector_logits"], expected["pred_logits"])


def test_training_moves_the_logits_and_never_the_boxes():
    model = tiny_fused()
    images = random_images(2)
    with torch.no_grad():
        expected = model.detector(images)
    trained(model)
    fused = model(images)
    assert not torch.allclose(fused["pred_logits"], expected["pred_logits"], atol=1e-4)
    assert torch.equal(fused["pred_boxes"], expected["pred_boxes"])
    assert torch.equal(fused["detector_logits"], expected["pred_logits"])


def test_the_detector_is_frozen_whatever_is_done_to_the_whole():
    detector = tiny_detector(shake=0.1)
    before = state_hash(detector)
    model = tiny_fused(detector).train()
    assert model.head.training
    assert not any(module.training for module in model.detector.modules())
    assert not any(parameter.requires_grad for parameter in model.detector.parameters())
    trained(model)
    # A trial step of the trainer leaves all batch norms in training mode.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    output = trained(model)(random_images(2))
    assert not output["pred_boxes"].requires_grad
    assert all(parameter.grad is None for parameter in model.detector.parameters())
    assert state_hash(model.detector) == before
    assert not any(module.training for module in model.detector.modules())
    assert not model.eval().head.training


def test_training_and_evaluation_give_the_same_and_targets_do_not_matter():
    model = trained(tiny_fused())
    images = random_images(2)
    first = model.train()(images, random_targets((2, 1)), max_boxes=5)
    second = model.eval()(images)
    for name in ("pred_logits", "pred_boxes", "detector_logits"):
        assert torch.equal(first[name], second[name])
    assert set(first) == {"pred_logits", "pred_boxes", "detector_logits", "text_scores"}


def test_the_background_is_never_predicted():
    model = tiny_fused().eval()
    with torch.no_grad():
        # The strongest column by far is the background's.
        model.head.background.copy_(model.head.plain_text()[:1] + model.head.center)
        model.head.log_scale.fill_(4.0)
        output = model(random_images(2))
    background = output["text_scores"].background_logits
    assert (background[..., None] > output["text_scores"].class_logits).all(dim=-1).any()
    assert output["pred_logits"].shape == (2, 20, 3)
    placement = Placement(orig_size_hw=(64, 64), span_hw=(64.0, 64.0), shift_yx=(0.0, 0.0))
    actual = select_detections(output, [placement] * 2)
    alone = select_detections(model.detector(random_images(2)), [placement] * 2)
    for single, other in zip(actual, alone, strict=True):
        assert len(single.scores) == 20 * 3
        assert single.labels.unique().tolist() == [0, 1, 2]
        assert torch.equal(single.labels, other.labels)
        assert torch.equal(single.queries, other.queries)
        assert torch.equal(single.scores, other.scores)


def test_gradients_of_the_first_steps_reach_all_there_is_to_train():
    model = tiny_fused()
    optimizer = adamw(model)
    train_step(model, optimizer)
    # Behind a closed gate and a last layer of zeros nothing can be learned yet.
    waiting = {"bias", "adapter.0.weight", "adapter.0.bias"}
    assert {name for name, p in model.head.named_parameters() if not p.grad.any()} == waiting
    for step in (1, 2):
        train_step(model, optimizer, seed=step)
        assert [name for name, p in model.head.named_parameters() if not p.grad.any()] == []


def test_steps_at_the_prescribed_rates_lower_the_loss():
    model = tiny_fused()
    optimizer = adamw(model)
    losses = [train_step(model, optimizer).item() for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert model.head.gate.abs().min() > 0.05


def test_findings_may_stand_for_images():
    model = trained(tiny_fused())
    actual = model.run_detector(random_images(2))
    assert actual.query_features.shape == (2, 20, 32)
    assert not any(
        tensor.requires_grad for tensor in (actual.query_features, actual.pred_logits, actual.pred_boxes)
    )
    from_images, from_outputs = model(random_images(2)), model(actual)
    assert torch.equal(from_images["pred_logits"], from_outputs["pred_logits"])
    assert torch.equal(from_images["pred_boxes"], from_outputs["pred_boxes"])


@pytest.mark.parametrize("autocast", [False, True])
def test_a_class_head_in_training_starts_where_the_detector_stands(autocast):
    model = TextFusedDetector(tiny_detector(shake=0.1), small_head(), train_class_head=True).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            expected = model.detector(random_images(2))
        output = model(random_images(2))
    assert torch.equal(output["detector_logits"], expected["pred_logits"])
    assert torch.equal(output["pred_logits"], expected["pred_logits"].float())
    assert not output["detector_logits"].requires_grad
    output["pred_logits"].sum().backward()
    assert all(p.grad is None for p in model.detector.parameters())
    assert all(p.grad.any() for p in model.class_head_delta.parameters())


def test_a_class_head_in_training_equals_the_detectors_own_trained_alike():
    """The change is added to the head's logits: the same as changed weights of the head itself."""
    model = TextFusedDetector(tiny_detector(shake=0.1), small_head(), train_class_head=True).train()
    before = state_hash(model.detector)
    images = random_images(2)
    boxes = model(images)["pred_boxes"]
    groups = parameter_groups(model.head, model.class_head_delta, RecipeOptions(lr=5e-5, weight_decay=1e-4))
    optimizer = torch.optim.AdamW(groups)
    for step in range(3):
        train_step(model, optimizer, seed=step)
    assert state_hash(model.detector) == before
    output = model(images)
    assert torch.equal(output["pred_boxes"], boxes)
    changed = copy.deepcopy(model)
    mine = changed.detector.decoder.dec_score_head[-1]
    with torch.no_grad():
        mine.weight += model.class_head_delta.weight
        mine.bias += model.class_head_delta.bias
    changed.class_head_delta = None
    torch.testing.assert_close(changed(images)["pred_logits"], output["pred_logits"], rtol=0, atol=1e-5)
    assert not torch.equal(
        output["pred_logits"],
        fuse(model.head, output["detector_logits"], model.run_detector(images).query_features)[..., :3],
    )


def test_an_average_of_the_weights_keeps_the_detector_bit_for_bit():
    model = tiny_fused()
    before = state_hash(model.detector)
    average = ModelEma(model, EmaSchedule(decay=0.9, warmup_steps=0))
    optimizer = adamw(model)
    for step in range(3):
        train_step(model, optimizer, seed=step)
        average.update()
    assert state_hash(average.model.detector) == before
    assert not torch.equal(average.model.head.gate, model.head.gate)
    assert average.model.head.gate.any()


def test_weights_travel_with_their_text():
    model = trained(tiny_fused())
    other = TextFusedDetector(tiny_detector(seed=5), small_head(random_text(seed=5), seed=5))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(random_images(1))["pred_logits"], model(random_images(1))["pred_logits"])


@pytest.mark.parametrize("name", HEAD_PARAMETERS)
def test_every_size_of_detector_is_exact_at_the_start_and_keeps_its_boxes(name):
    torch.manual_seed(0)
    detector = build_variant(name, num_classes=6)
    query_dim = detector.decoder.dec_score_head[-1].in_features
    head = FusionHead(random_text(6, width=512), random_text(1, 4, width=512)[0], query_dim=query_dim)
    assert sum(parameter.numel() for parameter in head.parameters()) == HEAD_PARAMETERS[name]
    model = TextFusedDetector(detector, head).train()
    images = random_images(1, 64, 96)
    with torch.no_grad():
        expected, output = detector(images), model(images)
        assert torch.equal(output["pred_logits"], expected["pred_logits"])
        open_gates(model.head)
        moved = model(images)
    assert not torch.allclose(moved["pred_logits"], expected["pred_logits"], atol=1e-3)
    assert torch.equal(moved["pred_boxes"], expected["pred_boxes"])


@pytest.mark.slow
def test_inference_imports_no_text_encoder():
    program = """
import sys, torch
from multimodal.fusion_head import FusionHead
from multimodal.loss import FusionCriterion
from multimodal.wrapper import TextFusedDetector
from tests.model.tiny import random_images, tiny_detector
head = FusionHead(torch.randn(3, 2, 16), torch.randn(2, 16), query_dim=32)
with torch.no_grad():
    TextFusedDetector(tiny_detector(), head)(random_images(1))
found = {name.split(".")[0] for name in sys.modules} & {"open_clip", "timm", "transformers", "ftfy"}
assert not found, found
assert "multimodal.encoders.hashed" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment)
