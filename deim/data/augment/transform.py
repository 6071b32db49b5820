"""What all random changes of training images share: the sample that they change, and their interface.

A transform runs in one of three stages:
    compose: makes the network input from one or several images in their original size, in place of resizing;
    sample: changes one image at the size of the network input;
    blend: blends the images of a whole batch.

A transform that is off still draws its random numbers, so that the draws of one do not depend on whether
another is on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deim.boxes import box_area, clip_boxes
from deim.data.images.input_format import InputFormat
from deim.structures import Target

Donors = tuple[Tensor, Sequence[Target]]
"""Images (D, C, H, W) to take objects from, and their targets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An image with its boxes."""

    image: Tensor
    """(C, H, W) uint8, RGB where C is 3, or float32 in [0, 1]."""
    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of `image`."""
    labels: Tensor
    """(N,) int64, class index."""
    has_new_colors: bool = False
    """Whether the colors are changed already."""

    @property
    def area(self) -> Tensor:
        """(N,) float32, area of the boxes in square pixels of `image`."""
        return box_area(self.boxes_xyxy)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSource:
    """The image from which a compose transform starts, and access to the others of its split."""

    index: int
    """Position of the image, or tile, in its dataset."""
    read: Callable[[int], Sample]
    """Reads an image of the dataset in its original size."""
    num_images: int
    """Number of images of the dataset."""
    input_format: InputFormat
    """Size and resizing of the network input."""
    sampling_shares: NDArray[np.float64] | None = None
    """(num_images,) probability of each image to be drawn, of sum 1; None draws uniformly."""


class Transform(Protocol):
    """A random change of training images."""

    def max_boxes(self, num_boxes: int) -> int:
        """Return the maximum number of boxes of an image afterwards, given the maximum before."""
        return num_boxes


class ComposeTransform(Transform, Protocol):
    """Makes a network input from images in their original size."""

    def compose(self, source: ImageSource, *, rng: np.random.Generator) -> Sample | None:
        """Return the sample at the size of the network input; None if the draw leaves the image as it is."""


class SampleTransform(Transform, Protocol):
    """Changes an image at the size of the network input."""

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Return the changed sample; the given one stays as it is."""


class BlendTransform(Transform, Protocol):
    """Blends the images of a batch."""

    def blend(
        self, images: Tensor, targets: Sequence[Target], *, donors: Donors | None, rng: np.random.Generator
    ) -> tuple[Tensor, list[Target]]:
        """Return the blended images (B, C, H, W) float32 in [0, 1] and their targets, which have an `area`.

        Nothing is changed in place.
        """


def keep_visible(image: Tensor, boxes_xyxy: Tensor, labels: Tensor, *, min_share: float) -> Sample:
    """Clip boxes to an image and drop those with a side under a pixel or too little of their area.

    Boxes are in pixels of the image and may reach beyond it; `min_share` of their area must be visible.
    """
    height, width = image.shape[-2:]
    clipped = clip_boxes(boxes_xyxy, (height, width))
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = (sides >= 1).all(dim=-1) & (box_area(clipped) >= min_share * box_area(boxes_xyxy))
    return Sample(image=image, boxes_xyxy=clipped[kept], labels=labels[kept])
