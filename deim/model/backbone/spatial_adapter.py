"""The spatial tuning adapter: convolutions for detail, and their fusion with the transformer's maps.

Source:
    DEIMv2 (arXiv:2509.20787), section on the spatial tuning adapter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _down(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class SpatialPrior(nn.Module):
    """Small convolutional pyramid with 2, 4 and 4 times `width` channels at strides 8, 16 and 32."""

    def __init__(self, width: int, *, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_down(in_channels, width), nn.GELU(), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        # Each output is taken before its activation; the next step begins with it.
        self.conv2 = nn.Sequential(*_down(width, 2 * width))
        self.conv3 = nn.Sequential(nn.GELU(), *_down(2 * width, 4 * width))
        self.conv4 = nn.Sequential(nn.GELU(), *_down(4 * width, 4 * width))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps at strides 8, 16, 32 of images (B, in_channels, H, W)."""
        stride_8 = self.conv2(self.stem(images))
        stride_16 = self.conv3(stride_8)
        return stride_8, stride_16, self.conv4(stride_16)


class SpatialAdapterBackbone(nn.Module):
    """Vision transformer and spatial prior, fused at strides 8, 16 and 32; a `Backbone`.

    Args:
        transformer: Module whose three maps (B, dim, H/16, W/16) feed a stride each; or a dictionary that
            holds it under the name of the official weights, `_model`.
        dim: Channels of these maps.
        width: Channels of the first convolution of the prior.
        hidden_dim: Channels of the maps of the backbone.
        in_channels: Number of image channels.
    """

    pixel_filter_keys = ("patch_embed.proj.weight", "sta.stem.0.weight")
    strides = (8, 16, 32)

    def __init__(
        self, transformer: nn.Module, *, dim: int, width: int, hidden_dim: int, in_channels: int
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.dinov3 = transformer
        self.sta = SpatialPrior(width, in_channels=in_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(dim + factor * width, hidden_dim, kernel_size=1, bias=False) for factor in (2, 4, 4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden_dim) for _ in range(3))

    @property
    def pretrained(self) -> nn.Module:
        """The transformer."""
        return self.dinov3["_model"] if isinstance(self.dinov3, nn.ModuleDict) else self.dinov3

    def checkpointable_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of the transformer."""
        return list(self.pretrained.get_submodule("blocks").children())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, hidden_dim, H/s, W/s) for s = 8, 16, 32 of images (B, in_channels, H, W)."""
        details, maps = self.sta(images), self.pretrained(images)
        fused = []
        for semantic, detail, conv, norm in zip(maps, details, self.convs, self.norms, strict=True):
            resized = F.interpolate(semantic, size=detail.shape[-2:], mode="bilinear", align_corners=False)
            fused.append(norm(conv(torch.cat([resized, detail], dim=1))))
        return tuple(fused)
