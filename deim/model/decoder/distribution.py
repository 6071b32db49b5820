"""Boxes as distributions of edge distances: bins, expectation, decoding and encoding.

A refined box is a reference box whose four edges are moved. Each edge has a distribution over R+1 bins; bin n
stands for the distance W(n), in units of box side / reg_scale, fine near 0 and coarse at the ends.

Source:
    D-FINE (arXiv:2410.13842), section 4.1, eq. 2 to 4.
"""

import torch
from torch import Tensor

from deim.boxes import xyxy_to_cxcywh


def compute_bin_values(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Distance that each bin stands for.

    Args:
        reg_max: Number of bins minus one, R; even.
        up: (1,) float, half range of the fine bins in units of reg_scale.
        reg_scale: (1,) float.

    Returns:
        (R+1,) float, ascending, with W(R-n) = -W(n); the outermost bins lie at ±2 · up · reg_scale.
    """
    bound = (up.abs() * reg_scale.abs()).float()
    step = (bound + 1) ** (2 / (reg_max - 2))
    exponents = torch.arange(1, reg_max // 2, device=up.device, dtype=torch.float32)
    positive = torch.cat([step**exponents - 1, 2 * bound])
    return torch.cat([-positive.flip(0), torch.zeros_like(bound), positive])


def expected_distances(pred_corners: Tensor, bin_values: Tensor) -> Tensor:
    """Mean distance of each edge (..., 4): left, top, right, bottom.

    Args:
        pred_corners: (..., 4·(R+1)) float, logits.
        bin_values: (R+1,) float.
    """
    logits = pred_corners.float().unflatten(-1, (4, bin_values.shape[0]))
    return logits.softmax(dim=-1) @ bin_values


def distances_to_boxes(ref_boxes_cxcywh: Tensor, distances: Tensor, reg_scale: Tensor) -> Tensor:
    """Move the edges of reference boxes; the results, (..., 4) cxcywh, are not clipped.

    Args:
        ref_boxes_cxcywh: (..., 4) float.
        distances: (..., 4) float: left, top, right, bottom; positive moves outwards, 0 leaves an edge there.
        reg_scale: (1,) float.
    """
    scale = reg_scale.abs()
    center, size = ref_boxes_cxcywh.split(2, dim=-1)
    unit = size / scale
    low = center - (scale / 2 + distances[..., :2]) * unit
    high = center + (scale / 2 + distances[..., 2:]) * unit
    return xyxy_to_cxcywh(torch.cat([low, high], dim=-1))


@torch.no_grad()
def boxes_to_bins(
    ref_boxes_cxcywh: Tensor, boxes_xyxy: Tensor, bin_values: Tensor, reg_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Express the edges of true boxes as positions between two bins.

    Args:
        ref_boxes_cxcywh: (..., 4) float, the reference boxes.
        boxes_xyxy: (..., 4) float, the true boxes, the same unit.
        bin_values: (R+1,) float, ascending.
        reg_scale: (1,) float.

    Returns:
        left: (..., 4) int64, the lower of the two bins, in [0, R-1].
        weight_right: (..., 4) float in [0, 1], the weight of bin left + 1; the rest belongs to `left`.
            Distances beyond the outermost bins fall on these.
    """
    scale = reg_scale.abs()
    center, size = ref_boxes_cxcywh.split(2, dim=-1)
    unit = size / scale + 1e-16
    low = (center - boxes_xyxy[..., :2]) / unit - scale / 2
    high = (boxes_xyxy[..., 2:] - center) / unit - scale / 2
    distances = torch.cat([low, high], dim=-1).contiguous()
    last = bin_values.shape[0] - 2
    left = (torch.searchsorted(bin_values, distances, right=True) - 1).clamp(0, last)
    gap = bin_values[left + 1] - bin_values[left]
    return left, ((distances - bin_values[left]) / gap).clamp(0, 1)
