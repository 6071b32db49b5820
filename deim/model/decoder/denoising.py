"""Denoising queries: noised copies of the true boxes that the decoder learns to repair.

Source:
    DN-DETR (arXiv:2203.01305) and the contrastive form of DINO (arXiv:2203.03605), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.model.decoder.queries import inverse_sigmoid
from deim.structures import DenoisingMeta, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoisingQueries:
    """The denoising part of a batch, to be put before the object queries."""

    labels: Tensor
    """(B, K) int64, noised class index; `num_classes` stands for padding."""
    box_logits: Tensor
    """(B, K, 4) float, noised cxcywh through the inverse sigmoid."""
    blocked: Tensor
    """(K + Q, K + Q) bool, true where a query must not see another."""
    meta: DenoisingMeta
    """What the loss needs."""


def build_denoising_queries(
    targets: Sequence[Target],
    num_classes: int,
    *,
    num_queries: int,
    num_denoising: int,
    label_noise_ratio: float,
    box_noise_scale: float,
) -> DenoisingQueries | None:
    """Draw the denoising queries of a batch.

    With g boxes in the fullest image there are G = max(1, num_denoising // g) groups of g positives (noise
    within the box) and g negatives (noise beyond it), so K = 2·g·G. The draws come from torch's global
    generator in this order: which labels change, to what, signs of the box noise, its size.

    Args:
        targets: Ground truth, an image each.
        num_classes: C; also the label of padding.
        num_queries: Q, the object queries that follow.
        num_denoising: Positives an image, about; 0 gives none.
        label_noise_ratio: Twice the probability of a random label.
        box_noise_scale: Size of the box noise in units of half the box side.

    Returns:
        The queries, or None if no image has a box or `num_denoising` is 0.
    """
    counts = [len(target["labels"]) for target in targets]
    most = max(counts, default=0)
    if most == 0 or num_denoising <= 0:
        return None
    num_groups = max(1, num_denoising // most)
    repeats = 2 * num_groups
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([t["boxes"] for t in targets], batch_first=True)
    labels = labels.int().repeat(1, repeats)
    boxes = boxes.repeat(1, repeats, 1)
    negative = torch.arange(repeats, device=labels.device).remainder(2).repeat_interleave(most)
    meta = DenoisingMeta(
        query_idx=tuple(_positive_queries(count, most, num_groups, labels.device) for count in counts),
        target_idx=tuple(torch.arange(n, device=labels.device).repeat(num_groups) for n in counts),
        num_groups=num_groups,
        num_queries=labels.shape[1],
    )
    noised_labels = _noise_labels(labels, num_classes, label_noise_ratio)
    noised_boxes = _noise_boxes(boxes, negative[None, :, None], box_noise_scale)
    return DenoisingQueries(
        labels=noised_labels.long(),
        box_logits=inverse_sigmoid(noised_boxes),
        blocked=_blocked_pairs(2 * most, num_groups, num_queries, labels.device),
        meta=meta,
    )


def _positive_queries(count: int, most: int, num_groups: int, device: torch.device) -> Tensor:
    start = torch.arange(num_groups, device=device)[:, None] * 2 * most
    return (start + torch.arange(count, device=device)).flatten()


def _noise_labels(labels: Tensor, num_classes: int, label_noise_ratio: float) -> Tensor:
    if label_noise_ratio <= 0:
        return labels
    change = torch.rand_like(labels, dtype=torch.float) < label_noise_ratio * 0.5
    drawn = torch.randint_like(labels, 0, num_classes)
    return torch.where(change & (labels != num_classes), drawn, labels)


def _noise_boxes(boxes_cxcywh: Tensor, negative: Tensor, box_noise_scale: float) -> Tensor:
    """Move each corner by up to half a side, or by one half to one whole side for negatives."""
    half_sides = (boxes_cxcywh[..., 2:] * 0.5).repeat(1, 1, 2) * box_noise_scale
    sign = torch.randint_like(boxes_cxcywh, 0, 2) * 2 - 1
    size = torch.rand_like(boxes_cxcywh) + negative
    noised = (cxcywh_to_xyxy(boxes_cxcywh) + sign * size * half_sides).clamp(min=0, max=1)
    # Noise can swap two corners; the side is then measured the other way.
    centre, sides = xyxy_to_cxcywh(noised).split(2, dim=-1)
    return torch.cat([centre, sides.abs()], dim=-1)


def _blocked_pairs(group_size: int, num_groups: int, num_queries: int, device: torch.device) -> Tensor:
    """A group sees itself and the object queries; object queries see only one another."""
    num_denoising = group_size * num_groups
    group = torch.arange(num_denoising, device=device) // group_size
    blocked = torch.zeros(
        num_denoising + num_queries, num_denoising + num_queries, dtype=torch.bool, device=device
    )
    blocked[num_denoising:, :num_denoising] = True
    blocked[:num_denoising, :num_denoising] = group[:, None] != group[None, :]
    return blocked
