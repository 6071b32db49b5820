"""Random changes of brightness, contrast, saturation, hue and the order of the channels.

The changes are torchvision's, made fast for images of 8 bits: in blocks that fit into the processor's cache,
and hue in integers without conversion to HSV. Saturation differs by at most one gray level; hue by one for
turns up to a tenth of the circle, and by two beyond.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.data.augment.transform import Sample, SampleTransform

Kind = Literal["brightness", "contrast", "saturation", "hue"]
RANGES: Final[dict[Kind, tuple[float, float]]] = {
    "brightness": (0.875, 1.125),
    "contrast": (0.5, 1.5),
    "saturation": (0.5, 1.5),
    "hue": (-0.05, 0.05),
}
"""Ranges of the factors, and of the hue as a share of the circle."""

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Change = Callable[[Bytes], Bytes]
"""Changes a block of pixels, (C, N) uint8, not in place; may return its argument."""

BLOCK: Final = 65536
"""Number of pixels of a block; three channels take 768 KiB as float32."""
MAX_HUE: Final = 1 / 6
"""Maximum turn of the hue; beyond a sixth of the circle the integers would have to wrap around."""
GRAY_WEIGHTS: Final = np.array([0.2989, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue, as in torchvision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Colors(SampleTransform):
    """Changes brightness, contrast, saturation, hue and channel order.

    Images of other than three channels have no colors: only brightness and contrast change.

    Source:
        The ranges of SSD's photometric distortion (arXiv:1512.02325), as in torchvision.
    """

    probability: float
    """Probability of each change."""

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Change the colors, unless a compose transform has changed them already."""
        if sample.has_new_colors:
            return sample
        has_colors = sample.image.shape[0] == 3
        order: list[Kind] = ["brightness", "saturation", "hue"] if has_colors else ["brightness"]
        order.insert(1 if rng.random() < 0.5 else len(order), "contrast")
        changes = [(kind, rng.uniform(*RANGES[kind])) for kind in order if rng.random() < self.probability]
        image = change_colors(sample.image, changes)
        if has_colors and rng.random() < self.probability:
            image = image.index_select(0, torch.from_numpy(rng.permutation(3)))
        return replace(sample, image=image, has_new_colors=True)


def change_colors(image: Tensor, changes: Sequence[tuple[Kind, float]]) -> Tensor:
    """Change the colors of an image.

    Args:
        image: (C, H, W) uint8, or float32 in [0, 1]; not changed. RGB where C is 3; otherwise it has no
            colors, and its mean gray is the mean of all its values.
        changes: What to change, in order: the hue by a share of the circle in [-1/6, 1/6], anything else by a
            factor of at least 0. Saturation and hue need three channels.

    Returns:
        (C, H, W) of the same type; the image itself if nothing changes.
    """
    pending: list[Change] = []
    for kind, factor in changes:
        if image.is_floating_point():
            image = _change_floats(image, kind, factor)
        elif kind == "brightness":
            pending.append(_blend(factor, towards=0.0))
        elif kind == "contrast":
            image = _sweep(image, pending)  # the mean gray is that of the changed image
            pending = [_blend(factor, towards=_mean_gray(image))]
        else:
            pending.append(_saturate(factor) if kind == "saturation" else _turn_hue(factor))
    return _sweep(image, pending)


def _change_floats(image: Tensor, kind: Kind, factor: float) -> Tensor:
    """Use torchvision's functions, which keep fractions; its contrast supports one and three channels."""
    match kind:
        case "brightness":
            return _blend_floats(image, factor, towards=0.0)
        case "contrast" if len(image) != 3:
            return _blend_floats(image, factor, towards=float(image.mean()))
        case "contrast":
            changed = TF.adjust_contrast(image, factor)
        case "saturation":
            changed = TF.adjust_saturation(image, factor)
        case "hue":
            changed = TF.adjust_hue(image, factor)
    return changed


def _blend_floats(image: Tensor, factor: float, *, towards: float) -> Tensor:
    return (image * factor + (1 - factor) * towards).clamp(0, 1)


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
    """Return the mean of (C, H, W) uint8; where C is 3, of its gray, truncated to integers."""
    values = image.contiguous().numpy().reshape(len(image), -1)
    total = count = 0
    for start in range(0, values.shape[1], BLOCK):
        block = values[:, start : start + BLOCK]
        gray = _gray(block.astype(np.float32)).astype(np.uint8) if len(block) == 3 else block
        total += int(gray.sum(dtype=np.uint64))
        count += gray.size
    return total / count


def _gray(block: Floats) -> Floats:
    """Return (N,) gray of (3, N), summed in torchvision's order, which decides about rounding."""
    gray: Floats = block[0] * GRAY_WEIGHTS[0]
    gray += block[1] * GRAY_WEIGHTS[1]
    gray += block[2] * GRAY_WEIGHTS[2]
    return gray


def _blend(factor: float, *, towards: float) -> Change:
    """Return a change that multiplies the differences to a value."""
    ratio, rest = np.float32(factor), np.float32((1 - factor) * towards)

    def change(block: Bytes) -> Bytes:
        values = block.astype(np.float32)
        values *= ratio
        if rest:
            values += rest
        return _to_bytes(values)

    return change


def _saturate(factor: float) -> Change:
    """Return a change that multiplies the differences to the gray of each pixel."""
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
    """Clip and truncate as torchvision does; `values` are changed in place."""
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8)


def _turn_hue(share: float) -> Change:
    """Return a change that turns the hue on its circle.

    In HSV a turn keeps the largest channel, max, and the chroma c = max - min. In units of 1 / c, a sixth of
    the circle is c gray levels long, and each channel is a trapezoid over the circle: with d the distance of
    the hue from that of the channel (red 0, green 2c, blue 4c), it is min + clip(2c - d, 0, c). This needs no
    division and fits into 16 bits.
    """
    if abs(share) > MAX_HUE:
        raise ValueError(f"hue: got {share}, needs [-1/6, 1/6].")
    sixths = 6 * share
    # The maximum number of fractional bits for which a product with a chroma of 255 fits.
    bits = min(15, int(np.floor(np.log2(127 / abs(sixths))))) if sixths else 0
    turn, half = np.int16(round(sixths * 2**bits)), np.int16(2**bits // 2)

    def change(block: Bytes) -> Bytes:
        red, green, blue = block
        largest = np.maximum(np.maximum(red, green), blue)
        smallest = np.minimum(np.minimum(red, green), blue)
        is_red, is_green = (red == largest).astype(np.int16), (green == largest).astype(np.int16)
        chroma = (largest - smallest).astype(np.int16)
        floor = smallest.astype(np.int16)
        r, g, b = block.astype(np.int16)
        double = chroma + chroma
        circle = double + double
        # The hue if blue is the largest, overwritten where green or red is.
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
                # Green lies opposite to the cut of the circle: a hue that is more than half of the circle
                # away in one direction is also more than 2c away in the other.
                np.minimum(distance, circle - distance, out=distance)
            np.subtract(double, distance, out=distance)
            np.maximum(distance, 0, out=distance)
            np.minimum(distance, chroma, out=distance)
            distance += floor
            changed[channel] = distance
            hue -= double
        return changed

    return change
