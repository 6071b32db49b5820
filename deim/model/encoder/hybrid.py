"""The hybrid encoder: self-attention on the coarsest map, then fusion down and up the pyramid.

Source:
    RT-DETR (arXiv:2304.08069), figure 4, with the fusion blocks of DEIMv2. Attribute names are official.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.config.checks import HEADS, LAYERS, WIDTH, check, outside

LONGEST_WAVE = 10000.0
"""Ratio of the longest to the shortest wavelength of the position codes."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and, if asked, SiLU; padding keeps the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        has_silu: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.has_silu = has_silu

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H/stride, W/stride) of features (B, in_channels, H, W)."""
        features = self.norm(self.conv(features))
        return F.silu(features) if self.has_silu else features


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
        self.conv1 = ConvNorm(in_channels, 2 * out_channels, has_silu=True)
        self.bottlenecks = nn.Sequential(*(RepBlock(out_channels) for _ in range(num_blocks)))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, out_channels, H, W) of features (B, in_channels, H, W)."""
        kept, worked = self.conv1(features).chunk(2, dim=1)
        return kept + self.bottlenecks(worked)


class FusionBlock(nn.Module):
    """Aggregation of a map through two CSP units of `mid_channels`, all intermediate results kept.

    Source:
        GELAN of YOLOv9 (arXiv:2402.13616), in the form of DEIMv2.
    """

    def __init__(self, channels: int, mid_channels: int, *, num_blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(channels, 2 * channels, has_silu=True)
        self.cv2 = nn.Sequential(CspUnit(channels, mid_channels, num_blocks=num_blocks))
        self.cv3 = nn.Sequential(CspUnit(mid_channels, mid_channels, num_blocks=num_blocks))
        self.cv4 = ConvNorm(2 * channels + 2 * mid_channels, channels, has_silu=True)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, channels, H, W) of the same."""
        first, second = self.cv1(features).chunk(2, dim=1)
        third = self.cv2(second)
        return self.cv4(torch.cat([first, second, third, self.cv3(third)], dim=1))


def downsample(channels: int) -> nn.Sequential:
    """Build a layer that halves height and width: a 1 x 1 convolution, then a depthwise 3 x 3 of stride 2."""
    pointwise = ConvNorm(channels, channels)
    depthwise = ConvNorm(channels, channels, kernel_size=3, stride=2, groups=channels)
    return nn.Sequential(OrderedDict(cv1=pointwise, cv2=depthwise))


class TransformerEncoderLayer(nn.Module):
    """Post-norm self-attention layer with GELU feed-forward; positions are added to queries and keys."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridEncoderOptions:
    """Hybrid encoder: attention at stride 32, then fusion up and down the pyramid."""

    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Hidden width of the attention layer's feed-forward."""
    expansion: float = 1.0
    """Width of the fusion blocks relative to half of `model.hidden_dim`, in (0, 4]."""
    depth_mult: float = 1.0
    """Fusion blocks have round(3 · depth_mult) convolutions in sequence."""

    def __post_init__(self) -> None:
        check(
            [
                *outside(1, HEADS, num_heads=self.num_heads),
                *outside(1, WIDTH, dim_feedforward=self.dim_feedforward),
                (not 0 < self.expansion <= 4, f"expansion: got {self.expansion}, needs (0, 4]"),
                (round(3 * self.depth_mult) < 1, f"depth_mult: got {self.depth_mult}, gives no block at all"),
                *outside(0, LAYERS, depth_mult=self.depth_mult),
            ]
        )


class HybridEncoder(nn.Module):
    """Mix the three maps of the backbone, of `hidden_dim` channels each."""

    def __init__(self, options: HybridEncoderOptions, hidden_dim: int) -> None:
        super().__init__()
        layer = TransformerEncoderLayer(
            hidden_dim, options.num_heads, dim_feedforward=options.dim_feedforward
        )
        # Two wrappers deep, as in the official weights: a stack for each level that has attention.
        self.encoder = nn.ModuleList([nn.ModuleDict({"layers": nn.ModuleList([layer])})])
        mid_channels = round(options.expansion * hidden_dim // 2)
        num_blocks = round(3 * options.depth_mult)
        self.lateral_convs = nn.ModuleList(ConvNorm(hidden_dim, hidden_dim) for _ in range(2))
        self.fpn_blocks = nn.ModuleList(
            FusionBlock(hidden_dim, mid_channels, num_blocks=num_blocks) for _ in range(2)
        )
        self.downsample_convs = nn.ModuleList(nn.Sequential(downsample(hidden_dim)) for _ in range(2))
        self.pan_blocks = nn.ModuleList(
            FusionBlock(hidden_dim, mid_channels, num_blocks=num_blocks) for _ in range(2)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of the same shapes as `features`, (B, hidden_dim, H/s, W/s) for s = 8, 16, 32."""
        stride_8, stride_16, stride_32 = features
        lateral_32 = self.lateral_convs[0](self._attend(stride_32))
        lateral_16 = self.lateral_convs[1](self.fpn_blocks[0](_double(lateral_32) + stride_16))
        out_8 = self.fpn_blocks[1](_double(lateral_16) + stride_8)
        out_16 = self.pan_blocks[0](self.downsample_convs[0](out_8) + lateral_16)
        out_32 = self.pan_blocks[1](self.downsample_convs[1](out_16) + lateral_32)
        return [out_8, out_16, out_32]

    def checkpointable_blocks(self) -> list[nn.Module]:
        """Return the blocks whose activations may be recomputed in the backward pass."""
        return [*self.fpn_blocks, *self.pan_blocks]

    def _attend(self, features: Tensor) -> Tensor:
        channels, height, width = features.shape[1:]
        if features.requires_grad:
            # The attention returns a gradient of unusual strides, from which torch's CPU batch norm computes
            # a wrong one if the batch has one image (seen in torch 2.15).
            features.register_hook(torch.Tensor.contiguous)
        tokens = features.flatten(2).transpose(1, 2)
        positions = sincos_positions((height, width), channels, device=features.device).to(features.dtype)
        for layer in self.encoder[0]["layers"]:  # type: ignore[index]
            tokens = layer(tokens, positions)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def sincos_positions(size_hw: tuple[int, int], dim: int, *, device: torch.device) -> Tensor:
    """Fixed sine and cosine code (H·W, dim) float32 of the cells of a map, in row-major order.

    A quarter of the channels each for sin y, cos y, sin x, cos x, in this order; `dim` is a multiple of 4.
    The official table has the two axes in the same places on square maps, but mixes them on others.
    """
    height, width = size_hw
    quarter = dim // 4
    omega = LONGEST_WAVE ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    y = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)[:, None] * omega
    x = torch.arange(width, device=device, dtype=torch.float32).repeat(height)[:, None] * omega
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=1)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")
