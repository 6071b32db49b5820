"""From image files, Pillow images and arrays to tensors; shared by training, evaluation and prediction."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deim.data.images.input_format import InputFormat
from deim.data.images.pixel_format import RGB8, PercentileScaling, PixelFormat, check_pixels, scale_values
from deim.data.images.read import (
    image_header,
    open_image,
    read_header,
    read_values,
    reduce_decoding,
    upright_rgb,
    upright_values,
)
from deim.data.images.resize import fit_tiles, fit_to_input, inner_size
from deim.errors import DataError
from deim.structures import Placement

PREVIEW_SCALING: Final = PercentileScaling()
"""Scaling of the 8-bit view of an image with more than 8 bits."""
UNLIMITED: Final = PixelFormat(max_megapixels=math.inf)
"""A view is only asked of images that were read before."""


def read_image(path: Path, pixels: PixelFormat = RGB8) -> Tensor:
    """Read an image upright, as its EXIF orientation says.

    Reads for RGB8 any format that Pillow reads with 8 bits per channel, where gray and palette images become
    RGB; otherwise the formats of `read_values`.

    Returns:
        (C, H, W) uint8, or float32 in [0, 1] if the values are scaled.

    Raises:
        DataError: If the file is missing, not an image, damaged, or has another depth or other channels.
    """
    if not pixels.is_rgb8:
        return scale_values(read_values(path, pixels), pixels, where=path)
    with open_image(path, pixels) as opened:
        return to_tensor(opened, where=path)


def read_input(path: Path, input_format: InputFormat) -> tuple[Tensor, Placement]:
    """Read an image, not cut into tiles, as `fit_to_input` returns it; raises what `read_image` raises."""
    if not input_format.pixels.is_rgb8:
        return fit_to_input(read_image(path, input_format.pixels), input_format)
    reduction = None
    with open_image(path, input_format.pixels) as opened:
        header = image_header(opened)
        check_pixels(header, RGB8, where=path)
        if input_format.reduced_decode and opened.format == "JPEG":
            reduction = reduce_decoding(opened, inner_size(header.size_hw, input_format))
        image = _view(upright_rgb(opened))
    fitted, placement = fit_to_input(image, input_format)
    return fitted, placement if reduction is None else reduction.place(placement)


def read_tiles(path: Path, input_format: InputFormat) -> Iterator[tuple[Tensor, Placement]]:
    """Read an image, or its tiles, as `fit_tiles` yields them; raises what `read_image` raises."""
    if input_format.tiles is None:
        yield read_input(path, input_format)
    else:
        yield from fit_tiles(read_image(path, input_format.pixels), input_format)


def read_preview(path: Path) -> Image.Image:
    """Read any supported image upright as 8-bit RGB, for reports and charts.

    Deeper images are stretched per channel from the 0.5 to the 99.5 percentile. The second of two channels
    and the fourth of four are not shown.

    Raises:
        DataError: If the file is missing, damaged, or of another kind.
    """
    if read_header(path).bits <= 8:
        with open_image(path, UNLIMITED) as opened:
            return upright_rgb(opened).copy()
    values = read_values(path, UNLIMITED)
    shown = values[:3] if len(values) >= 3 else values[:1]
    pixels = PixelFormat(channels=len(shown), scaling=PREVIEW_SCALING)
    view = (scale_values(shown, pixels, where=path) * 255).round().to(torch.uint8)
    return Image.fromarray(view.expand(3, -1, -1).permute(1, 2, 0).numpy())


def to_tensor(
    image: Image.Image | NDArray[Any], pixels: PixelFormat = RGB8, *, where: object = "image"
) -> Tensor:
    """Turn an image in memory into a tensor; a Pillow image is turned upright as its EXIF data says.

    Args:
        image: Pillow image, or uint8 or uint16 array (H, W, C) or (H, W) with the depth and channels of
            `pixels`; gray is repeated where three channels are expected.
        pixels: Channels and scaling.
        where: Source of the image, for messages.

    Returns:
        (C, H, W) uint8, or float32 in [0, 1] if the values are scaled.

    Raises:
        DataError: If it is no such array, or has another depth or other channels.
    """
    if isinstance(image, Image.Image):
        if pixels.is_rgb8:
            check_pixels(image_header(image), RGB8, where=where)
            return torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1).contiguous()
        return scale_values(upright_values(image, where=where), pixels, where=where)
    is_array = isinstance(image, np.ndarray) and image.dtype in (np.uint8, np.uint16)
    if not is_array or image.ndim not in (2, 3) or not image.size:
        kind = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(
            f"{where}: got a {kind}. Give a path, a Pillow image, or a uint8 array (H, W, 3) RGB or (H, W) "
            f"gray; a detector with data.scaling takes uint16 too, one with data.channels C takes (H, W, C)."
        )
    if pixels.is_rgb8 and image.dtype == np.uint8:
        return to_tensor(Image.fromarray(image), where=where)
    values = np.moveaxis(image if image.ndim == 3 else image[..., None], -1, 0)
    return scale_values(values, pixels, where=where)


def _view(image: Image.Image) -> Tensor:
    """Return (3, H, W) uint8 of an RGB image, read-only and channels last in memory, which resizes fast."""
    pixels = np.asarray(image)
    with warnings.catch_warnings():
        # Nothing writes to the tensor; a copy takes half as long as decoding.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(pixels).permute(2, 0, 1)
