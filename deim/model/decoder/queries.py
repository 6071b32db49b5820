"""The decoder's queries: encoder cells for objects, and noised copies of the true boxes to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.model.decoder.options import DecoderOptions
from deim.structures import DenoisingMeta, Target

ANCHOR_SIDE = 0.05
"""Side of the anchors at stride 8, as a fraction of the image; it doubles with each level."""
ANCHOR_MARGIN = 0.01
"""Anchors with a coordinate this close to 0 or 1 are not used."""


def compute_anchors(sizes_hw: Sequence[tuple[int, int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Anchor of every cell of the pyramid.

    Args:
        sizes_hw: Height and width of each level, finest first.
        device: Device of the result.

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


def inverse_sigmoid(values: Tensor) -> Tensor:
    """Logit (...) of values (...), which are clipped to [0, 1]; at most ±ln(1 / 1e-5) in size."""
    values = values.clamp(min=0, max=1)
    return torch.log(values.clamp(min=1e-5) / (1 - values).clamp(min=1e-5))


def select_top_cells(logits: Tensor, num_queries: int) -> Tensor:
    """Cells (B, Q) int64 with the highest score of any class in logits (B, T, C), best first.

    Q is `num_queries`, or T if there are fewer cells.
    """
    best = logits.max(dim=-1).values
    return best.topk(min(num_queries, best.shape[1]), dim=1).indices


def gather_cells(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` (B, T, X) at `indices` (B, Q): (B, Q, X)."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


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
    options: DecoderOptions,
    *,
    num_queries: int,
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
        options: Number and noise of the queries.
        num_queries: Q, the object queries that follow.
        max_boxes: Largest number of boxes in an image, g; None takes it from this batch.

    Returns:
        The queries, or None if no image has a box or `num_denoising` is 0.

    Source:
        DN-DETR (arXiv:2203.01305) and the contrastive form of DINO (arXiv:2203.03605), section 3.3.
    """
    if not targets:
        return None
    counts = [len(target["labels"]) for target in targets]
    most = max(counts) if max_boxes is None else max_boxes
    if most == 0 or options.num_denoising <= 0:
        return None
    num_groups = max(1, options.num_denoising // most)
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
    noise = _draw_noise(targets, labels, boxes, num_classes)
    is_changed = (noise.change < options.label_noise_ratio * 0.5) & (labels != num_classes)
    noised_boxes = _noise_boxes(boxes, noise, negative[None, :, None], options.box_noise_scale)
    return DenoisingQueries(
        labels=torch.where(is_changed, noise.labels, labels).long(),
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


def _draw_noise(targets: Sequence[Target], labels: Tensor, boxes: Tensor, num_classes: int) -> _Noise:
    seeds = [target["noise_seed"] for target in targets if "noise_seed" in target]
    if len(seeds) < len(targets):
        return _Noise(
            change=torch.rand_like(labels, dtype=torch.float),
            labels=torch.randint_like(labels, 0, num_classes),
            sign=torch.randint_like(boxes, 0, 2) * 2 - 1,
            size=torch.rand_like(boxes),
        )
    # Ten numbers for each query, drawn on the CPU so that they are the same on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = torch.stack([torch.rand(labels.shape[1], 10, generator=generator) for generator in generators])
    drawn = drawn.to(labels.device, non_blocking=True)
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
    place = torch.arange(group_size * num_groups + num_queries, device=device)
    group = (place // group_size).clamp(max=num_groups)
    return (group[:, None] != group) & (group < num_groups)
