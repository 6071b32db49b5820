"""Decoding of image files of 8 or 16 bits with 1 to 4 channels, without any scaling.

Pillow reads images of 8 bits. It would reduce images of several channels with 16 bits to 8, so imagecodecs
reads such PNG files and tifffile such TIFF files.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

from deim.data.images.pixel_format import RGB8, ImageHeader, PixelFormat, Values, check_pixels
from deim.errors import DataError
from deim.parse import is_special
from deim.structures import Placement

DAMAGE: Final = (
    UnidentifiedImageError,
    tifffile.TiffFileError,
    zlib.error,
    struct.error,
    *(OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError, MemoryError),
)
"""Errors of the libraries for files that are damaged or not images."""
SILENT: Final = logging.CRITICAL + 1
CODECS: Final = {".jp2": "jpg_2000", ".avif": "avif"}
"""Formats that not every build of Pillow can read."""
IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    | {suffix for suffix, codec in CODECS.items() if features.check(codec)}
)
Image.MAX_IMAGE_PIXELS = None  # `open_image` has the limit of data.max_image_megapixels
TIFF_MARKS: Final = (b"II*\0", b"MM\0*")
PNG_MARK: Final = b"\x89PNG\r\n\x1a\n"
PNG_METADATA: Final = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks of a PNG that may hold EXIF data."""
LOSSLESS: Final = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Lossless compressions of TIFF: none, LZW, deflate, PackBits, LZMA, Zstandard."""
PLAIN_MODES: Final = ("L", "LA", "RGB", "RGBA")
"""Modes of Pillow whose bands are the channels of the file, 8 bits each."""
TRANSPOSITIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of an EXIF orientation upright."""
UPRIGHT, QUARTER_TURNS = 1, range(5, 9)
"""EXIF orientations: upright, and those that swap height and width."""
MIRRORED_AXES: Final[dict[int, tuple[int, ...]]] = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes of (C, H, W) that an EXIF orientation mirrors, after height and width are swapped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """How a JPEG is decoded at a fraction of its size."""

    step: int
    """Pixels of the file along each axis per decoded pixel: 1, 2, 4 or 8."""
    size_hw: tuple[int, int]
    """Size of the upright image in the file, in pixels."""
    before_yx: tuple[int, int]
    """Pixels that the first row and the first column lack to a full `step`; otherwise the last ones do."""

    def place(self, placement: Placement) -> Placement:
        """Turn the placement in the reduced image into that in the whole one."""
        (span_y, span_x), (shift_y, shift_x) = placement.span_hw, placement.shift_yx
        return Placement(
            orig_size_hw=self.size_hw,
            span_hw=(span_y * self.step, span_x * self.step),
            shift_yx=(shift_y * self.step - self.before_yx[0], shift_x * self.step - self.before_yx[1]),
        )


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors about a missing or damaged file into a DataError that names it; warnings are dropped."""
    loggers = [logging.getLogger(name) for name in ("PIL", "tifffile")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(SILENT)
            if is_special(path):
                raise ValueError("not a regular file")
            yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such image.") from None
    except DAMAGE as error:
        reason = f"{str(error) or type(error).__name__:.200}"
        raise DataError(
            f"{path}: the image is damaged or not an image ({reason}). Replace or remove it."
        ) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def open_image(path: Path, pixels: PixelFormat = RGB8) -> Iterator[Image.Image]:
    """Open an image with Pillow, not decoded; errors within are those of `named_errors`.

    Raises:
        DataError: If the file is missing, not an image, or larger than `pixels` allows.
    """
    with named_errors(path), Image.open(path) as opened:
        refuse_giant((opened.height, opened.width), pixels, where=path)
        yield opened


def refuse_giant(size_hw: tuple[int, int], pixels: PixelFormat, *, where: object) -> None:
    """Refuse an image that is larger than the limit of the config.

    Raises:
        DataError: If it has more than `pixels.max_megapixels`.
    """
    height, width = size_hw
    megapixels = height * width / 1e6
    if megapixels > pixels.max_megapixels:
        raise DataError(
            f"{where}: too large, got {width}x{height} px, {megapixels:.5g} megapixels. Images of at most "
            f"{pixels.max_megapixels:g} megapixels are read. If there is memory for it, raise "
            f"data.max_image_megapixels; or cut the image."
        )


def read_fitting_header(path: Path, pixels: PixelFormat) -> ImageHeader:
    """Read the header of an image, whose channels, depth and size must fit a format.

    Raises:
        DataError: If the file is not such an image.
    """
    header = read_header(path)
    refuse_giant(header.size_hw, pixels, where=path)
    check_pixels(header, pixels, where=path)
    return header


def read_header(path: Path) -> ImageHeader:
    """Read size, channels, depth, orientation and number of pages of an image without decoding it.

    Raises:
        DataError: If the file is missing or not an image.
    """
    with named_errors(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                return _tiff_header(tiff)
        with Image.open(path) as opened:
            return replace(image_header(opened), pages=_count_pages(opened))


def _count_pages(image: Image.Image) -> int:
    """Return the number of pages or frames; the second image of an MPO of a phone is only a preview."""
    if image.format == "MPO":
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except DAMAGE:
        return 1  # damaged beyond the first


def image_header(image: Image.Image) -> ImageHeader:
    """Return the header of an image; of a decoded one only the mode tells the depth."""
    # The bits first: a look for the orientation may decode a PNG, which forgets its depth.
    bits, is_gray_alpha = _bits_per_channel(image), "LA;16B" in _decoder_options(image)
    orientation = _orientation(image)
    return ImageHeader(
        size_hw=_upright_hw(image.height, image.width, orientation),
        channels=2 if is_gray_alpha else len(image.getbands()),
        bits=bits,
        orientation=orientation,
    )


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of the upright image in pixels; see `read_header`."""
    return read_header(path).size_hw


