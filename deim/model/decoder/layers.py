"""Layers of the decoder. Attribute names follow the official weight files."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.model.decoder.deformable_attention import DeformableAttention

HALF_MAX = 65504.0
"""Largest finite float16: activations are clamped to it before they are normalized."""


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32.

    Source:
        Zhang and Sennrich (arXiv:1910.07467).
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., D) of tokens (..., D), in the same type."""
        wide = tokens.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
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
    """Self-attention among queries, deformable attention to the maps, feed-forward; norms come last.

    Args:
        dim: Token width.
        num_heads: Heads of both attentions.
        dim_feedforward: Twice the hidden width of the gated feed-forward.
        num_points: Sampling points of each head on each level.
    """

    def __init__(self, dim: int, num_heads: int, *, dim_feedforward: int, num_points: Sequence[int]) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = RMSNorm(dim)
        self.cross_attn = DeformableAttention(dim, num_heads, num_points=num_points)
        self.gateway = Gate(dim)
        self.swish_ffn = SwiGluFfn(dim, dim_feedforward)
        self.norm3 = RMSNorm(dim)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        ref_boxes_cxcywh: Tensor,
        features: Sequence[Tensor],
        blocked: Tensor | None,
    ) -> Tensor:
        """Refine the queries.

        Args:
            tokens: (B, Q, D) float.
            positions: (B, Q, D) float, added to queries and keys.
            ref_boxes_cxcywh: (B, Q, 4) float in [0, 1].
            features: A map (B, D, H, W) for each level.
            blocked: (Q, Q) bool, true where a query must not attend to another; None for full attention.

        Returns:
            (B, Q, D) float.
        """
        query = tokens + positions
        mixed, _ = self.self_attn(query, query, tokens, attn_mask=blocked, need_weights=False)
        tokens = self.norm1(tokens + mixed)
        sampled = self.cross_attn(tokens + positions, ref_boxes_cxcywh, features)
        tokens = self.gateway(tokens, sampled)
        tokens = (tokens + self.swish_ffn(tokens)).clamp(min=-HALF_MAX, max=HALF_MAX)
        return self.norm3(tokens)
