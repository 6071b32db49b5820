"""The terms of the loss, each a pure function in float32.

M counts matched pairs of a query and a true box, over the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """The last layer of a stream of queries, from which the earlier layers learn."""

    log_probabilities: Tensor
    """(B, Q, 4, R+1) float, softened by the temperature; no gradient."""
    confidence: Tensor
    """(B, Q) float, best class score; no gradient."""
    balance: tuple[int, int]
    """Matched and unmatched queries whose square roots balance the two groups; not both 0."""
    sizes: tuple[int, int]
    """Matched and unmatched queries of this stream that the two averages are over; more than are here if the
    step has other micro-batches or processes."""


def matchability_aware_loss(
    logits: Tensor, index: tuple[Tensor, Tensor, Tensor], quality: Tensor, *, gamma: float
) -> Tensor:
    """Classification whose target is the overlap that the query reached.

    Args:
        logits: (B, Q, C) float.
        index: Image, query and class of each matched pair, (M,) int64 each.
        quality: (M,) float in [0, 1], IoU of the pairs; no gradient.
        gamma: Exponent of the target and of the negatives' weight.

    Returns:
        () float, summed over the batch.

    Source:
        DEIM (arXiv:2412.04234), eq. 3.
    """
    target = torch.zeros_like(logits)
    target[index] = quality**gamma
    weight = logits.detach().sigmoid() ** gamma
    weight[index] = 1.0
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")


def fine_grained_localization_loss(
    corners: Tensor, left: Tensor, weight_right: Tensor, quality: Tensor
) -> Tensor:
    """Cross-entropy of edge distributions to the two bins next to the true distance.

    Args:
        corners: (M, 4, R+1) float, logits.
        left: (M, 4) int64, the lower of the two bins.
        weight_right: (M, 4) float in [0, 1], weight of the upper bin.
        quality: (M,) float in [0, 1], weight of each pair; no gradient.

    Returns:
        () float, summed over pairs and edges.

    Source:
        D-FINE (arXiv:2410.13842), eq. 5.
    """
    log_probabilities = corners.log_softmax(dim=-1)
    bins = torch.stack([left, left + 1], dim=-1)
    weights = torch.stack([1 - weight_right, weight_right], dim=-1)
    likelihood = (log_probabilities.gather(-1, bins) * weights).sum(dim=-1)
    return -(likelihood * quality[:, None]).sum()


def soften(corners: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (B, Q, 4, R+1) of logits (B, Q, 4·(R+1)) at a temperature."""
    return (corners.unflatten(-1, (4, -1)) / temperature).log_softmax(dim=-1)


def decoupled_distillation_loss(
    corners: Tensor, teacher: Teacher, index: tuple[Tensor, Tensor], quality: Tensor, *, temperature: float
) -> Tensor:
    """Divergence of a layer's edge distributions from the last layer's, for all queries.

    Matched queries weigh by the overlap they reached, the others by the teacher's confidence; the two groups
    are averaged apart and joined by the square roots of `teacher.balance`, so that neither drowns the other.

    Args:
        corners: (B, Q, 4·(R+1)) float, logits.
        teacher: The last layer, at the same temperature.
        index: Image and query of each matched pair, (M,) int64 each.
        quality: (M,) float in [0, 1], IoU of the pairs; no gradient.
        temperature: Temperature of both distributions.

    Returns:
        () float, this batch's share of the means.

    Source:
        D-FINE (arXiv:2410.13842), eq. 6 and 7.
    """
    student = soften(corners, temperature)
    divergence = F.kl_div(student, teacher.log_probabilities, reduction="none", log_target=True)
    divergence = divergence.sum(dim=-1).mean(dim=-1) * temperature**2
    balance_matched, balance_other = (number**0.5 for number in teacher.balance)
    total = balance_matched + balance_other
    weight = teacher.confidence * (balance_other / total / max(teacher.sizes[1], 1))
    weight[index] = quality * (balance_matched / total / max(teacher.sizes[0], 1))
    return (divergence * weight).sum()
