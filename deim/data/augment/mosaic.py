"""Four images in one, rotated, shifted and scaled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import ComposeTransform, ImageSource, Sample, keep_visible
from deim.data.augment.zoom_crop import show_window, whole_window

MIN_SHARE = 0.1
"""Share of a rotated box that must lie on the canvas; other boxes are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mosaic(ComposeTransform):
    """Puts an image and three others of the split together.

    Source:
        Mosaic of YOLOv4 (arXiv:2004.10934) with the layout and the ranges of DEIMv2. Unlike there, images are
        drawn from the whole split instead of a cache, and they are interpolated.
    """

    options: AugmentOptions

    def max_boxes(self, num_boxes: int) -> int:
        """Return four times the boxes."""
        return 4 * num_boxes

    def compose(self, source: ImageSource, *, rng: np.random.Generator) -> Sample | None:
        """Return a mosaic at the size of the network input, if the draw says so."""
        if rng.random() >= self.options.mosaic:
            return None
        if source.sampling_shares is None:
            others = rng.integers(source.num_images, size=3).tolist()
        else:
            others = rng.choice(source.num_images, size=3, p=source.sampling_shares).tolist()
        samples = [source.read(index) for index in (source.index, *others)]
        mosaic = self.make(samples, short_side=min(source.input_format.size_hw) // 2, rng=rng)
        return show_window(mosaic, whole_window(mosaic), source.input_format)

    def make(self, samples: Sequence[Sample], *, short_side: int, rng: np.random.Generator) -> Sample:
        """Lay four images out by `tile_four`, then rotate, shift and scale the whole about its center."""
        canvas = tile_four(samples, short_side=short_side)
        height, width = canvas.size_hw
        degrees, shift = self.options.mosaic_max_degrees, self.options.mosaic_max_shift
        return rotate(
            canvas,
            degrees=rng.uniform(-degrees, degrees),
            shift_yx=(round(rng.uniform(-shift, shift) * height), round(rng.uniform(-shift, shift) * width)),
            scale=rng.uniform(*self.options.mosaic_scales),
        )


def tile_four(samples: Sequence[Sample], *, short_side: int) -> Sample:
    """Lay four images out in two rows and two columns on black.

    All cells are as high as the highest image and as wide as the widest; each image lies in the top left
    corner of its cell, row by row.

    Args:
        samples: Four images.
        short_side: Shorter side of each image in its cell, in pixels.
    """
    fitted = [_with_short_side(sample, short_side) for sample in samples]
    height, width = (max(sides) for sides in zip(*(sample.size_hw for sample in fitted), strict=True))
    canvas = fitted[0].image.new_zeros(fitted[0].image.shape[0], 2 * height, 2 * width)
    boxes = []
    for number, sample in enumerate(fitted):
        top, left = number // 2 * height, number % 2 * width
        canvas[:, top : top + sample.size_hw[0], left : left + sample.size_hw[1]] = sample.image
        boxes.append(sample.boxes_xyxy + torch.tensor([left, top, left, top]))
    return Sample(
        image=canvas,
        boxes_xyxy=torch.cat(boxes).float(),
        labels=torch.cat([sample.labels for sample in fitted]),
    )


def rotate(sample: Sample, *, degrees: float, shift_yx: tuple[int, int], scale: float) -> Sample:
    """Rotate an image clockwise and scale it about its center, then shift it, on a black canvas.

    Boxes become upright boxes around the rotated ones and are clipped. Boxes with less than a tenth
    (`MIN_SHARE`) or a side under a pixel on the canvas are dropped.
    """
    height, width = sample.size_hw
    image = TF.affine(
        sample.image,
        angle=degrees,
        translate=[shift_yx[1], shift_yx[0]],
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=[0.0],
    )
    angle = math.radians(degrees)
    rotation = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    corners_xy = sample.boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    center_xy = torch.tensor((width / 2, height / 2))
    moved_xy = (corners_xy - center_xy) @ rotation * scale + center_xy + torch.tensor(shift_yx[::-1]).float()
    boxes = torch.cat([moved_xy.amin(dim=1), moved_xy.amax(dim=1)], dim=-1)
    return keep_visible(image, boxes, sample.labels, min_share=MIN_SHARE)


def _with_short_side(sample: Sample, short_side: int) -> Sample:
    height, width = sample.size_hw
    scale = short_side / min(height, width)
    size_hw = [max(1, round(height * scale)), max(1, round(width * scale))]
    factors = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
    image = TF.resize(sample.image, size_hw, antialias=True)
    return Sample(image=image, boxes_xyxy=sample.boxes_xyxy * factors, labels=sample.labels)
