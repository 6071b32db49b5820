"""Detectors of 1 to 4 channels: what they are built for, and how they start from weights for RGB."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deim.model.weights import adapt_filters, load_initial_weights
from tests.model.tiny import Kind, random_targets, tiny_detector

KINDS: list[Kind] = ["vit_tiny", "dinov3"]


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_fitted_filters_answer_to_gray_as_before(before: int, after: int) -> None:
    filters = torch.randn(5, before, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fitted = adapt_filters(filters, after)
    assert fitted.shape == (5, after, 3, 3)
    torch.testing.assert_close(fitted.sum(dim=1), filters.sum(dim=1))


def test_filters_for_rgb_become_what_is_promised() -> None:
    filters = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    total = filters.sum(dim=1)
    torch.testing.assert_close(adapt_filters(filters, 1)[:, 0], total)
    torch.testing.assert_close(adapt_filters(filters, 2), torch.stack([total / 2, total / 2], dim=1))
    assert adapt_filters(filters, 3) is filters
    four = adapt_filters(filters, 4)
    torch.testing.assert_close(four[:, :3], filters * 0.75)
    torch.testing.assert_close(four[:, 3], total / 3 * 0.75)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("part", ["detector", "backbone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_started_from_rgb_sees_gray_as_before(
    kind: Kind, part: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = tiny_detector(kind, seed=1, shake=0.05).eval()
    other = tiny_detector(kind, seed=2, shake=0.05, channels=channels).eval()
    path = tmp_path / "weights.pth"
    torch.save(rgb.state_dict() if part == "detector" else rgb.backbone.pretrained.state_dict(), path)
    with caplog.at_level(logging.INFO, logger="deim"):
        report = load_initial_weights(other, path)
    assert report.share == 1.0
    assert len(report.adapted) == (2 if part == "detector" else 1)
    assert f"patch_embed.proj.weight (3 to {channels} channels)" in caplog.text
    assert "from random weights" not in caplog.text
    gray = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(3))

    def answer(model: torch.nn.Module, images: Tensor) -> list[Tensor]:
        return model(images) if part == "backbone" else model.backbone(images)

    models = (other, rgb) if part == "detector" else (other.backbone.pretrained, rgb.backbone.pretrained)
    with torch.no_grad():
        pairs = zip(
            answer(models[0], gray.expand(-1, channels, -1, -1)),
            answer(models[1], gray.expand(-1, 3, -1, -1)),
            strict=True,
        )
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_the_same_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    source, target = (tiny_detector(seed=seed, channels=2, shake=0.05) for seed in (1, 2))
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_initial_weights(target, tmp_path / "weights.pth").adapted == ()
    assert all(torch.equal(target.state_dict()[key], value) for key, value in source.state_dict().items())


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_of_other_channels_get_a_gradient(kind: Kind, channels: int) -> None:
    model = tiny_detector(kind, channels=channels, shake=0.05).train()
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    output = model(images, random_targets((2, 1)))
    (output["pred_logits"].sum() + output["pred_boxes"].sum()).backward()
    for weight in (model.backbone.pretrained.patch_embed.proj.weight, model.backbone.sta.stem[0].weight):
        assert weight.shape[1] == channels
        assert (weight.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: got 3 channels, the detector is built for 1\. Prepare"):
        tiny_detector(channels=1)(torch.zeros(1, 3, 64, 64))
