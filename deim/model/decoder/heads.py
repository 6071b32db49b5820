"""Prediction heads of the decoder. Attribute names follow the official weight files."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FOREGROUND_PRIOR = 0.01
"""Probability of every class at the start of training."""
TOP_K = 4
"""Number of largest bin probabilities of each edge that judge its sharpness, beside their mean."""


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
