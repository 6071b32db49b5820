"""The plain vision transformer of the S and M models: the distilled ViT-Tiny family.

Source:
    Dosovitskiy et al. (arXiv:2010.11929), with rotary positions, distilled by DEIMv2 (arXiv:2509.20787).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deim.model.backbone.transformer import (
    AxialRope,
    Block,
    PatchEmbed,
    check_sizes,
    init_linears,
    tokens_to_map,
)


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
        check_sizes(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


class VitTiny(nn.Module):
    """Vision transformer that returns the patch tokens of chosen blocks as feature maps."""

    def __init__(self, options: VitTinyOptions, *, in_channels: int) -> None:
        super().__init__()
        self.return_blocks = options.return_blocks
        self.cls_token = nn.Parameter(torch.zeros(1, 1, options.dim))
        self.patch_embed = PatchEmbed(options.dim, in_channels=in_channels)
        self.rope_embed = AxialRope(options.dim // options.num_heads)
        self.blocks = nn.ModuleList(
            Block(options.dim, options.num_heads, norm_eps=1e-6) for _ in range(options.depth)
        )
        init_linears(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map (B, dim, H/16, W/16) of images (B, in_channels, H, W) for each of `return_blocks`."""
        patches, grid_hw = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        table = self.rope_embed(grid_hw)
        maps = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, table, 1)
            if index in self.return_blocks:
                maps.append(tokens_to_map(tokens, grid_hw, num_prefix=1))
        return maps
