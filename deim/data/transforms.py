"""Images and boxes on their way to the network: reading, resizing, random changes, normalizing.

Training, evaluation and prediction share `read_input` and `fit_to_input`, so that they see the same pixels.
Images are (C, H, W) until `normalize`: uint8, RGB where C is 3, or float32 in [0, 1] where the values of a
sensor are scaled; see `images/sensors.py`.
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.boxes import box_area, clip_boxes
from deim.data.augment.colors import ColorChanges, change_colors
from deim.data.images.pixel_format import RGB8, PixelFormat, check_pixels, scale_values
from deim.data.images.read import (
    ImageHeader,
    Reduction,
    bits_per_channel,
    named_errors,
    picture_to_rgb,
    read_header,
    read_values,
    reduce_decoding,
    upright_size_hw,
)
from deim.structures import Placement

PADDING_GRAY = 114
"""Value of the pixels that letterboxing adds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An image with its boxes."""

    image: Tensor
    """(C, H, W) uint8, RGB where C is 3, or float32 in [0, 1]."""
    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of `image`."""
    labels: Tensor
    """(N,) int64, class index."""

    @property
    def area(self) -> Tensor:
        """(N,) float32, area of the boxes as they are now, in square pixels of `image`."""
        return box_area(self.boxes_xyxy)


def read_image(path: Path, pixels: PixelFormat = RGB8) -> Tensor:
    """Read an image upright, as its EXIF orientation says.

    Args:
        path: For photographs any format that Pillow reads, 8 bits a channel, of which gray and palette images
            become RGB; otherwise see `images/files.py:read_values`.
        pixels: What the config says of channels and scaling.

    Returns:
        (C, H, W) uint8, or float32 in [0, 1] if the values are scaled.

    Raises:
        DataError: If the file is missing, not an image, damaged, or has another depth or other channels.
    """
    if not pixels.is_rgb8:
        return scale_values(read_values(path), pixels, where=path)
    with named_errors(path), Image.open(path) as opened:
        return image_to_tensor(opened, where=path)


def read_input(
    path: Path,
    size_hw: tuple[int, int],
    *,
    resize: Literal["stretch", "letterbox"],
    pixels: PixelFormat = RGB8,
    reduced: bool = False,
) -> tuple[Tensor, Placement]:
    """Read an image at the size of the network input.

    Args:
        path: As in `read_image`.
        size_hw: Size of the network input, in pixels.
        resize: As in `fit_to_input`.
        pixels: What the config says of channels and scaling.
        reduced: Decode JPEG photographs at 1/2, 1/4 or 1/8 of their size, the smallest that is not below that
            of the input: faster, with slightly other pixels.

    Returns:
        The (C, *size_hw) input, uint8, or float32 if the values are scaled, and where it lies in the image.

    Raises:
        DataError: As `read_image`.
    """
    if not pixels.is_rgb8:
        return fit_to_input(read_image(path, pixels), size_hw, resize=resize)
    reduction = None
    with named_errors(path), Image.open(path) as opened:
        _check_photograph(opened, where=path)
        if reduced and opened.format == "JPEG":
            reduction = reduce_decoding(opened, _inner_size(upright_size_hw(opened), size_hw, resize=resize))
        image = _view_picture(picture_to_rgb(opened))
    fitted, placement = fit_to_input(image, size_hw, resize=resize)
    if reduction is not None and reduction.step > 1:
        placement = _place_in_full(placement, reduction)
    return fitted, placement