def read_values(path: Path, pixels: PixelFormat = RGB8) -> Values:
    """Read the values of a file upright, as its EXIF orientation says, without any scaling.

    Reads PNG and lossless TIFF of 8 and 16 bits with 1 to 4 channels, and any other format that Pillow reads
    as gray or RGB of 8 bits, such as BMP and JPEG.

    Raises:
        DataError: If the file is missing, damaged, of another kind, or larger than `pixels` allows.
    """
    header = read_header(path)
    refuse_giant(header.size_hw, pixels, where=path)
    with named_errors(path):
        if _is_tiff(path) and (header.bits > 8 or header.channels in (2, 4)):
            values = _read_tiff(path, header)
        elif header.bits == 16 and header.channels > 1:
            values = _channels_first(imagecodecs.png_decode(path.read_bytes()))
        else:
            with Image.open(path) as opened:
                return upright_values(opened, where=path)
        return turn_upright(values, header.orientation)


def _bits_per_channel(image: Image.Image) -> int:
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return int(max(image.tag_v2.get(258, (1,))))
    options = _decoder_options(image)
    # A BMP of 16 bits per pixel has 5 or 6 per channel.
    is_deep = image.format != "BMP" and any(";16" in option for option in options if isinstance(option, str))
    if image.format == "PPM":
        is_deep = any(option > 255 for option in options if isinstance(option, int))
    if is_deep or image.mode.startswith("I;16"):
        return 16
    return 32 if image.mode in ("I", "F") else 8


def upright_values(image: Image.Image, *, where: object) -> Values:
    """Return the values of a Pillow image upright: (C, H, W) uint8, or uint16 for mode I;16.

    Raises:
        DataError: If its mode does not stand for bands of 8 or 16 bits; `where` names its source.
    """
    is_deep, bits = image.mode.startswith("I;16"), _bits_per_channel(image)
    if not is_deep and (image.mode not in PLAIN_MODES or bits > 8):
        raise _unsupported(where, f"Pillow's mode {image.mode} of a file with {bits} bits per channel")
    values = np.asarray(image).astype(np.uint16 if is_deep else np.uint8, copy=False)
    return turn_upright(_channels_first(values), _orientation(image))


