"""The interface of backbones: everything outside the room uses it alone, so that another one fits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deim.engine.optimizer import RecipeOptions, build_optimizer
from deim.loss.criterion import Criterion, LossOptions
from deim.model.activation_checkpointing import checkpoint_activations
from deim.model.backbone.interface import Backbone
from deim.model.detector import Detector
from deim.model.weights import load_initial_weights
from tests.model.tiny import random_images, random_targets, tiny_detector


class ConvBackbone(nn.Module):
    """A pyramid of strided convolutions."""

    pixel_filter_keys = ("patch_embed.proj.weight",)
    strides = (8, 16, 32)

    def __init__(self, hidden_dim: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.pretrained = nn.ModuleDict(
            {"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(in_channels, hidden_dim, 8, stride=8)})}
        )
        self.down = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 2, stride=2) for _ in range(2))

    def checkpointable_blocks(self) -> list[nn.Module]:
        return list(self.down)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [self.pretrained["patch_embed"]["proj"](images)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return tuple(maps)


@pytest.fixture
def make_detector(monkeypatch: pytest.MonkeyPatch):
    def build(options, hidden_dim: int, *, in_channels: int = 3) -> Backbone:
        return ConvBackbone(hidden_dim, in_channels)

    monkeypatch.setattr("deim.model.detector.build_backbone", build)
    return tiny_detector


def test_another_backbone_trains_with_and_without_activation_checkpointing(make_detector) -> None:
    images, targets = random_images(2), random_targets((1, 2))
    gradients = []
    for is_checkpointed in (False, True):
        model: Detector = make_detector(shake=0.05)
        if is_checkpointed:
            checkpoint_activations(model)
        torch.manual_seed(1)
        sum(Criterion(LossOptions())(model.train()(images, targets), targets).values()).backward()
        gradients.append([parameter.grad for parameter in model.backbone.parameters()])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


def test_its_pretrained_part_has_a_rate_and_takes_a_file(make_detector, tmp_path: Path) -> None:
    source, target = make_detector(seed=1), make_detector(channels=1)
    groups = build_optimizer(target, RecipeOptions(lr=1e-3, backbone_lr=1e-5)).param_groups
    slow = {id(p) for group in groups if group["lr"] == 1e-5 for p in group["params"]}
    assert slow == {id(p) for p in target.backbone.pretrained.parameters()}
    path = tmp_path / "conv.pth"
    torch.save(source.backbone.pretrained.state_dict(), path)
    report = load_initial_weights(target, path)
    assert (report.part, report.share) == ("backbone", 1.0)
    assert report.adapted == ("patch_embed.proj.weight (3 to 1 channels)",)
    filters = source.backbone.pretrained["patch_embed"]["proj"].weight
    adapted = target.backbone.pretrained["patch_embed"]["proj"].weight
    torch.testing.assert_close(adapted, filters.sum(dim=1, keepdim=True))


def test_nothing_outside_the_room_reaches_into_a_transformer() -> None:
    root = Path(__file__).resolve().parents[2]
    for room in ("deim", "multimodal"):
        for path in (root / room).rglob("*.py"):
            if "backbone" not in path.parts:
                assert ".vit" not in path.read_text(encoding="utf-8"), path
