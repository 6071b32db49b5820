"""The vision transformers: the distilled ViT-Tiny family of the S and M models, and DINOv3 of L and X.

Source:
    Dosovitskiy et al. (arXiv:2010.11929), with rotary positions, distilled by DEIMv2 (arXiv:2509.20787).
    DINOv3 (arXiv:2508.10104); register tokens, Darcet et al. (arXiv:2309.16588). Written from the equations;
    attribute names follow the published weight files.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.config.checks import below, check

PATCH_SIZE = 16
LONGEST_PERIOD = 100.0
"""Longest period of the rotary positions, in units of the half image side."""
RotaryTable = tuple[Tensor, Tensor]
"""Cosine and sine, each (H·W, head dim) float32, patches in row-major order."""
NUM_REGISTERS = 4
COORDINATE_RESCALE = 2.0
"""Training of DINOv3 scales the patch coordinates by a random factor in [1 / 2, 2]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VitTinyOptions:
    """Plain vision transformer with rotary positions: the distilled ViT-Tiny family of the S and M models."""

    type: Literal["vit_tiny"]
    dim: int
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (3, 7, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 16
    """Channels of the first convolution of the spatial adapter."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoV3Options:
    """DINOv3 vision transformer: register tokens, layer scale, masked key bias; the backbone of L and X."""

    type: Literal["dinov3"]
    dim: int = 384
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (5, 8, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 32
    """Channels of the first convolution of the spatial adapter."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward of each block: ViT-S has `mlp`, ViT-S+ has `swiglu`."""

    def __post_init__(self) -> None:
        _check(self)


def _check(options: VitTinyOptions | DinoV3Options) -> None:
    dim, depth, heads, blocks = options.dim, options.depth, options.num_heads, list(options.return_blocks)
    check(
        [
            *below(1, dim=dim, depth=depth, num_heads=heads, adapter_width=options.adapter_width),
            (dim % (max(heads, 1) * 4) != 0, f"dim: {dim} is not a multiple of num_heads · 4 = {heads * 4}"),
            (
                blocks != sorted(set(blocks)) or not all(0 <= block < depth for block in blocks),
                f"return_blocks: got {blocks}, needs three ascending blocks in [0, {depth})",
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
    """Pre-norm transformer block; that of DINOv3 scales its branches and masks the bias of the keys."""

    def __init__(self, dim: int, num_heads: int, *, ffn: Literal["mlp", "swiglu"], is_dinov3: bool) -> None:
        super().__init__()
        norm_eps = 1e-5 if is_dinov3 else 1e-6
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, mask_key_bias=is_dinov3)
        self.ls1: nn.Module = LayerScale(dim) if is_dinov3 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: nn.Module = Mlp(dim) if ffn == "mlp" else SwiGlu(dim)
        self.ls2: nn.Module = LayerScale(dim) if is_dinov3 else nn.Identity()

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


class VisionTransformer(nn.Module):
    """Vision transformer that returns the patch tokens of chosen blocks as feature maps.

    DINOv3 has register tokens and normalizes the maps; in training it draws a factor for the coordinates of
    each block.
    """

    def __init__(self, options: VitTinyOptions | DinoV3Options, *, in_channels: int) -> None:
        super().__init__()
        dim = options.dim
        self.is_dinov3 = isinstance(options, DinoV3Options)
        self.return_blocks = options.return_blocks
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if self.is_dinov3:
            self.storage_tokens = nn.Parameter(torch.zeros(1, NUM_REGISTERS, dim))
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
            self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.patch_embed = PatchEmbed(dim, in_channels=in_channels)
        self.rope_embed = AxialRope(dim // options.num_heads)
        ffn = options.ffn if isinstance(options, DinoV3Options) else "mlp"
        self.blocks = nn.ModuleList(
            Block(dim, options.num_heads, ffn=ffn, is_dinov3=self.is_dinov3) for _ in range(options.depth)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        if self.is_dinov3:
            nn.init.normal_(self.cls_token, std=0.02)
            nn.init.normal_(self.storage_tokens, std=0.02)
            self.patch_embed.proj.reset_parameters()  # a second draw, which seeds depend on
        else:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map (B, dim, H/16, W/16) of images (B, in_channels, H, W) for each of `return_blocks`."""
        patches, grid_hw = self.patch_embed(images)
        prefix: Tensor = self.cls_token
        if self.is_dinov3:
            # The mask token is for pretraining. The product with 0 gives it a gradient, so that a distributed
            # step finds one for every parameter.
            prefix = torch.cat([prefix + 0 * self.mask_token, self.storage_tokens], dim=1)
        num_prefix = prefix.shape[1]
        tokens = torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
        table = self.rope_embed(grid_hw)
        maps = []
        for index, block in enumerate(self.blocks):
            if self.is_dinov3 and self.training:
                table = self.rope_embed(grid_hw, scale=_random_scale(tokens.device))
            tokens = block(tokens, table, num_prefix)
            if index in self.return_blocks:
                patches = (self.norm(tokens) if self.is_dinov3 else tokens)[:, num_prefix:]
                maps.append(patches.transpose(1, 2).unflatten(2, grid_hw))
        return maps


def _random_scale(device: torch.device) -> Tensor:
    bound = math.log(COORDINATE_RESCALE)
    return torch.empty((), device=device).uniform_(-bound, bound).exp()
