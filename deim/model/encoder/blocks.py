"""Building blocks of the hybrid encoder.

Attribute names follow the official weight files. Convolutions carry no bias; a batch norm follows each.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if asked, SiLU.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel; padding keeps the size at stride 1.
        stride: Step of the convolution.
        groups: Channel groups of the convolution.
        activation: Applied at the end.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Literal["silu", "none"] = "none",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H/stride, W/stride) of features (B, in_channels, H, W)."""
        features = self.norm(self.conv(features))
        return F.silu(features) if self.activation == "silu" else features


class RepBlock(nn.Module):
    """Sum of a 3 x 3 and a 1 x 1 convolution, then SiLU; the two can be fused into one for inference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, kernel_size=3)
        self.conv2 = ConvNorm(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W) of the same."""
        return F.silu(self.conv1(features) + self.conv2(features))


class CspUnit(nn.Module):
    """Split in two halves, send one through a row of `RepBlock`s, and add."""

    def __init__(self, in_channels: int, out_channels: int, *, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, 2 * out_channels, activation="silu")
        self.bottlenecks = nn.Sequential(*(RepBlock(out_channels) for _ in range(num_blocks)))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of features (B, in_channels, H, W)."""
        kept, worked = self.conv1(features).chunk(2, dim=1)
        return kept + self.bottlenecks(worked)


class FusionBlock(nn.Module):
    """Aggregation of a map through two CSP units, all intermediate results kept.

    Args:
        channels: Channels of input and output.
        mid_channels: Channels of each CSP unit.
        num_blocks: Convolution blocks in a CSP unit.

    Source:
        GELAN of YOLOv9 (arXiv:2402.13616), in the form of DEIMv2.
    """

    def __init__(self, channels: int, mid_channels: int, *, num_blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, 2 * channels, activation="silu")
        self.cv2 = nn.Sequential(CspUnit(channels, mid_channels, num_blocks=num_blocks))
        self.cv3 = nn.Sequential(CspUnit(mid_channels, mid_channels, num_blocks=num_blocks))
        self.cv4 = ConvNorm(2 * channels + 2 * mid_channels, channels, activation="silu")

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W) of the same."""
        first, second = self.cv1(features).chunk(2, dim=1)
        third = self.cv2(second)
        return self.cv4(torch.cat([first, second, third, self.cv3(third)], dim=1))


class Downsample(nn.Module):
    """Halve height and width: a 1 x 1 convolution, then a depthwise 3 x 3 of stride 2; no activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, channels)
        self.cv2 = ConvNorm(channels, channels, kernel_size=3, stride=2, groups=channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H/2, W/2) of features (B, channels, H, W)."""
        return self.cv2(self.cv1(features))


class TransformerEncoderLayer(nn.Module):
    """Post-norm self-attention layer with GELU feed-forward; positions are added to queries and keys.

    Args:
        dim: Token width.
        num_heads: Attention heads.
        dim_feedforward: Hidden width of the feed-forward.
    """

    def __init__(self, dim: int, num_heads: int, *, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return (B, T, D) of tokens (B, T, D) at positions (T, D)."""
        query = tokens + positions
        mixed, _ = self.self_attn(query, query, tokens, need_weights=False)
        tokens = self.norm1(tokens + mixed)
        return self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))
