"""Changes of brightness, contrast, saturation and hue as torchvision defines them, on numbers of 8 bits.

An image goes through its changes block by block, each block small enough for the processor's cache.
Brightness and contrast give torchvision's own values, saturation another by a gray level where rounding
decides; hue, in whole numbers and without a way through HSV, differs by a level within a tenth of the circle
and by two at most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Change = Callable[[Bytes], Bytes]
"""Changes a block of pixels, (C, N) uint8; may give back its argument, and changes nothing in place."""

BLOCK: Final = 65536
"""Pixels of a block; three channels of them take 768 KiB as float32."""
WIDEST_TURN: Final = 1 / 6
"""Of the hue: over a sixth of the circle the whole numbers here would have to wrap around."""
GRAY_WEIGHTS: Final = np.array([0.2989, 0.587, 0.114], dtype=np.float32)
"""Of red, green and blue, as torchvision has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorChanges:
    """Which changes an image gets; None for none."""

    brightness: float | None = None
    """Factor, at least 0."""
    contrast: float | None = None
    """Factor of the differences to the mean gray, at least 0."""
    saturation: float | None = None
    """Factor of the differences to the pixel's own gray, at least 0; for three channels alone."""
    hue: float | None = None
    """Share of the whole circle of hues, in [-1/6, 1/6]; for three channels alone."""
    contrast_first: bool = True
    """Whether contrast comes before saturation and hue, or after them."""

    def __post_init__(self) -> None:
        if self.hue is not None and abs(self.hue) > WIDEST_TURN:
            raise ValueError(f"hue: got {self.hue}, needs [-1/6, 1/6].")


def change_colors(image: Tensor, changes: ColorChanges) -> Tensor:
    """Change brightness, then contrast, saturation and hue, or saturation, hue and contrast.

    Args:
        image: (C, H, W) uint8, or float32 in [0, 1]; not changed. RGB where C is 3; otherwise it has no
            colors, and its mean gray is the mean of all its values.
        changes: Saturation and hue are passed over unless C is 3.

    Returns:
        (C, H, W) of the same type; the image itself if nothing changes.
    """
    if image.shape[0] != 3:
        changes = ColorChanges(brightness=changes.brightness, contrast=changes.contrast)
    if image.is_floating_point():
        return _change_floats(image, changes)
    colors = [
        *([_saturate(changes.saturation)] if changes.saturation is not None else []),
        *([_turn_hue(changes.hue)] if changes.hue is not None else []),
    ]
    first = [_blend(changes.brightness, towards=0.0)] if changes.brightness is not None else []
    if changes.contrast is None:
        return _sweep(image, [*first, *colors])
    if changes.contrast_first:
        image = _sweep(image, first)
        return _sweep(image, [_blend(changes.contrast, towards=_mean_gray(image)), *colors])
    image = _sweep(image, [*first, *colors])
    return _sweep(image, [_blend(changes.contrast, towards=_mean_gray(image))])


def _sweep(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """Change an image block by block."""
    if not changes:
        return image
    changed = torch.empty(image.shape, dtype=torch.uint8)
    source = image.contiguous().numpy().reshape(len(image), -1)
    target = changed.numpy().reshape(len(image), -1)
    for start in range(0, source.shape[1], BLOCK):
        block = source[:, start : start + BLOCK]
        for change in changes:
            block = change(block)
        target[:, start : start + BLOCK] = block
    return changed


def _mean_gray(image: Tensor) -> float:
    """Mean over all pixels of (C, H, W) uint8: of the gray, cut to whole numbers, where C is 3."""
    values = image.contiguous().numpy().reshape(len(image), -1)
    total = 0
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK]
        gray = _gray(block.astype(np.float32)).astype(np.uint8) if len(block) == 3 else block
        total += int(gray.sum(dtype=np.uint64))
    return total / (values.shape[1] * (1 if len(values) == 3 else len(values)))


def _gray(block: Floats) -> Floats:
    """(N,) of (3, N), added up in torchvision's order: another one gives other whole numbers."""
    gray: Floats = block[0] * GRAY_WEIGHTS[0]
    gray += block[1] * GRAY_WEIGHTS[1]
    gray += block[2] * GRAY_WEIGHTS[2]
    return gray


