"""Box arithmetic: the only place where corners, areas and overlaps are computed.

Functions take any leading shape; the last axis holds the four numbers of a box. Formats are explained in
`structures.py`.
"""

import torch
from torch import Tensor

from deim.structures import Placement


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert (..., 4) center-size boxes to corners; a negative side counts as 0, so corners never swap."""
    center, size = boxes_cxcywh.split(2, dim=-1)
    half = size.clamp(min=0) / 2
    return torch.cat([center - half, center + half], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) corner boxes to center and size."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def xywh_to_xyxy(boxes_xywh: Tensor) -> Tensor:
    """Convert (..., 4) boxes of COCO files to corners."""
    low, size = boxes_xywh.split(2, dim=-1)
    return torch.cat([low, low + size], dim=-1)


def xyxy_to_xywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert (..., 4) corner boxes to the format of COCO files."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return torch.cat([low, high - low], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Return the area (...) of each box (..., 4), in its unit squared."""
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return sides[..., 0] * sides[..., 1]


def coco_overlap(boxes_xywh: Tensor, truth_xywh: Tensor, *, is_crowd: Tensor) -> Tensor:
    """Compute the pairwise overlap by which COCO matches N detections and M boxes of the ground truth.

    Args:
        boxes_xywh: (N, 4) float, pixels.
        truth_xywh: (M, 4) float, pixels.
        is_crowd: (M,) bool, true for regions of many objects.

    Returns:
        (N, M) in [0, 1]: IoU, or the share of the detection that lies in a crowd region. 0 for empty boxes.

    Source:
        The evaluation code of COCO (Lin et al., 2014).
    """
    low = torch.maximum(boxes_xywh[:, None, :2], truth_xywh[None, :, :2])
    high = torch.minimum(
        boxes_xywh[:, None, :2] + boxes_xywh[:, None, 2:], truth_xywh[None, :, :2] + truth_xywh[None, :, 2:]
    )
    shared = (high - low).clamp(min=0).prod(dim=-1)
    area, truth_area = boxes_xywh[:, None, 2:].prod(dim=-1), truth_xywh[None, :, 2:].prod(dim=-1)
    whole = torch.where(is_crowd[None], area, area + truth_area - shared)
    return torch.where(whole > 0, shared / whole, torch.zeros_like(shared))


def clip_boxes(boxes_xyxy: Tensor, size_hw: tuple[float, float]) -> Tensor:
    """Clip (..., 4) boxes in pixels to an image: 0 ≤ x ≤ width and 0 ≤ y ≤ height."""
    height, width = size_hw
    limit = boxes_xyxy.new_tensor([width, height, width, height])
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)


def clip_to_window(boxes_xyxy: Tensor, window_xyxy: tuple[float, float, float, float]) -> Tensor:
    """Clip (..., 4) boxes to a part of an image, in the same pixels; a box beyond it has no area."""
    left, top, right, bottom = window_xyxy
    low, high = boxes_xyxy.new_tensor([left, top] * 2), boxes_xyxy.new_tensor([right, bottom] * 2)
    return torch.minimum(torch.maximum(boxes_xyxy, low), high)


def iou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """Compute the intersection over union, element by element with broadcasting.

    Pairwise: `iou(a[:, None], b[None])`.

    Args:
        boxes_a_xyxy: (..., 4) float, any unit.
        boxes_b_xyxy: (..., 4) float, the same unit.

    Returns:
        (...) float in [0, 1]; 0 where both boxes are empty.
    """
    intersection, union = _intersection_and_union(boxes_a_xyxy, boxes_b_xyxy)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def generalized_iou(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> Tensor:
    """Compute the generalized intersection over union of boxes as `iou` takes them.

    Returns:
        (...) float in [-1, 1]; 1 means identical boxes.

    Source:
        Rezatofighi et al., CVPR 2019, eq. 1 (arXiv:1902.09630).
    """
    tiny = torch.finfo(boxes_a_xyxy.dtype).tiny
    intersection, union = _intersection_and_union(boxes_a_xyxy, boxes_b_xyxy)
    low = torch.minimum(boxes_a_xyxy[..., :2], boxes_b_xyxy[..., :2])
    high = torch.maximum(boxes_a_xyxy[..., 2:], boxes_b_xyxy[..., 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _intersection_and_union(boxes_a_xyxy: Tensor, boxes_b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(boxes_a_xyxy[..., :2], boxes_b_xyxy[..., :2])
    high = torch.minimum(boxes_a_xyxy[..., 2:], boxes_b_xyxy[..., 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(boxes_a_xyxy) + box_area(boxes_b_xyxy) - intersection


def to_input_fractions(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Map (..., 4) boxes from pixels of the original to fractions of the network input, clipped to [0, 1]."""
    span, shift = _span_and_shift(placement, boxes_xyxy)
    return clip_boxes((boxes_xyxy - shift) / span, (1.0, 1.0))


def to_original_pixels(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Map (..., 4) boxes from fractions of the network input to pixels of the original image."""
    span, shift = _span_and_shift(placement, boxes_xyxy)
    return boxes_xyxy * span + shift


def _span_and_shift(placement: Placement, like: Tensor) -> tuple[Tensor, Tensor]:
    """(4,) each, in xyxy order."""
    span = like.new_tensor([placement.span_hw[1], placement.span_hw[0]] * 2)
    shift = like.new_tensor([placement.shift_yx[1], placement.shift_yx[0]] * 2)
    return span, shift
