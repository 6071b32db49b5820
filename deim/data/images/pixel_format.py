"""What the values of image files mean: channels, and the scaling of 8 or 16 bits to the network's range."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deim.config.checks import below, check
from deim.errors import DataError

Values = NDArray[np.unsignedinteger[Any]]
"""(C, H, W) uint8 or uint16: what a file holds, upright."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Uint8Scaling:
    """Images have 8 bits per channel and stay as they are; deeper files are rejected."""

    type: Literal["uint8"] = "uint8"


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowScaling:
    """Maps the same range of sensor values to [0, 1] in all images and clips values outside it."""

    type: Literal["window"] = "window"
    low: float
    """Sensor value that becomes 0."""
    high: float
    """Sensor value that becomes 1, above `low`, at most 65535."""

    def __post_init__(self) -> None:
        _check_limits(self.low, self.high, most=65535)


@dataclass(frozen=True, kw_only=True, slots=True)
class PercentileScaling:
    """Stretches each channel of each image between two of its percentiles to [0, 1]."""

    type: Literal["percentile"] = "percentile"
    low: float = 0.5
    """Percentage of the pixels that become 0."""
    high: float = 99.5
    """Percentage of the pixels below 1; above `low`, at most 100."""

    def __post_init__(self) -> None:
        _check_limits(self.low, self.high, most=100)


def _check_limits(low: float, high: float, *, most: int) -> None:
    needs = f"needs to be above low, {low:g}, and at most {most}"
    check([*below(0, low=low), (not low < high <= most, f"high: got {high:g}, {needs}")])


MAX_MEGAPIXELS: Final = 500.0
"""Default of `data.max_image_megapixels`: RGB of 1.5 GB."""

Scaling = Uint8Scaling | WindowScaling | PercentileScaling


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFormat:
    """Channels and scaling of the images of a dataset."""

    channels: int = 3
    """C, 1 to 4; gray files become three equal channels where 3 are expected."""
    scaling: Scaling = Uint8Scaling()
    max_megapixels: float = MAX_MEGAPIXELS
    """Size from which files are refused, in millions of pixels."""

    @property
    def is_rgb8(self) -> bool:
        """Whether images are ordinary 8-bit RGB."""
        return self.channels == 3 and self.is_uint8

    @property
    def is_uint8(self) -> bool:
        """Whether images stay uint8; otherwise they are float32 in [0, 1]."""
        return isinstance(self.scaling, Uint8Scaling)


RGB8: Final = PixelFormat()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What a file says about itself before its pixels."""

    size_hw: tuple[int, int]
    """Size of the upright image, in pixels."""
    channels: int
    bits: int
    """Bits per channel."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 is upright."""
    pages: int = 1
    """Images in the file, such as the pages of a TIFF or the frames of a GIF; the first is used."""


def check_pixels(header: ImageHeader, pixels: PixelFormat, *, where: object) -> None:
    """Check that an image has the depth and the channels of the config; `where` names it.

    Raises:
        DataError: If it has more than 16 bits, more than 8 without a scaling, or other channels.
    """
    if pixels.is_rgb8 and header.bits <= 8:
        return
    if header.bits > 16:
        raise DataError(
            f"{where}: has {header.bits} bits per channel. Files of 8 and 16 bits can be read: save it as "
            f"16-bit PNG or TIFF."
        )
    if pixels.is_uint8 and header.bits > 8:
        raise DataError(
            f"{where}: has more than 8 bits per channel ({header.bits}), and data.scaling type uint8 would "
            f"lose some. Choose the range of values with --set 'data.scaling={{type: window, low: 0, "
            f"high: 4095}}' (of your sensor), or 'data.scaling={{type: percentile}}' for a range per image."
        )
    scaling = pixels.scaling
    if isinstance(scaling, WindowScaling) and header.bits <= 8 and scaling.high > 255:
        raise DataError(
            f"{where}: has 8 bits per channel, but data.scaling is a window up to {scaling.high:g}, which "
            f"makes it almost black. Use the files of the sensor, or a window within [0, 255]."
        )
    if header.channels != pixels.channels and (header.channels, pixels.channels) != (1, 3):
        raise DataError(
            f"{where}: has {header.channels} channels, data.channels is {pixels.channels}. Set data.channels "
            f"to the number of channels of all files, with as many numbers in data.mean and data.std."
        )


def scale_values(values: Values, pixels: PixelFormat, *, where: object) -> Tensor:
    """Turn sensor values into an image; training, evaluation and prediction share this function.

    Returns:
        (C, H, W) with the channels of `pixels`: uint8 for `Uint8Scaling`, otherwise float32 in [0, 1].

    Raises:
        DataError: If depth or channels differ from the config's; `where` names the source of the values.
    """
    bits = 8 * values.dtype.itemsize
    header = ImageHeader(size_hw=(values.shape[1], values.shape[2]), channels=len(values), bits=bits)
    check_pixels(header, pixels, where=where)
    scaled = torch.from_numpy(np.stack([_scale_channel(channel, pixels.scaling) for channel in values]))
    is_gray_for_three = len(values) == 1 and pixels.channels == 3
    return scaled.expand(3, -1, -1).contiguous() if is_gray_for_three else scaled


def _scale_channel(channel: Values, scaling: Scaling) -> NDArray[Any]:
    if isinstance(scaling, Uint8Scaling):
        return channel
    low, high = scaling.low, scaling.high
    if isinstance(scaling, PercentileScaling):
        low, high = compute_percentiles(channel, (low, high))
        # A uniform channel becomes black; a few brighter pixels in it become white.
        high = max(high, low + 1)
    stretched = (channel.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(stretched, 0, 1, out=stretched)


def compute_percentiles(values: Values, percents: tuple[float, ...]) -> tuple[float, ...]:
    """Compute percentiles of a non-empty array as NumPy's method `inverted_cdf`, from a histogram."""
    counts = np.bincount(values.ravel()).cumsum()
    ranks = [max(1, int(np.ceil(percent / 100 * values.size))) for percent in percents]
    positions: list[int] = np.searchsorted(counts, ranks).tolist()
    return tuple(map(float, positions))
