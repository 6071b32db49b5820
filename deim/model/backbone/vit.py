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

from deim.config.checks import below, check
from deim.model.backbone.transformer_block import AxialRope, Block

PATCH_SIZE = 16
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
