"""How an image becomes the input of the network: the same in training, evaluation and prediction."""

import math
from dataclasses import dataclass
from typing import Literal

from deim.data.images.pixel_format import RGB8, PixelFormat
from deim.data.images.tiling import TilesOptions
from deim.data.options import DataOptions

Resize = Literal["stretch", "letterbox"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """Everything that decides how the pixels of a file become those of the network input."""

    size_hw: tuple[int, int]
    """Size of the network input, in pixels."""
    resize: Resize = "stretch"
    """`stretch` ignores the aspect ratio; `letterbox` keeps it and pads with gray."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """C numbers in [0, 1], subtracted from the scaled image."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """C numbers above 0 that divide it."""
    pixels: PixelFormat = RGB8
    """Channels and scaling of the files."""
    reduced_decode: bool = False
    """Whether JPEG files are decoded at a fraction of their size where that is large enough."""
    tiles: TilesOptions | None = None
    """How images are cut into tiles, each of which becomes an input; None for whole images."""

    @property
    def num_bytes(self) -> int:
        """Size of an input before it is normalized: uint8, or float32 for files that are scaled."""
        return self.pixels.channels * math.prod(self.size_hw) * (1 if self.pixels.is_uint8 else 4)


def build_input_format(data: DataOptions, image_size_hw: tuple[int, int]) -> InputFormat:
    """Build the input format of an experiment with a network input of this size in pixels."""
    return InputFormat(
        size_hw=image_size_hw,
        resize=data.resize,
        mean=data.mean,
        std=data.std,
        pixels=data.pixels,
        reduced_decode=data.reduced_decode,
        tiles=data.tiles,
    )
