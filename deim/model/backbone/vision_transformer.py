"""The vision transformer: one class for the distilled ViT-Tiny family and for DINOv3.

Source:
    Dosovitskiy et al. (arXiv:2010.11929); register tokens, Darcet et al. (arXiv:2309.16588); layer scale,
    Touvron et al. (arXiv:2103.17239); DINOv3 (arXiv:2508.10104). Written from the equations; attribute names
    follow the published weight files.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.model.backbone.rope import AxialRope, RotaryTable, rotate

PATCH_SIZE = 16
COORDINATE_RESCALE = 2.0
"""Training of the DINOv3 family scales patch coordinates by a factor in [1 / 2, 2]."""


class PatchEmbed(nn.Module):
    """Cut the image into 16 x 16 patches and project each to a token."""

    def __init__(self, dim: int, *, channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (B, H/16 · W/16, D) of images (B, channels, H, W), and the grid (H/16, W/16)."""
        patches = self.proj(images)
        return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


class MaskedBiasLinear(nn.Linear):
    """Linear layer whose bias is multiplied by a stored mask: DINOv3 switches the key bias off."""

    bias_mask: Tensor

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(dim, out_dim)
        mask = torch.ones(out_dim)
        mask[out_dim // 3 : 2 * out_dim // 3] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., out_dim) of tokens (..., dim)."""
        return F.linear(tokens, self.weight, self.bias * self.bias_mask)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions on the patch tokens."""

    def __init__(self, dim: int, num_heads: int, *, mask_key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = MaskedBiasLinear(dim, 3 * dim) if mask_key_bias else nn.Linear(dim, 3 * dim)
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

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwiGlu(nn.Module):
    """Gated feed-forward of ViT-S+."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim)
        self.w2 = nn.Linear(dim, hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return self.w3(F.silu(self.w1(tokens)) * self.w2(tokens))


class LayerScale(nn.Module):
    """Learned factor for each channel of a residual branch."""

    def __init__(self, dim: int, *, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        return tokens * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, dim: int, num_heads: int, *, ffn: Literal["mlp", "swiglu"], dinov3: bool, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, mask_key_bias=dinov3)
        self.ls1: nn.Module = LayerScale(dim) if dinov3 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: nn.Module = Mlp(dim, 4 * dim) if ffn == "mlp" else SwiGlu(dim, _swiglu_width(dim))
        self.ls2: nn.Module = LayerScale(dim) if dinov3 else nn.Identity()

    def forward(self, tokens: Tensor, table: RotaryTable, num_prefix: int) -> Tensor:
        """Return (B, T, D) of tokens (B, T, D)."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), table, num_prefix))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Vision transformer that returns the patch tokens of chosen blocks as feature maps.

    Args:
        dim: Token width.
        depth: Number of blocks.
        num_heads: Attention heads; head dim is dim / num_heads.
        return_blocks: 0-based blocks to return, ascending.
        dinov3: True for DINOv3: four register tokens, layer scale, masked key bias, a final norm on every
            returned map, and random rescaling of the coordinates in training. False for ViT-Tiny: none of
            these.
        ffn: Feed-forward of the blocks.
        channels: Of the images.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        num_heads: int,
        return_blocks: Sequence[int],
        dinov3: bool,
        ffn: Literal["mlp", "swiglu"] = "mlp",
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.return_blocks = tuple(return_blocks)
        self.rescale_coordinates = dinov3
        self.num_prefix = 5 if dinov3 else 1
        norm_eps = 1e-5 if dinov3 else 1e-6
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if dinov3:
            self.storage_tokens = nn.Parameter(torch.zeros(1, 4, dim))
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
            self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.patch_embed = PatchEmbed(dim, channels=channels)
        self.rope_embed = AxialRope(dim // num_heads)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn=ffn, dinov3=dinov3, norm_eps=norm_eps) for _ in range(depth)
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.rescale_coordinates:
            nn.init.normal_(self.cls_token, std=0.02)
            nn.init.normal_(self.storage_tokens, std=0.02)
            bound = math.sqrt(1 / (self.patch_embed.proj.in_channels * PATCH_SIZE**2))
            nn.init.uniform_(self.patch_embed.proj.weight, -bound, bound)
            assert self.patch_embed.proj.bias is not None
            nn.init.uniform_(self.patch_embed.proj.bias, -bound, bound)
        else:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps.

        Args:
            images: (B, channels, H, W) float, normalized; H and W multiples of 16.

        Returns:
            A map (B, D, H/16, W/16) for each of `return_blocks`.
        """
        patches, grid_hw = self.patch_embed(images)
        tokens = torch.cat([*self._prefix(patches.shape[0]), patches], dim=1)
        rescale = self.rescale_coordinates and self.training
        table = self.rope_embed(grid_hw)
        maps = []
        for index, block in enumerate(self.blocks):
            if rescale:
                table = self.rope_embed(grid_hw, scale=self._random_scale(tokens.device))
            tokens = block(tokens, table, self.num_prefix)
            if index in self.return_blocks:
                final = self.norm(tokens) if self.rescale_coordinates else tokens
                maps.append(final[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid_hw))
        return maps

    def _prefix(self, batch: int) -> list[Tensor]:
        if not self.rescale_coordinates:
            return [self.cls_token.expand(batch, -1, -1)]
        # The mask token belongs to DINOv3's pretraining; here it only keeps its place in the weight files,
        # and the product with 0 gives it a gradient so that no parameter is left out of a distributed step.
        cls_token = self.cls_token + 0 * self.mask_token
        return [cls_token.expand(batch, -1, -1), self.storage_tokens.expand(batch, -1, -1)]

    @staticmethod
    def _random_scale(device: torch.device) -> Tensor:
        bound = math.log(COORDINATE_RESCALE)
        return torch.empty((), device=device).uniform_(-bound, bound).exp()


def _swiglu_width(dim: int) -> int:
    """Two thirds of six times the width, rounded up to a multiple of 8."""
    return (dim * 6 * 2 // 3 + 7) // 8 * 8
