"""Changes of color beside torchvision's own."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.data.augment import colors
from deim.data.augment.colors import Colors, Kind, change_colors
from deim.data.augment.transform import Sample

KINDS = ["noise", "grid", "gray", "black"]


def make_image(kind: str) -> Tensor:
    """Small ones with all there is: (3, 70, 64) uint8, or (3, 32, 1024) for the grid."""
    generator = torch.Generator().manual_seed(0)
    match kind:
        case "noise":
            return torch.randint(0, 256, (3, 70, 64), dtype=torch.uint8, generator=generator)
        case "grid":
            steps = torch.linspace(0, 255, 32).round().to(torch.uint8)
            return torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, 32, 1024)
        case "gray":
            return torch.arange(256, dtype=torch.uint8).repeat(3, 70, 1)
    return torch.zeros(3, 70, 64, dtype=torch.uint8)


ADJUST = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}
Changes = list[tuple[Kind, float]]


def by_torchvision(photo_image: Tensor, changes: Changes) -> Tensor:
    for kind, factor in changes:
        photo_image = ADJUST[kind](photo_image, factor)
    return photo_image


def largest_difference(item: Tensor, other: Tensor) -> int:
    return int((item.int() - other.int()).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        *(([("brightness", factor)], 0) for factor in (0.875, 0.93, 1.06, 1.125)),
        *(([("contrast", factor)], 0) for factor in (0.5, 0.77, 1.31, 1.5)),
        # A gray that rounding puts on the other side of a whole number.
        *(([("saturation", factor)], 1) for factor in (0.0, 0.5, 0.77, 1.31, 1.5)),
        *(([("hue", share)], 1) for share in (-0.05, -0.021, -1e-4, 0.0, 1e-9, 0.013, 0.05)),
        *(([("hue", share)], 2) for share in (-1 / 6, -0.12, 0.12, 1 / 6)),
        ([("brightness", 1.1), ("contrast", 1.4), ("saturation", 0.6), ("hue", 0.04)], 2),
        ([("brightness", 1.1), ("saturation", 0.6), ("hue", 0.04), ("contrast", 1.4)], 2),
    ],
    ids=str,
)
def test_changes_are_those_of_torchvision(kind: str, changes: Changes, tolerance: int) -> None:
    photo_image = make_image(kind)
    kept = photo_image.clone()
    changed = change_colors(photo_image, changes)
    assert changed.dtype == torch.uint8
    assert largest_difference(changed, by_torchvision(photo_image, changes)) <= tolerance
    assert torch.equal(photo_image, kept)


def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: Changes = [("brightness", 0.9), ("contrast", 1.3), ("saturation", 1.2), ("hue", -0.03)]
    photo_image = make_image("noise")
    whole = change_colors(photo_image, changes)
    monkeypatch.setattr(colors, "BLOCK", 1000)
    assert torch.equal(change_colors(photo_image, changes), whole)
    strided = photo_image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(change_colors(strided, changes), whole)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("is_float", [False, True])
def test_any_channels_and_floats(channels: int, is_float: bool) -> None:
    photo_image = torch.randint(0, 256, (channels, 20, 30), dtype=torch.uint8)
    image = photo_image.float() / 255 if is_float else photo_image
    colored: Changes = [("saturation", 0.5), ("hue", 0.05)] if channels == 3 else []
    everything: Changes = [("brightness", 1.1), *colored, ("contrast", 0.7)]
    assert change_colors(image, []) is image
    changed = change_colors(image, everything)
    assert changed.dtype == image.dtype
    levels = (changed * 255).round() if is_float else changed
    if channels in (1, 3):
        expected = by_torchvision(photo_image, everything) if channels == 3 else photo_image
        if channels == 1:
            expected = TF.adjust_contrast(TF.adjust_brightness(photo_image, 1.1), 0.7)
        # Floats are not cut between the changes.
        assert largest_difference(levels, expected) <= (3 if is_float else 2)
    else:
        bright = (photo_image.float() * 1.1).clamp(0, 255).floor()
        expected = (bright * 0.7 + 0.3 * bright.mean()).floor()
        assert largest_difference(levels, expected) <= (2 if is_float else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_are_the_same_whatever_they_give(channels: int) -> None:
    """Brightness, contrast (first or last), saturation, hue, order: a share each, a factor if it is hit."""
    sample = Sample(
        image=make_image("noise")[:channels], boxes_xyxy=torch.zeros(0, 4), labels=torch.zeros(0).long()
    )
    for seed in range(20):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        changed = Colors(probability=0.5).change(sample, rng=rng).image
        contrast_first = other.random() < 0.5
        names = ["brightness", "saturation", "hue"] if channels == 3 else ["brightness"]
        names.insert(1 if contrast_first else len(names), "contrast")
        ranges = {"brightness": (0.875, 1.125), "hue": (-0.05, 0.05)}
        drawn = [
            (name, other.uniform(*ranges.get(name, (0.5, 1.5)))) for name in names if other.random() < 0.5
        ]
        expected = by_torchvision(sample.image, drawn)
        if channels == 3 and other.random() < 0.5:
            expected = expected[torch.from_numpy(other.permutation(3))]
        assert largest_difference(changed, expected) <= 2
        assert rng.random() == other.random()


def test_a_turn_by_more_than_a_sixth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hue: got 0\.2, needs \[-1/6, 1/6\]\."):
        change_colors(make_image("noise"), [("hue", 0.2)])
