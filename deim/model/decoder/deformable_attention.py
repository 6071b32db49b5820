"""Multi-scale deformable attention without value and output projections.

Source:
    Deformable DETR (arXiv:2010.04159), section 4.1; points per level as in D-FINE (arXiv:2410.13842).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Each head samples a few points around a query's box on every level and mixes them.

    Args:
        dim: Channels of queries and maps; head k reads the k-th slice of the channels.
        num_heads: Attention heads.
        num_points: Sampling points of each head on each level.
    """

    num_points_scale: Tensor

    def __init__(self, dim: int, num_heads: int, *, num_points: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = tuple(num_points)
        total = sum(self.num_points)
        self.sampling_offsets = nn.Linear(dim, num_heads * total * 2)
        self.attention_weights = nn.Linear(dim, num_heads * total)
        scales = [1 / count for count in self.num_points for _ in range(count)]
        self.register_buffer("num_points_scale", torch.tensor(scales))
        self._init_weights()

    def _init_weights(self) -> None:
        """Start with the points of head k on a ray in the k-th of `num_heads` directions."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.num_points])
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((rays[:, None] * steps[None, :, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(self, query: Tensor, ref_boxes_cxcywh: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Gather features around the reference boxes.

        Args:
            query: (B, Q, D) float.
            ref_boxes_cxcywh: (B, Q, 4) float in [0, 1].
            features: A map (B, D, H, W) float32 for each level; half precision cannot resolve the cells.

        Returns:
            (B, Q, D) float.
        """
        batch, num_queries, dim = query.shape
        heads, total = self.num_heads, sum(self.num_points)
        offsets = self.sampling_offsets(query).view(batch, num_queries, heads, total, 2)
        weights = self.attention_weights(query).view(batch, num_queries, heads, total).float().softmax(dim=-1)
        center, size = ref_boxes_cxcywh[:, :, None, None].split(2, dim=-1)
        # An offset of n, the number of points of the level, is half a box side; in the coordinates of
        # grid_sample, which run over [-1, 1], that is a whole one. The grid is (B · heads, Q, points, 2).
        locations = (center * 2 - 1) + offsets * self.num_points_scale[:, None] * size
        grid = locations.transpose(1, 2).flatten(0, 1).split(self.num_points, dim=2)
        sampled = [
            F.grid_sample(
                level.reshape(batch * heads, dim // heads, *level.shape[2:]),
                level_grid.float(),
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
            for level, level_grid in zip(features, grid, strict=True)
        ]
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, num_queries, total)
        mixed = (torch.cat(sampled, dim=-1) * weights).sum(dim=-1)
        return mixed.view(batch, dim, num_queries).transpose(1, 2)
