"""Images at the size of the network input: resized, padded, cut into tiles and normalized."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.data.images.input_format import InputFormat
from deim.data.images.tiling import compute_windows, place_tile
from deim.structures import Placement

PADDING_GRAY = 114
"""Gray value of the pixels that letterboxing adds."""


def fit_to_input(image: Tensor, input_format: InputFormat) -> tuple[Tensor, Placement]:
    """Resize an image to the network input, bilinear with antialiasing, regardless of tiles.

    Args:
        image: (C, H, W) uint8, or float32 in [0, 1], which keeps its precision.
        input_format: Size and resizing.

    Returns:
        The contiguous input (C, *size_hw) of the same type, and where it lies in the image.
    """
    height, width = image.shape[-2:]
    inner_hw = inner_size((height, width), input_format)
    resized = TF.resize(image, list(inner_hw), antialias=True).contiguous()
    if input_format.resize == "stretch":
        span_hw = (float(height), float(width))
        return resized, Placement(orig_size_hw=(height, width), span_hw=span_hw, shift_yx=(0.0, 0.0))
    padded, (top, left) = pad_to_input(resized, input_format)
    # The sides may be rounded differently, so each axis has its own scale.
    scale_y, scale_x = inner_hw[0] / height, inner_hw[1] / width
    return padded, Placement(
        orig_size_hw=(height, width),
        span_hw=(input_format.size_hw[0] / scale_y, input_format.size_hw[1] / scale_x),
        shift_yx=(-top / scale_y, -left / scale_x),
    )


def fit_tiles(image: Tensor, input_format: InputFormat) -> Iterator[tuple[Tensor, Placement]]:
    """Cut an image as a dataset does and yield each tile as `fit_to_input` does; an uncut image once."""
    orig_size_hw = (image.shape[-2], image.shape[-1])
    windows = [] if input_format.tiles is None else compute_windows(orig_size_hw, input_format.tiles).tolist()
    if len(windows) <= 1:
        yield fit_to_input(image, input_format)
        return
    for left, top, right, bottom in windows:
        fitted, placement = fit_to_input(image[:, top:bottom, left:right], input_format)
        yield fitted, place_tile(placement, (left, top, right, bottom), orig_size_hw)


def inner_size(image_hw: tuple[int, int], input_format: InputFormat) -> tuple[int, int]:
    """Return the size in pixels to which an image is resized before it is padded."""
    if input_format.resize == "stretch":
        return input_format.size_hw
    height, width = image_hw
    scale = min(input_format.size_hw[0] / height, input_format.size_hw[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to_input(image: Tensor, input_format: InputFormat) -> tuple[Tensor, tuple[int, int]]:
    """Pad an image (C, h, w) with gray to the size of the input; returns its top left corner too, y and x."""
    size_hw, (height, width) = input_format.size_hw, image.shape[-2:]
    if size_hw == (height, width):
        return image, (0, 0)
    gray = PADDING_GRAY / 255 if image.is_floating_point() else PADDING_GRAY
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    padded = torch.full((len(image), *size_hw), gray, dtype=image.dtype)
    padded[:, top : top + height, left : left + width] = image
    return padded, (top, left)


def to_unit(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]; uint8 is divided by 255."""
    return images if images.is_floating_point() else images.float() / 255


def normalize(images: Tensor, input_format: InputFormat, *, out: Tensor | None = None) -> Tensor:
    """Scale images to [0, 1], subtract the mean and divide by the standard deviation, in float32.

    Args:
        images: (..., C, H, W) uint8, or float32 in [0, 1]; not changed.
        input_format: Gives mean and standard deviation of the C channels.
        out: Memory for the result, of the same shape; None allocates it.
    """
    shift = torch.tensor(input_format.mean)[:, None, None]
    scale = torch.tensor(input_format.std)[:, None, None]
    if out is None:
        out = torch.empty(images.shape)
    # In place: allocating memory for each step costs more than the arithmetic.
    out.copy_(images)
    if not images.is_floating_point():
        out.div_(255)
    return out.sub_(shift).div_(scale)
