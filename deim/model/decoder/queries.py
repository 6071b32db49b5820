"""Choosing the encoder cells that become object queries."""

from collections.abc import Sequence

import torch
from torch import Tensor

ANCHOR_SIDE = 0.05
"""Side of the anchors at stride 8, as a fraction of the image; it doubles with each level."""
ANCHOR_MARGIN = 0.01
"""Anchors with a coordinate this close to 0 or 1 are not used."""


def compute_anchors(sizes_hw: Sequence[tuple[int, int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Anchor of every cell of the pyramid.

    Args:
        sizes_hw: Height and width of each level, finest first.
        device: Where to make them.

    Returns:
        anchor_logits: (T, 4) float32, cxcywh through the inverse sigmoid; +inf for cells that are not valid.
        valid: (T, 1) bool. T counts the cells of all levels, level by level in row-major order.
    """
    levels = []
    for level, (height, width) in enumerate(sizes_hw):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        center = torch.cartesian_prod(y, x).flip(-1)
        side = torch.full_like(center, ANCHOR_SIDE * 2**level)
        levels.append(torch.cat([center, side], dim=-1))
    anchors = torch.cat(levels)
    valid = ((anchors > ANCHOR_MARGIN) & (anchors < 1 - ANCHOR_MARGIN)).all(dim=-1, keepdim=True)
    logits = torch.log(anchors / (1 - anchors))
    return logits.masked_fill(~valid, torch.inf), valid


def inverse_sigmoid(values: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Logit of values in [0, 1], at most ±ln(1 / eps) in size.

    Args:
        values: (...) float; clipped to [0, 1].
        eps: Smallest share on either side.

    Returns:
        (...) float.
    """
    values = values.clamp(min=0, max=1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


def select_top_cells(logits: Tensor, num_queries: int) -> Tensor:
    """Cells with the highest score of any class.

    Args:
        logits: (B, T, C) float.
        num_queries: Cells to take; all of them if there are fewer.

    Returns:
        (B, Q) int64, best first; Q = min(num_queries, T).
    """
    best = logits.max(dim=-1).values
    return best.topk(min(num_queries, best.shape[1]), dim=1).indices


def gather_cells(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` (B, T, X) at `indices` (B, Q): (B, Q, X)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))