def _blend(factor: float, *, towards: float) -> Change:
    """Multiply the differences to a value."""
    ratio, rest = np.float32(factor), np.float32((1 - factor) * towards)

    def change(block: Bytes) -> Bytes:
        values = block.astype(np.float32)
        values *= ratio
        if rest:
            values += rest
        return _to_bytes(values)

    return change


def _saturate(factor: float) -> Change:
    """Multiply the differences to the gray of each pixel."""
    ratio, rest = np.float32(factor), np.float32(1 - factor)

    def change(block: Bytes) -> Bytes:
        values = block.astype(np.float32)
        gray = np.floor(_gray(values))
        gray *= rest
        values *= ratio
        values += gray
        return _to_bytes(values)

    return change


def _to_bytes(values: Floats) -> Bytes:
    """Clipped and cut, not rounded, as torchvision does; `values` are changed in place."""
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8)


def _turn_hue(share: float) -> Change:
    """Turn the hue on its circle.

    In HSV a turn keeps the largest channel, max, and the chroma c = max - min. Measured in units of 1 / c, a
    sixth of the circle is c gray levels long, and each channel is a trapezoid over the circle: with d the
    distance of the hue from the channel's own (red 0, green 2c, blue 4c), it is min + clip(2c - d, 0, c). No
    division is needed, and 16 bits hold all of it.
    """
    sixths = 6 * share
    # As many fractional bits as the product with a chroma of 255 leaves room for.
    bits = min(15, int(np.floor(np.log2(127 / abs(sixths))))) if sixths else 0
    turn, half = np.int16(round(sixths * 2**bits)), np.int16(2**bits // 2)

    def change(block: Bytes) -> Bytes:
        red, green, blue = block
        largest = np.maximum(np.maximum(red, green), blue)
        smallest = np.minimum(np.minimum(red, green), blue)
        is_red = (red == largest).view(np.uint8).astype(np.int16)
        is_green = (green == largest).view(np.uint8).astype(np.int16)
        chroma = (largest - smallest).astype(np.int16)
        floor = smallest.astype(np.int16)
        r, g, b = block.astype(np.int16)
        double = chroma + chroma
        circle = double + double
        # The hue if blue is the largest; then over it that of green, and of red.
        hue = r - g
        hue += circle
        circle += double
        for is_largest, other in ((is_green, b - r + double), (is_red, g - b)):
            other -= hue
            other *= is_largest
            hue += other
        shift = chroma * turn
        shift += half
        shift >>= np.int16(bits)
        hue += shift
        changed = np.empty_like(block)
        for channel in range(3):
            distance = np.abs(hue)
            if channel != 1:
                # Green lies opposite to the cut of the circle: what is more than half of the circle away from
                # it the one way is more than 2c away the other way too.
                np.minimum(distance, circle - distance, out=distance)
            np.subtract(double, distance, out=distance)
            np.maximum(distance, 0, out=distance)
            np.minimum(distance, chroma, out=distance)
            distance += floor
            changed[channel] = distance
            hue -= double
        return changed

    return change


def _change_floats(image: Tensor, changes: ColorChanges) -> Tensor:
    """By torchvision's own functions, which keep fractions; its contrast knows one channel and three."""

    def contrast(picture: Tensor) -> Tensor:
        if changes.contrast is None:
            return picture
        if len(picture) == 3:
            return TF.adjust_contrast(picture, changes.contrast)
        return _blend_floats(picture, changes.contrast, towards=float(picture.mean()))

    if changes.brightness is not None:
        image = _blend_floats(image, changes.brightness, towards=0.0)
    if changes.contrast_first:
        image = contrast(image)
    if changes.saturation is not None:
        image = TF.adjust_saturation(image, changes.saturation)
    if changes.hue is not None:
        image = TF.adjust_hue(image, changes.hue)
    return image if changes.contrast_first else contrast(image)


def _blend_floats(image: Tensor, factor: float, *, towards: float) -> Tensor:
    return (image * factor + (1 - factor) * towards).clamp(0, 1)