def _channels_first(values: NDArray[Any]) -> Values:
    """Turn (H, W) or (H, W, C) into (C, H, W)."""
    return np.moveaxis(values if values.ndim == 3 else values[..., None], -1, 0)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; decodes only if it may stand after the pixels."""
    file: Any = getattr(image, "fp", None)
    if image.format == "PNG" and file is not None and not _has_metadata_after_pixels(file):
        # A PNG's own method decodes the pixels, because EXIF data may follow them.
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()
    orientation = exif.get(ExifTags.Base.Orientation, UPRIGHT)
    return int(orientation) if orientation in TRANSPOSITIONS else UPRIGHT


def turn_upright(values: Values, orientation: int) -> Values:
    """Undo the rotation and mirroring of an EXIF orientation of (C, H, W); beyond 8 it counts as upright."""
    if orientation in QUARTER_TURNS:
        values = values.swapaxes(1, 2)
    return np.ascontiguousarray(np.flip(values, MIRRORED_AXES.get(orientation, ())))


def _upright_hw(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation in QUARTER_TURNS else (height, width)


def upright_image(image: Image.Image) -> Image.Image:
    """Turn an image upright, as its EXIF data says; returns the image itself where nothing changes.

    Unlike Pillow's own function this does not write the EXIF data anew, which fails where they are damaged.
    """
    turn = TRANSPOSITIONS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an image and return it upright in RGB; returns the image itself where nothing changes."""
    # Decoded first: a look for the orientation of a PNG may do so as well.
    image.load()
    upright = upright_image(image)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def reduce_decoding(image: Image.Image, min_hw: tuple[int, int]) -> Reduction:
    """Make Pillow decode a JPEG at 1/2, 1/4 or 1/8 of its size, the smallest that is not below `min_hw`.

    The image is not decoded yet, and `min_hw` is a size of the upright image in pixels.
    """
    width, orientation = image.width, _orientation(image)
    size_hw = _upright_hw(image.height, width, orientation)
    min_height, min_width = _upright_hw(*min_hw, orientation)
    image.draft(None, (min_width, min_height))
    step = round(width / image.width)
    mirrored = MIRRORED_AXES.get(orientation, ())
    before_y = -size_hw[0] % step if 1 in mirrored else 0
    before_x = -size_hw[1] % step if 2 in mirrored else 0
    return Reduction(step=step, size_hw=size_hw, before_yx=(before_y, before_x))


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MARKS


def _tiff_header(tiff: tifffile.TiffFile) -> ImageHeader:
    page: Any = tiff.pages[0]
    orientation = int(page.tags.valueof(274, UPRIGHT))
    return ImageHeader(
        size_hw=_upright_hw(page.imagelength, page.imagewidth, orientation),
        channels=int(page.tags.valueof(277, 1)),
        bits=int(np.max(page.tags.valueof(258, 1))),
        orientation=orientation,
        pages=len(tiff.pages),
    )


def _read_tiff(path: Path, header: ImageHeader) -> Values:
    """Read (C, H, W) of a TIFF, not turned upright."""
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        tags = page.tags
        traits = {
            f"{header.bits} bits per channel": header.bits not in (8, 16),
            "zero as white": tags.valueof(262) == 0,
            "a lossy compression": tags.valueof(259, 1) not in LOSSLESS,
            "channels in separate planes": tags.valueof(284, 1) != 1,
            "numbers other than unsigned integers": set(np.ravel(tags.valueof(339, 1)).tolist()) != {1},
            "channels of different depth": set(np.ravel(tags.valueof(258, 1)).tolist()) != {header.bits},
            "colors that are neither gray nor RGB": tags.valueof(262) not in (0, 1, 2),
        }
        present = [trait for trait, is_present in traits.items() if is_present]
        if present:
            raise _unsupported(path, f"a TIFF with {', '.join(present)}")
        values = page.asarray()
    return _channels_first(values.astype(values.dtype.newbyteorder("="), copy=False))


def _has_metadata_after_pixels(file: BinaryIO) -> bool:
    """Whether chunks that may hold EXIF data follow the pixels of a PNG; keeps the position in the file."""
    place = file.tell()
    file.seek(len(PNG_MARK))
    has_pixels = has_metadata = False
    while not has_metadata and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        has_pixels = has_pixels or kind == b"IDAT"
        has_metadata = has_pixels and kind in PNG_METADATA
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(place)
    return has_metadata


def _decoder_options(image: Image.Image) -> tuple[Any, ...]:
    """Return the options of Pillow's decoder, among them the layout of a pixel; empty once decoded."""
    tiles = getattr(image, "tile", None)
    options = tiles[0][3] if tiles else ()
    return options if isinstance(options, tuple) else (options,)


def _unsupported(where: object, kind: str) -> DataError:
    return DataError(
        f"{where}: cannot be read without loss, got {kind}. Valid are PNG and TIFF of 8 or 16 bits with 1 to "
        f"4 channels, and gray or RGB images of 8 bits. Save it as one of them."
    )
