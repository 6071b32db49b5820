"""Four images in one, turned, shifted and scaled."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from deim.boxes import box_area
from deim.data.transforms import Sample, keep_visible

LEAST_SHARE = 0.1
"""Share of a turned box that must lie on the canvas; with less of it, the box is dropped."""


def make_mosaic(
    samples: Sequence[Sample],
    *,
    short_side: int,
    max_degrees: float,
    max_shift: float,
    scales: tuple[float, float],
    rng: np.random.Generator,
) -> Sample:
    """Lay four images out in two rows and two columns, then turn, shift and scale the whole about its center.

    All cells are as high as the highest image and as wide as the widest; each image lies in the top left
    corner of its cell, and what is left is black. A turned box becomes the upright box around its corners,
    is clipped, and is dropped if less than a tenth of it (`LEAST_SHARE`), or a side under a pixel, is left.

    Args:
        samples: Top left, top right, bottom left, bottom right.
        short_side: The shorter side of each image in its cell, in pixels.
        max_degrees: Largest rotation to either side.
        max_shift: Largest shift as a share of the side.
        scales: Smallest and largest scale.
        rng: Source of all draws.

    Returns:
        Boxes and labels in the order of the images.

    Source:
        Mosaic of YOLOv4 (arXiv:2004.10934) with the layout and the ranges of DEIMv2; images come from the
        whole split instead of a cache of each loading process, and are interpolated instead of picked.
    """
    fitted = [_with_short_side(sample, short_side) for sample in samples]
    height = max(sample.image.shape[-2] for sample in fitted)
    width = max(sample.image.shape[-1] for sample in fitted)
    canvas = fitted[0].image.new_zeros(fitted[0].image.shape[0], 2 * height, 2 * width)
    boxes = []
    for number, sample in enumerate(fitted):
        top, left = number // 2 * height, number % 2 * width
        canvas[:, top : top + sample.image.shape[-2], left : left + sample.image.shape[-1]] = sample.image
        boxes.append(sample.boxes_xyxy + torch.tensor([left, top, left, top]))
    whole = Sample(
        image=canvas,
        boxes_xyxy=torch.cat(boxes).float(),
        labels=torch.cat([sample.labels for sample in fitted]),
    )
    return turn(
        whole,
        degrees=rng.uniform(-max_degrees, max_degrees),
        shift_yx=(
            round(rng.uniform(-max_shift, max_shift) * 2 * height),
            round(rng.uniform(-max_shift, max_shift) * 2 * width),
        ),
        scale=rng.uniform(*scales),
    )


def turn(sample: Sample, *, degrees: float, shift_yx: tuple[int, int], scale: float) -> Sample:
    """Turn and scale an image about its center, then shift it; the canvas stays and the rest is black.

    Args:
        sample: Any sample.
        degrees: Clockwise.
        shift_yx: Down and to the right, in pixels.
        scale: Above 0.

    Returns:
        Boxes around the turned ones, clipped, without those of which less than `LEAST_SHARE` is left.
    """
    height, width = sample.image.shape[-2:]
    image = TF.affine(
        sample.image,
        angle=degrees,
        translate=[shift_yx[1], shift_yx[0]],
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=[0.0],
    )
    boxes = _turned_boxes(
        sample.boxes_xyxy, degrees=degrees, shift_yx=shift_yx, scale=scale, center_xy=(width / 2, height / 2)
    )
    return keep_visible(image, boxes, sample.labels, whole_area=box_area(boxes), least_share=LEAST_SHARE)


def _turned_boxes(
    boxes_xyxy: Tensor,
    *,
    degrees: float,
    shift_yx: tuple[int, int],
    scale: float,
    center_xy: tuple[float, float],
) -> Tensor:
    """(N, 4) xyxy: the upright boxes around the turned corners, not clipped."""
    angle = math.radians(degrees)
    turned = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners_xy = boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    center = torch.tensor(center_xy)
    shift_xy = torch.tensor([shift_yx[1], shift_yx[0]])
    moved = (corners_xy - center) @ turned * scale + center + shift_xy
    return torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=-1)


def _with_short_side(sample: Sample, short_side: int) -> Sample:
    height, width = sample.image.shape[-2:]
    scale = short_side / min(height, width)
    size_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    factors = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
    return Sample(
        image=TF.resize(sample.image, list(size_hw), antialias=True),
        boxes_xyxy=sample.boxes_xyxy * factors,
        labels=sample.labels,
    )
