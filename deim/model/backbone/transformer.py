"""The parts that the vision transformers share: patches, rotary positions, blocks.

Source:
    Dosovitskiy et al. (arXiv:2010.11929), with rotary positions. Written from the equations; attribute names
    follow the published weight files.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.config.checks import HEADS, LAYERS, WIDTH, check, outside

PATCH_SIZE = 16
LONGEST_PERIOD = 100.0
"""Longest period of the rotary positions, in units of the half image side."""
RotaryTable = tuple[Tensor, Tensor]
"""Cosine and sine, each (H·W, head dim) float32, patches in row-major order."""


def check_sizes(dim: int, depth: int, num_heads: int, blocks: tuple[int, ...], adapter_width: int) -> None:
    """Check the sizes of a transformer, and the blocks that it returns.

    Raises:
        ConfigError: If any is impossible.
    """
    heads = max(num_heads, 1)
    check(
        [
            *outside(1, WIDTH, dim=dim, adapter_width=adapter_width),
            *outside(1, LAYERS, depth=depth),
            *outside(1, HEADS, num_heads=num_heads),
            (dim % (heads * 4) != 0, f"dim: {dim} is not a multiple of num_heads · 4 = {num_heads * 4}"),
            (
                list(blocks) != sorted(set(blocks)) or not all(0 <= block < depth for block in blocks),
                f"return_blocks: got {list(blocks)}, needs three ascending blocks in [0, {depth})",
            ),
        ]
    )


class AxialRope(nn.Module):
    """Angles of the patch grid: half of the channels follow y, half follow x, on a grid scaled to [-1, 1].

    `head_dim`, the channels of an attention head, is a multiple of 4.

    Source:
        Su et al., RoFormer (arXiv:2104.09864), in the axial form described for DINOv3 (arXiv:2508.10104).
    """

    periods: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        count = head_dim // 4
        self.register_buffer("periods", LONGEST_PERIOD ** (torch.arange(count, dtype=torch.float32) / count))

    def forward(self, grid_hw: tuple[int, int], *, scale: Tensor | None = None) -> RotaryTable:
        """Compute the table for a grid of patches; `scale`, () float, multiplies all coordinates."""
        height, width = grid_hw
        periods = self.periods.float()
        y = (torch.arange(height, device=periods.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=periods.device) + 0.5) / width * 2 - 1
        coordinates = torch.cartesian_prod(y, x)
        if scale is not None:
            coordinates = coordinates * scale
        angles = (2 * math.pi * coordinates[:, :, None] / periods).flatten(1).repeat(1, 2)
        return angles.cos(), angles.sin()


def rotate(tokens: Tensor, table: RotaryTable, *, num_prefix: int) -> Tensor:
    """Rotate the patch tokens of queries or keys, in float32; prefix tokens pass unchanged.

    Channel i turns together with channel i + head dim / 2.

    Args:
        tokens: (B, heads, num_prefix + H·W, head dim) float; the result has the same shape and type.
        table: From `AxialRope`.
        num_prefix: Class and register tokens at the front.
    """
    cos, sin = table
    prefix, patches = tokens[:, :, :num_prefix], tokens[:, :, num_prefix:].float()
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([prefix, turned.to(tokens.dtype)], dim=2)


class MaskedBiasLinear(nn.Linear):
    """Queries, keys and values at once; a stored mask switches the bias of the keys off, as in DINOv3."""

    bias_mask: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        mask = torch.ones(3 * dim)
        mask[dim : 2 * dim] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., 3 · dim) of tokens (..., dim)."""
        return F.linear(tokens, self.weight, self.bias * self.bias_mask)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions on the patch tokens."""

    def __init__(self, dim: int, num_heads: int, *, mask_key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = MaskedBiasLinear(dim) if mask_key_bias else nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, table: RotaryTable, num_prefix: int) -> Tensor:
        """Return (B, T, D) of tokens (B, T, D), `num_prefix` of which come before the patches."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query = rotate(query, table, num_prefix=num_prefix)
        key = rotate(key, table, num_prefix=num_prefix)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Feed-forward of two linear layers with GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGlu(nn.Module):
    """Gated feed-forward of ViT-S+, whose hidden width is 4 · dim, rounded up to a multiple of 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden_dim = (4 * dim + 7) // 8 * 8
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))


class LayerScale(nn.Module):
    """Learned factor for each channel of a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        dim: Token width.
        num_heads: Attention heads.
        norm_eps: Epsilon of the normalization.
        ffn: Feed-forward.
        is_scaled: Whether the branches have a learned scale and the keys no bias, as in DINOv3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        norm_eps: float,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        is_scaled: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, mask_key_bias=is_scaled)
        self.ls1: nn.Module = LayerScale(dim) if is_scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: nn.Module = Mlp(dim) if ffn == "mlp" else SwiGlu(dim)
        self.ls2: nn.Module = LayerScale(dim) if is_scaled else nn.Identity()

    def forward(self, tokens: Tensor, table: RotaryTable, num_prefix: int) -> Tensor:
        """Return (B, T, D) of tokens (B, T, D), `num_prefix` of which come before the patches."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), table, num_prefix))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class PatchEmbed(nn.Module):
    """Cut the image into 16 x 16 patches and project each to a token."""

    def __init__(self, dim: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (B, H/16 · W/16, D) of images (B, in_channels, H, W), and the grid (H/16, W/16)."""
        patches = self.proj(images)
        return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def init_linears(model: nn.Module) -> None:
    """Draw the weights of all linear layers anew, and set their biases to 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


def tokens_to_map(tokens: Tensor, grid_hw: tuple[int, int], *, num_prefix: int) -> Tensor:
    """Return the patch tokens of (B, T, D), `num_prefix` of which come first, as a map (B, D, H/16, W/16)."""
    return tokens[:, num_prefix:].transpose(1, 2).unflatten(2, grid_hw)
