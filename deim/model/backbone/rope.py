"""Axial rotary position embedding of image patches."""

import math

import torch
from torch import Tensor, nn

RotaryTable = tuple[Tensor, Tensor]
"""Cosine and sine, each (H·W, head dim) float32, patches in row-major order."""


class AxialRope(nn.Module):
    """Angles of the patch grid: half of the channels follow y, half follow x, on a grid scaled to [-1, 1].

    Args:
        head_dim: Channels of an attention head; a multiple of 4.
        base: Longest period in units of the half image side.

    Source:
        Su et al., RoFormer (arXiv:2104.09864), in the axial form described for DINOv3 (arXiv:2508.10104).
    """

    periods: Tensor

    def __init__(self, head_dim: int, *, base: float = 100.0) -> None:
        super().__init__()
        count = head_dim // 4
        self.register_buffer("periods", base ** (torch.arange(count, dtype=torch.float32) / count))

    def forward(self, grid_hw: tuple[int, int], *, scale: Tensor | None = None) -> RotaryTable:
        """Compute the table for a patch grid.

        Args:
            grid_hw: Patches along y and x.
            scale: () float, multiplies all coordinates; None for 1.

        Returns:
            Cosine and sine, each (H·W, head dim) float32.
        """
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
    """Rotate the patch tokens of queries or keys; prefix tokens pass unchanged.

    Channel i turns together with channel i + head dim / 2. The rotation runs in float32.

    Args:
        tokens: (B, heads, num_prefix + H·W, head dim) float.
        table: From `AxialRope`.
        num_prefix: Class and register tokens at the front.

    Returns:
        Tensor of the shape and type of `tokens`.
    """
    cos, sin = table
    prefix, patches = tokens[:, :, :num_prefix], tokens[:, :, num_prefix:].float()
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([prefix, turned.to(tokens.dtype)], dim=2)