def _view_picture(picture: Image.Image) -> Tensor:
    """(3, H, W) uint8 of an RGB picture, only to be read; channels last in memory, as resizing likes it."""
    pixels = np.asarray(picture)
    with warnings.catch_warnings():
        # That the tensor must not be written to is known; a copy takes as long as half of the decoding.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _place_in_full(placement: Placement, reduction: Reduction) -> Placement:
    """Where an input lies in an image in full, given where it lies in the reduced one."""
    step, (before_y, before_x) = reduction.step, reduction.before_yx
    return Placement(
        orig_size_hw=reduction.size_hw,
        span_hw=(placement.span_hw[0] * step, placement.span_hw[1] * step),
        shift_yx=(placement.shift_yx[0] * step - before_y, placement.shift_yx[1] * step - before_x),
    )


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a photograph upright, in pixels, from its header alone.

    Raises:
        DataError: If the file is missing or not an image.
    """
    return read_header(path).size_hw


def image_to_tensor(image: Image.Image, *, where: object = "image") -> Tensor:
    """Turn a picture upright, as its EXIF orientation says, and into a (3, H, W) uint8 RGB tensor.

    Args:
        image: 8 bits a channel.
        where: Where it came from, for the message.

    Raises:
        DataError: If it has more than 8 bits a channel.
    """
    _check_photograph(image, where=where)
    return torch.from_numpy(np.array(picture_to_rgb(image))).permute(2, 0, 1).contiguous()


def _check_photograph(image: Image.Image, *, where: object) -> None:
    """Refuse a picture with more than 8 bits a channel; not decoded yet, if that is to be found."""
    bits = bits_per_channel(image)
    header = ImageHeader(size_hw=(image.height, image.width), channels=len(image.getbands()), bits=bits)
    check_pixels(header, RGB8, where=where)


def fit_to_input(
    image: Tensor, size_hw: tuple[int, int], *, resize: Literal["stretch", "letterbox"]
) -> tuple[Tensor, Placement]:
    """Resize an image to the network input, bilinear with antialiasing.

    Args:
        image: (C, H, W) uint8, or float32 in [0, 1], which keeps its precision.
        size_hw: Size of the network input, in pixels.
        resize: `stretch` ignores the aspect ratio; `letterbox` keeps it and pads right and left, or top and
            bottom, with gray.

    Returns:
        The (C, *size_hw) input of the same type, contiguous, and where it lies in the image.
    """
    height, width = image.shape[-2:]
    inner_hw = _inner_size((height, width), size_hw, resize=resize)
    if resize == "stretch":
        resized = TF.resize(image, list(size_hw), antialias=True)
        return resized.contiguous(), Placement(
            orig_size_hw=(height, width), span_hw=(float(height), float(width)), shift_yx=(0.0, 0.0)
        )
    top, left = (size_hw[0] - inner_hw[0]) // 2, (size_hw[1] - inner_hw[1]) // 2
    canvas = gray_canvas(image, size_hw)
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


def _inner_size(
    image_hw: tuple[int, int], size_hw: tuple[int, int], *, resize: Literal["stretch", "letterbox"]
) -> tuple[int, int]:
    """What an image is resized to, in pixels, before it is padded."""
    if resize == "stretch":
        return size_hw
    height, width = image_hw
    scale = min(size_hw[0] / height, size_hw[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def gray_canvas(like: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(C, *size_hw) of the gray that pads, with the channels and the type of the image `like`."""
    gray = PADDING_GRAY / 255 if like.is_floating_point() else PADDING_GRAY
    return torch.full((like.shape[0], *size_hw), gray, dtype=like.dtype)


def keep_visible(
    image: Tensor, boxes_xyxy: Tensor, labels: Tensor, *, whole_area: Tensor, least_share: float
) -> Sample:
    """Clip boxes to an image and drop those of which too little is left.

    Args:
        image: (C, H, W) uint8 or float32.
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


def to_unit(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, float32 is so already."""
    return images if images.is_floating_point() else images.float() / 255


def normalize(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], *, out: Tensor | None = None
) -> Tensor:
    """Bring images to [0, 1], subtract `mean`, divide by `std`: float32.

    Args:
        images: (..., C, H, W) uint8, or float32 in [0, 1]; not changed.
        mean: C numbers.
        std: C numbers above 0.
        out: Where to write the result, of the same shape; None for memory of its own.
    """
    shift = torch.tensor(mean)[:, None, None]
    scale = torch.tensor(std)[:, None, None]
    if out is None:
        out = torch.empty(images.shape)
    # In the memory of the result: other memory for each step costs more than the arithmetic.
    out.copy_(images)
    if not images.is_floating_point():
        out.div_(255)
    return out.sub_(shift).div_(scale)


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


def distort_colors(sample: Sample, probability: float, *, rng: np.random.Generator) -> Sample:
    """Change brightness, contrast, saturation, hue and channel order, each with the same probability.

    Images of other than three channels have no colors: of them brightness and contrast change.

    Args:
        sample: Any sample.
        probability: Of each change, in [0, 1].
        rng: Source of all draws.

    Returns:
        The sample with a changed image.

    Source:
        The ranges of SSD's photometric distortion (arXiv:1512.02325), as in torchvision.
    """
    has_colors = sample.image.shape[0] == 3

    def draw(low: float, high: float) -> float | None:
        return rng.uniform(low, high) if rng.random() < probability else None

    contrast_first = rng.random() < 0.5
    brightness = draw(0.875, 1.125)
    contrast = draw(0.5, 1.5) if contrast_first else None
    saturation = draw(0.5, 1.5) if has_colors else None
    hue = draw(-0.05, 0.05) if has_colors else None
    if not contrast_first:
        contrast = draw(0.5, 1.5)
    changes = ColorChanges(
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        contrast_first=contrast_first,
    )
    image = change_colors(sample.image, changes)
    if has_colors and rng.random() < probability:
        image = image.index_select(0, torch.from_numpy(rng.permutation(3)))
    return replace(sample, image=image)
