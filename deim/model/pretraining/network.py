"""The network of pretraining: a backbone, and a head on each of its maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from deim.model.backbone.interface import Backbone, BackboneOptions, build_backbone
from deim.structures import Target

MASK_PX: Final = 32
"""Side of the squares that are masked, in pixels of the network input."""


@dataclass(frozen=True, slots=True)
class PretrainingOutput:
    """What the loss of pretraining sees of a batch."""

    images: Tensor
    """(B, channels, H, W) float, normalized, not masked."""
    maps: list[Tensor]
    """A prediction (B, C_s, H/s, W/s) for each stride s of the backbone."""
    mask: Tensor | None
    """(B, H/32, W/32) bool, true where the backbone did not see the image; None if nothing is masked."""


class PretrainingNetwork(nn.Module):
    """A backbone with a linear head on each map; its weights are those of `Detector.backbone`.

    Args:
        backbone: Options of the detector's backbone.
        hidden_dim: Channels of its maps.
        channels: Number of image channels.
        head_channels: Channels C_s that are predicted at each stride.
        mask_ratio: Share of the squares of an image that the backbone does not see, in [0, 1).
    """

    def __init__(
        self,
        backbone: BackboneOptions,
        *,
        hidden_dim: int,
        channels: int,
        head_channels: Sequence[int],
        mask_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.backbone = build_backbone(backbone, hidden_dim, in_channels=channels)
        self.heads = nn.ModuleList(nn.Conv2d(hidden_dim, number, kernel_size=1) for number in head_channels)

    @property
    def large_parts(self) -> tuple[Backbone]:
        """The part that is compiled, and whose activations may be recomputed."""
        return (self.backbone,)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,
        *,
        max_boxes: int | None = None,  # noqa: ARG002  of interest to denoising only
    ) -> PretrainingOutput:
        """Predict what the loss asks for at each place of the maps.

        Args:
            images: (B, channels, H, W) float, normalized; H and W multiples of 32.
            targets: Of each image, for the seed of its mask; None masks nothing.
            max_boxes: Not used.
        """
        mask = None
        seen = images
        if self.mask_ratio and targets is not None:
            mask = draw_masks(images, [target["noise_seed"] for target in targets], ratio=self.mask_ratio)
            pixels = mask.repeat_interleave(MASK_PX, dim=1).repeat_interleave(MASK_PX, dim=2)
            seen = images.masked_fill(pixels[:, None], 0.0)  # the mean color
        maps = self.backbone(seen)
        predicted = [head(features) for head, features in zip(self.heads, maps, strict=True)]
        return PretrainingOutput(images=images, maps=predicted, mask=mask)


def draw_masks(images: Tensor, seeds: Sequence[int], *, ratio: float) -> Tensor:
    """Draw the same number of squares to mask in each image, by the image's own seed.

    Args:
        images: (B, C, H, W); H and W multiples of 32.
        seeds: B numbers.
        ratio: Share of the squares, in [0, 1]; at least one is masked.

    Returns:
        (B, H/32, W/32) bool, on the device of the images.
    """
    height, width = (side // MASK_PX for side in images.shape[-2:])
    number = max(1, round(ratio * height * width))
    mask = torch.zeros(len(images), height * width, dtype=torch.bool)
    for row, seed in zip(mask, seeds, strict=True):
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
        row[order[:number]] = True
    return mask.view(-1, height, width).to(images.device)
