"""What the values of a sensor mean: channels, and the scaling of 8 or 16 bits to the numbers of an image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deim.config.checks import below, check
from deim.data.images.read import (
    ImageHeader,
    Values,
    bits_per_channel,
    named_errors,
    picture_to_rgb,
    read_values,
)
from deim.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Uint8Scaling:
    """Images have 8 bits a channel and stay as they are; deeper files are refused."""

    type: Literal["uint8"] = "uint8"


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowScaling:
    """The same window of sensor values in all images becomes [0, 1]; what lies beyond is clipped."""

    type: Literal["window"]
    low: float
    """Sensor value that becomes 0."""
    high: float
    """Sensor value that becomes 1, above `low`, at most 65535."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, low=self.low),
                (
                    not self.low < self.high <= 65535,
                    f"high: got {self.high:g}, needs to be above low, {self.low:g}, and at most 65535",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PercentileScaling:
    """Each channel of each image is stretched between two of its own percentiles to [0, 1]."""

    type: Literal["percentile"]
    low: float = 0.5
    """Percent of the pixels that become 0, at least."""
    high: float = 99.5
    """Percent of the pixels that lie below 1, about; above `low`, at most 100."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, low=self.low),
                (
                    not self.low < self.high <= 100,
                    f"high: got {self.high:g}, needs to be above low, {self.low:g}, and at most 100",
                ),
            ]
        )


PICTURE_PERCENTILES: Final = (0.5, 99.5)
"""What becomes black and white in the 8-bit view of an image that needs one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How values of a sensor become the numbers of an image."""

    type: Literal["uint8", "window", "percentile"] = "uint8"
    """`bytes` keeps 8 bits; the others give [0, 1]: from `low` to `high`, clipped beyond."""
    low: float = 0.0
    """In sensor values, or in percent of the pixels of each channel of the image."""
    high: float = 255.0
    """In the same unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFormat:
    """What the pixels of a dataset are."""

    channels: int = 3
    """C, 1 to 4; gray files count as three equal channels where three are asked for."""
    scaling: Scaling = Scaling()

    @property
    def is_rgb8(self) -> bool:
        """Whether images are ordinary photographs, 8-bit RGB."""
        return self.channels == 3 and self.scaling.type == "uint8"


RGB8: Final = PixelFormat()


def check_pixels(header: ImageHeader, pixels: PixelFormat, *, where: object) -> None:
    """Refuse an image that is not what the config says.

    Args:
        header: Of the image.
        pixels: As the config says.
        where: The file, for the message.

    Raises:
        DataError: If it has more than 16 bits, more than 8 without a scaling, or other channels.
    """
    if pixels.is_rgb8 and header.bits <= 8:
        return
    if header.bits > 16:
        raise DataError(
            f"{where}: has {header.bits} bits a channel. Files of 8 and 16 bits can be read: save it as "
            f"16-bit PNG or TIFF."
        )
    if pixels.scaling.type == "uint8" and header.bits > 8:
        raise DataError(
            f"{where}: has more than 8 bits a channel ({header.bits}), of which data.scaling type bytes "
            f"would lose some. Say which values count with --set 'data.scaling={{type: window, low: 0, "
            f"high: 4095}}' (of your sensor), or 'data.scaling={{type: percentile}}' for each image's own."
        )
    if pixels.scaling.type == "window" and header.bits <= 8 and pixels.scaling.high > 255:
        raise DataError(
            f"{where}: has 8 bits a channel, but data.scaling is a window up to {pixels.scaling.high:g}, in "
            f"which it is all but black. Use the files of the sensor, or a window within [0, 255]."
        )
    if header.channels != pixels.channels and (header.channels, pixels.channels) != (1, 3):
        raise DataError(
            f"{where}: has {header.channels} channels, data.channels is {pixels.channels}. Set data.channels "
            f"to what all files have, with as many numbers in data.mean and data.std."
        )


def scale_values(values: Values, pixels: PixelFormat, *, where: object) -> Tensor:
    """Turn sensor values into an image: the one function that training, evaluation and prediction share.

    Args:
        values: (C, H, W).
        pixels: As the config says.
        where: Where the values came from, for messages.

    Returns:
        (C, H, W) with the channels asked for: uint8 for `bytes`, otherwise float32 in [0, 1].

    Raises:
        DataError: If depth or channels are others than the config says.
    """
    bits = 8 * values.dtype.itemsize
    header = ImageHeader(size_hw=(values.shape[1], values.shape[2]), channels=len(values), bits=bits)
    check_pixels(header, pixels, where=where)
    scaling = pixels.scaling
    if scaling.type == "uint8":
        scaled = torch.from_numpy(np.array(values))
    else:
        channels = []
        for channel in values:
            low, high = scaling.low, scaling.high
            if scaling.type == "percentile":
                low, high = compute_percentiles(channel, (scaling.low, scaling.high))
                high = max(high, low + 1)  # an image of one value is black, what sticks out of it white
            span = high - low
            channels.append(np.clip((channel.astype(np.float32) - np.float32(low)) / np.float32(span), 0, 1))
        scaled = torch.from_numpy(np.stack(channels))
    is_gray_for_three = len(values) == 1 and pixels.channels == 3
    return scaled.expand(3, -1, -1).contiguous() if is_gray_for_three else scaled


def compute_percentiles(values: Values, percents: tuple[float, ...]) -> tuple[float, ...]:
    """The least values that at least so many percent of all do not exceed.

    Args:
        values: Of any shape, not empty.
        percents: In [0, 100].
    """
    counts = np.bincount(values.ravel()).cumsum()
    wanted = [max(1, int(np.ceil(percent / 100 * values.size))) for percent in percents]
    found: list[int] = np.searchsorted(counts, wanted).tolist()
    return tuple(map(float, found))


def read_picture(path: Path) -> Image.Image:
    """An 8-bit RGB view of any image that can be read, upright: what reports and pictures show.

    Photographs are shown as they are. Of deeper images each channel is stretched from its 0.5 to its 99.5
    percentile; a second channel of two is left out, and so is a fourth.

    Args:
        path: The file.

    Raises:
        DataError: If the file is missing, damaged, or of another kind.
    """
    with named_errors(path), Image.open(path) as opened:
        if bits_per_channel(opened) <= 8:
            return picture_to_rgb(opened).copy()
    values = read_values(path)
    shown = values[:3] if len(values) >= 3 else values[:1]
    low, high = PICTURE_PERCENTILES
    stretch = PixelFormat(channels=len(shown), scaling=Scaling(type="percentile", low=low, high=high))
    view = (scale_values(shown, stretch, where=path) * 255).round().to(torch.uint8)
    return Image.fromarray(view.expand(3, -1, -1).permute(1, 2, 0).numpy())
