"""Images and boxes on their way to the network: reading, resizing, random changes, normalising.

Training, evaluation and prediction share `read_image` and `fit_to_input`, so that they see the same pixels.
Images are (3, H, W) uint8 RGB until `normalize`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.boxes import box_area, clip_boxes
from deim.errors import DataError
from deim.structures import Placement

PADDING_GREY = 114
"""Value of the pixels that letterboxing adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An image with its boxes."""

    image: Tensor
    """(3, H, W) uint8, RGB."""
    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of `image`."""
    labels: Tensor
    """(N,) int64, class index."""

    @property
    def area(self) -> Tensor:
        """(N,) float32, area of the boxes as they are now, in square pixels of `image`."""
        return box_area(self.boxes_xyxy)


def read_image(path: Path) -> Tensor:
    """Read a photograph upright, as its EXIF orientation says.

    Args:
        path: Any format that Pillow reads, 8 bits a channel; grey and palette images become RGB.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: If the file is missing, not an image, damaged, or has more than 8 bits a channel.
    """
    with _named_errors(path), Image.open(path) as opened:
        if opened.mode.startswith(("I", "F")):
            raise DataError(
                f"{path}: has more than 8 bits a channel (mode {opened.mode}), which would be cut to black "
                f"and white. Convert it to 8 bits with a scaling that suits your camera."
            )
        return image_to_tensor(opened)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph upright, in pixels, from its header alone.

    Raises:
        DataError: If the file is missing or not an image.
    """
    with _named_errors(path), Image.open(path) as opened:
        width, height = opened.size
        is_turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if is_turned else (height, width)


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn Pillow's errors into one that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such image.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: the image is damaged or not an image ({error}). Replace or remove it."
        ) from None


def image_to_tensor(image: Image.Image) -> Tensor:
    """Turn a picture upright, as its EXIF orientation says, and into a (3, H, W) uint8 RGB tensor."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def fit_to_input(
    image: Tensor, size_hw: tuple[int, int], *, resize: Literal["stretch", "letterbox"]
) -> tuple[Tensor, Placement]:
    """Resize an image to the network input, bilinear with antialiasing.

    Args:
        image: (3, H, W) uint8.
        size_hw: Size of the network input, in pixels.
        resize: `stretch` ignores the aspect ratio; `letterbox` keeps it and pads right and left, or top and
            bottom, with grey.

    Returns:
        The (3, *size_hw) uint8 input, and where it lies in the image.
    """
    height, width = image.shape[-2:]
    if resize == "stretch":
        resized = TF.resize(image, list(size_hw), antialias=True)
        return resized, Placement(
            orig_size_hw=(height, width), span_hw=(float(height), float(width)), shift_yx=(0.0, 0.0)
        )
    scale = min(size_hw[0] / height, size_hw[1] / width)
    inner_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (size_hw[0] - inner_hw[0]) // 2, (size_hw[1] - inner_hw[1]) // 2
    canvas = torch.full((image.shape[0], *size_hw), PADDING_GREY, dtype=image.dtype)
    canvas[:, top : top + inner_hw[0], left : left + inner_hw[1]] = TF.resize(
        image, list(inner_hw), antialias=True
    )
    # The sides may be rounded differently, so each axis has a scale of its own.
    scale_y, scale_x = inner_hw[0] / height, inner_hw[1] / width
    return canvas, Placement(
        orig_size_hw=(height, width),
        span_hw=(size_hw[0] / scale_y, size_hw[1] / scale_x),
        shift_yx=(-top / scale_y, -left / scale_x),
    )


def keep_visible(
    image: Tensor, boxes_xyxy: Tensor, labels: Tensor, *, whole_area: Tensor, least_share: float
) -> Sample:
    """Clip boxes to an image and drop those of which too little is left.

    Args:
        image: (3, H, W) uint8.
        boxes_xyxy: (N, 4) float, pixels of `image`; may reach beyond it.
        labels: (N,) int64.
        whole_area: (N,) float, area of the boxes before anything was cut off, in square pixels of `image`.
        least_share: Share of that area that must be left, in [0, 1]; sides need a pixel each anyway.
    """
    height, width = image.shape[-2:]
    clipped = clip_boxes(boxes_xyxy, (height, width))
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = (sides >= 1).all(dim=-1) & (box_area(clipped) >= least_share * whole_area)
    return Sample(image=image, boxes_xyxy=clipped[kept], labels=labels[kept])


def normalize(image: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Scale (..., 3, H, W) of 0 to 255 to [0, 1], subtract `mean`, divide by `std`: float32."""
    shift = torch.tensor(mean)[:, None, None]
    scale = torch.tensor(std)[:, None, None]
    return (image.float() / 255 - shift) / scale


def flip_horizontal(sample: Sample) -> Sample:
    """Mirror left and right."""
    width = sample.image.shape[-1]
    left, top, right, bottom = sample.boxes_xyxy.unbind(-1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return replace(sample, image=sample.image.flip(-1), boxes_xyxy=boxes)


def flip_vertical(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    height = sample.image.shape[-2]
    left, top, right, bottom = sample.boxes_xyxy.unbind(-1)
    boxes = torch.stack([left, height - bottom, right, height - top], dim=-1)
    return replace(sample, image=sample.image.flip(-2), boxes_xyxy=boxes)


def distort_colours(sample: Sample, probability: float, *, rng: np.random.Generator) -> Sample:
    """Change brightness, contrast, saturation, hue and channel order, each with the same probability.

    Args:
        sample: Any sample.
        probability: Of each change, in [0, 1].
        rng: Source of all draws.

    Returns:
        The sample with a changed image.

    Source:
        The ranges of SSD's photometric distortion (arXiv:1512.02325), as in torchvision.
    """
    image = sample.image
    contrast_first = rng.random() < 0.5

    def contrast(picture: Tensor) -> Tensor:
        if rng.random() >= probability:
            return picture
        return TF.adjust_contrast(picture, rng.uniform(0.5, 1.5))

    if rng.random() < probability:
        image = TF.adjust_brightness(image, rng.uniform(0.875, 1.125))
    if contrast_first:
        image = contrast(image)
    if rng.random() < probability:
        image = TF.adjust_saturation(image, rng.uniform(0.5, 1.5))
    if rng.random() < probability:
        image = TF.adjust_hue(image, rng.uniform(-0.05, 0.05))
    if not contrast_first:
        image = contrast(image)
    if rng.random() < probability:
        image = image[torch.from_numpy(rng.permutation(3))]
    return replace(sample, image=image)
