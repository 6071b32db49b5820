"""Layers and prediction heads of the decoder. Attribute names follow the official weight files."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.model.decoder.options import DecoderOptions

FOREGROUND_PRIOR = 0.01
"""Probability of every class at the start of training."""
TOP_K = 4
"""Number of largest bin probabilities of each edge that judge its sharpness, beside their mean."""
HALF_MAX = 65504.0
"""Largest finite float16: activations are clamped to it before they are normalized."""


class Mlp(nn.Module):
    """Linear layers with SiLU between them.

    Args:
        widths: Width of the input, of each hidden layer, and of the output.
        zero_last: Start the last layer at 0, so that the head first predicts 0 everywhere.
    """

    def __init__(self, *widths: int, zero_last: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        if zero_last:
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., last width) of tokens (..., first width)."""
        for layer in self.layers[:-1]:
            tokens = F.silu(layer(tokens))
        return self.layers[-1](tokens)


def class_head(dim: int, num_classes: int) -> nn.Linear:
    """Linear classifier whose first scores are all `FOREGROUND_PRIOR`."""
    head = nn.Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - FOREGROUND_PRIOR) / FOREGROUND_PRIOR))
    return head


class LocationQuality(nn.Module):
    """Correction of class logits by how sharp the edge distributions are.

    Source:
        Generalized Focal Loss V2 (arXiv:2011.12885), as used in D-FINE.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = Mlp(4 * (TOP_K + 1), 64, 1, zero_last=True)

    def forward(self, pred_corners: Tensor) -> Tensor:
        """Return (B, Q, 1), to be added to the logits of every class, of pred_corners (B, Q, 4·(R+1))."""
        probabilities = pred_corners.float().unflatten(-1, (4, -1)).softmax(dim=-1)
        largest = probabilities.topk(TOP_K, dim=-1).values
        statistics = torch.cat([largest, largest.mean(dim=-1, keepdim=True)], dim=-1).flatten(-2)
        return self.reg_conf(statistics)


class DeformableAttention(nn.Module):
    """Each head samples a few points around a query's box on every level and mixes them.

    Args:
        dim: Channels of queries and maps; head k reads the k-th slice of the channels.
        num_heads: Attention heads.
        num_points: Sampling points of each head on each level.

    Source:
        Deformable DETR (arXiv:2010.04159), section 4.1, without value and output projections; points of each
        level as in D-FINE (arXiv:2410.13842).
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
        # The points of head k start on a ray in the k-th of `num_heads` directions.
        angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.num_points])
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((rays[:, None] * steps[None, :, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(self, query: Tensor, ref_boxes_cxcywh: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Gather features (B, Q, D) around the reference boxes.

        Args:
            query: (B, Q, D) float.
            ref_boxes_cxcywh: (B, Q, 4) float in [0, 1].
            features: A map (B, D, H, W) float32 for each level; half precision cannot resolve the cells.
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


class RMSNorm(nn.Module):
    """Root-mean-square norm of Zhang and Sennrich (arXiv:1910.07467), computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D), in the same type."""
        wide = tokens.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
        return normed.to(tokens.dtype) * self.scale


class SwiGluFfn(nn.Module):
    """Gated feed-forward with a hidden width of half of `dim_feedforward`."""

    def __init__(self, dim: int, dim_feedforward: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, dim_feedforward)
        self.w3 = nn.Linear(dim_feedforward // 2, dim)
        for linear in (self.w12, self.w3):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D)."""
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Gate(nn.Module):
    """Learned mixture of two token sets; both gates are one half at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 2 * dim)
        self.norm = RMSNorm(dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (..., D) of two tensors (..., D)."""
        gates = self.gate(torch.cat([first, second], dim=-1)).sigmoid()
        gate_first, gate_second = gates.chunk(2, dim=-1)
        return self.norm(gate_first * first + gate_second * second)


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the maps, feed-forward; norms come last."""

    def __init__(self, options: DecoderOptions, dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, options.num_heads, batch_first=True)
        self.norm1 = RMSNorm(dim)
        self.cross_attn = DeformableAttention(dim, options.num_heads, num_points=options.num_points)
        self.gateway = Gate(dim)
        self.swish_ffn = SwiGluFfn(dim, options.dim_feedforward)
        self.norm3 = RMSNorm(dim)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        ref_boxes_cxcywh: Tensor,
        features: Sequence[Tensor],
        blocked: Tensor | None,
    ) -> Tensor:
        """Refine the tokens (B, Q, D) of the queries.

        Args:
            tokens: (B, Q, D) float.
            positions: (B, Q, D) float, added to queries and keys.
            ref_boxes_cxcywh: (B, Q, 4) float in [0, 1].
            features: A map (B, D, H, W) for each level.
            blocked: (Q, Q) bool, true where a query must not attend to another; None for full attention.
        """
        query = tokens + positions
        mixed, _ = self.self_attn(query, query, tokens, attn_mask=blocked, need_weights=False)
        tokens = self.norm1(tokens + mixed)
        sampled = self.cross_attn(tokens + positions, ref_boxes_cxcywh, features)
        tokens = self.gateway(tokens, sampled)
        tokens = (tokens + self.swish_ffn(tokens)).clamp(min=-HALF_MAX, max=HALF_MAX)
        return self.norm3(tokens)
