"""Denoising queries: noised copies of the true boxes that the decoder learns to repair.

Source:
    DN-DETR (arXiv:2203.01305) and the contrastive form of DINO (arXiv:2203.03605), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.model.decoder.queries import inverse_sigmoid
from deim.structures import DenoisingMeta, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoisingQueries:
    """The denoising queries of a batch, which are put before the object queries."""

    labels: Tensor
    """(B, K) int64, noised class index; `num_classes` stands for padding."""
    box_logits: Tensor
    """(B, K, 4) float, noised cxcywh through the inverse sigmoid."""
    blocked: Tensor
    """(K + Q, K + Q) bool, true where a query must not see another."""
    meta: DenoisingMeta
    """The pairs of queries and boxes, for the loss."""


def build_denoising_queries(
    targets: Sequence[Target] | None,
    num_classes: int,
    *,
    num_queries: int,
    num_denoising: int,
    label_noise_ratio: float,
    box_noise_scale: float,
    max_boxes: int | None = None,
) -> DenoisingQueries | None:
    """Draw the denoising queries of a batch.

    If the image with the most boxes has g of them, there are G = max(1, num_denoising // g) groups of g
    positives (noise within the box) and g negatives (noise beyond it), so K = 2·g·G. If every target has a
    `noise_seed`, its noise depends on that seed alone. Otherwise the draws come from torch's global generator
    in this order: which labels change, the new labels, signs of the box noise, its size.

    Args:
        targets: Ground truth of each image; None for no queries.
        num_classes: C; also the label of padding.
        num_queries: Q, the object queries that follow.
        num_denoising: Approximate number of positives in an image; 0 for none.
        label_noise_ratio: Twice the probability of a random label.
        box_noise_scale: Size of the box noise in units of half the box side.
        max_boxes: Largest number of boxes in an image, g; None takes it from this batch.

    Returns:
        The queries, or None if no image has a box or `num_denoising` is 0.
    """
    if not targets:
        return None
    counts = [len(target["labels"]) for target in targets]
    most = max(counts) if max_boxes is None else max_boxes
    if most == 0 or num_denoising <= 0:
        return None
    num_groups = max(1, num_denoising // most)
    repeats = 2 * num_groups
    labels, boxes = _padded(targets, most, num_classes)
    labels = labels.int().repeat(1, repeats)
    boxes = boxes.repeat(1, repeats, 1)
    negative = torch.arange(repeats, device=labels.device).remainder(2).repeat_interleave(most)
    box_idx = [torch.arange(count, device=labels.device) for count in counts]
    group_start = torch.arange(num_groups, device=labels.device)[:, None] * 2 * most
    meta = DenoisingMeta(
        query_idx=tuple((group_start + boxes_of_image).flatten() for boxes_of_image in box_idx),
        target_idx=tuple(boxes_of_image.repeat(num_groups) for boxes_of_image in box_idx),
        num_groups=num_groups,
        num_queries=labels.shape[1],
    )
    seeds = [target["noise_seed"] for target in targets if "noise_seed" in target]
    if len(seeds) == len(targets):
        noise = _draw_by_image(seeds, labels, num_classes)
    else:
        noise = _draw_by_batch(labels, boxes, num_classes)
    noised_labels = _noise_labels(labels, noise, num_classes, label_noise_ratio)
    noised_boxes = _noise_boxes(boxes, noise, negative[None, :, None], box_noise_scale)
    return DenoisingQueries(
        labels=noised_labels.long(),
        box_logits=inverse_sigmoid(noised_boxes),
        blocked=_blocked_pairs(2 * most, num_groups, num_queries, labels.device),
        meta=meta,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Noise:
    """Random draws of a batch."""

    change: Tensor
    """(B, K) float in [0, 1): a label changes where this is low."""
    labels: Tensor
    """(B, K) integer class index, the new label."""
    sign: Tensor
    """(B, K, 4) float, -1 or 1."""
    size: Tensor
    """(B, K, 4) float in [0, 1)."""


def _draw_by_batch(labels: Tensor, boxes: Tensor, num_classes: int) -> _Noise:
    return _Noise(
        change=torch.rand_like(labels, dtype=torch.float),
        labels=torch.randint_like(labels, 0, num_classes),
        sign=torch.randint_like(boxes, 0, 2) * 2 - 1,
        size=torch.rand_like(boxes),
    )


def _draw_by_image(seeds: Sequence[int], labels: Tensor, num_classes: int) -> _Noise:
    """Draw ten numbers for each query, on the CPU so that they are the same on every device."""
    num_queries = labels.shape[1]
    drawn = torch.stack(
        [torch.rand(num_queries, 10, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ).to(labels.device, non_blocking=True)
    return _Noise(
        change=drawn[..., 0],
        labels=(drawn[..., 1] * num_classes).to(labels.dtype),
        sign=(drawn[..., 2:6] < 0.5) * 2.0 - 1.0,
        size=drawn[..., 6:],
    )


def _padded(targets: Sequence[Target], length: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Labels (B, length) and boxes (B, length, 4) of all images; padding has the label `num_classes`."""
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([t["boxes"] for t in targets], batch_first=True)
    missing = length - labels.shape[1]
    return F.pad(labels, (0, missing), value=num_classes), F.pad(boxes, (0, 0, 0, missing))


def _noise_labels(labels: Tensor, noise: _Noise, num_classes: int, label_noise_ratio: float) -> Tensor:
    change = noise.change < label_noise_ratio * 0.5
    return torch.where(change & (labels != num_classes), noise.labels, labels)


def _noise_boxes(boxes_cxcywh: Tensor, noise: _Noise, negative: Tensor, box_noise_scale: float) -> Tensor:
    """Move each corner by up to half a side, or by one half to one whole side for negatives."""
    half_sides = (boxes_cxcywh[..., 2:] * 0.5).repeat(1, 1, 2) * box_noise_scale
    moved = noise.sign * (noise.size + negative) * half_sides
    noised = (cxcywh_to_xyxy(boxes_cxcywh) + moved).clamp(min=0, max=1)
    # Noise can swap two corners, which makes a side negative.
    center, sides = xyxy_to_cxcywh(noised).split(2, dim=-1)
    return torch.cat([center, sides.abs()], dim=-1)


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
