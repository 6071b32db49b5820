"""DINOv3, the vision transformer of the L and X models.

Source:
    DINOv3 (arXiv:2508.10104); register tokens, Darcet et al. (arXiv:2309.16588).
"""

import math
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

NORM_EPS = 1e-5
NUM_REGISTERS = 4
COORDINATE_RESCALE = 2.0
"""Training scales the patch coordinates by a random factor in [1 / 2, 2]."""


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
        check_sizes(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


class DinoV3(nn.Module):
    """Vision transformer that returns the normalized patch tokens of chosen blocks as feature maps."""

    def __init__(self, options: DinoV3Options, *, in_channels: int) -> None:
        super().__init__()
        dim = options.dim
        self.return_blocks = options.return_blocks
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.storage_tokens = nn.Parameter(torch.zeros(1, NUM_REGISTERS, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.patch_embed = PatchEmbed(dim, in_channels=in_channels)
        self.rope_embed = AxialRope(dim // options.num_heads)
        self.blocks = nn.ModuleList(
            Block(dim, options.num_heads, norm_eps=NORM_EPS, ffn=options.ffn, is_scaled=True)
            for _ in range(options.depth)
        )
        init_linears(self)
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.storage_tokens, std=0.02)
        self.patch_embed.proj.reset_parameters()  # a second draw, which seeds depend on

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a map (B, dim, H/16, W/16) of images (B, in_channels, H, W) for each of `return_blocks`.

        Training mode draws a factor for the coordinates of each block.
        """
        patches, grid_hw = self.patch_embed(images)
        # The mask token is for pretraining. The product with 0 gives it a gradient, so that a distributed
        # step finds one for every parameter.
        prefix = torch.cat([self.cls_token + 0 * self.mask_token, self.storage_tokens], dim=1)
        tokens = torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)
        table, num_prefix = self.rope_embed(grid_hw), 1 + NUM_REGISTERS
        maps = []
        for index, block in enumerate(self.blocks):
            if self.training:
                table = self.rope_embed(grid_hw, scale=_random_scale(tokens.device))
            tokens = block(tokens, table, num_prefix)
            if index in self.return_blocks:
                maps.append(tokens_to_map(self.norm(tokens), grid_hw, num_prefix=num_prefix))
        return maps


def _random_scale(device: torch.device) -> Tensor:
    bound = math.log(COORDINATE_RESCALE)
    return torch.empty((), device=device).uniform_(-bound, bound).exp()
