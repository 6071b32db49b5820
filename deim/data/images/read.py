"""What image files hold, 8 or 16 bits and 1 to 4 channels, read as it is.

Pillow cuts images of several channels with 16 bits to 8 without a word. Here such files are found by their
headers, and Pillow is made to unpack all of their bytes: of PNG the high and the low ones in turn, of TIFF
under another header.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deim.errors import DataError

Values = NDArray[np.unsignedinteger[Any]]
"""(C, H, W) uint8 or uint16, what a file holds, upright."""

DAMAGE: Final = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
)
"""What is raised for files that are damaged or no images."""
PLAIN_MODES: Final = ("L", "LA", "RGB", "RGBA")
"""Pillow's modes whose bands are what the file holds, 8 bits each."""
UPRIGHT, FIRST_QUARTER_TURN = 1, 5
"""EXIF orientations: as it should be, and the first of those that swap height and width."""
PNG_MARK: Final = b"\x89PNG\r\n\x1a\n"
PNG_NOTES: Final = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Parts of a PNG that may hold EXIF data."""
MIRRORED_AXES: Final[dict[int, tuple[int, ...]]] = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Axes of (C, H, W), once height and width are swapped, that an EXIF orientation has mirrored."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 256, 257, 258, 259, 262, 277, 284
PREDICTOR, TILE_WIDTH, SAMPLE_FORMAT = 317, 322, 339
"""Tags of TIFF."""
PLACES: Final = (HEIGHT, COMPRESSION, 266, 273, 278, 279, 323, 324, 325)
"""Tags that say how and where the bytes lie, whatever they mean."""
LOSSLESS: Final = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions of TIFF without loss: none, LZW, deflate, PackBits, LZMA, Zstandard."""
SHORT, LONG = 3, 4
"""Types of TIFF."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What a file says about itself ahead of its pixels."""

    size_hw: tuple[int, int]
    """Of the upright image, in pixels."""
    channels: int
    bits: int
    """A channel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """How an image is decoded at a part of its size."""

    step: int
    """Pixels of the file, along each axis, that become one: 1, 2, 4 or 8."""
    size_hw: tuple[int, int]
    """Of the upright image in full, in pixels."""
    before_yx: tuple[int, int]
    """Pixels of the file that are missing in the first row and in the first column, less than `step` each;
    they are missing in the last ones otherwise."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn Pillow's errors into one that names the file.

    Raises:
        DataError: For each of them.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such image.") from None
    except DAMAGE as error:
        unknown = isinstance(error, UnidentifiedImageError) and _is_tiff(path)
        hint = ", or a TIFF of a kind that cannot be read, such as 2 channels of 16 bits" if unknown else ""
        raise DataError(
            f"{path}: the image is damaged or not an image{hint} ({error}). Replace or remove it."
        ) from None


def _is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does, even one of a kind that cannot be read."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*")


def read_header(path: Path) -> ImageHeader:
    """Size, channels and depth of an image from its header alone.

    Raises:
        DataError: If the file is missing or not an image.
    """
    with named_errors(path), Image.open(path) as opened:
        # Before the orientation: a look for it may decode a PNG, which forgets how deep it was.
        bits, channels = bits_per_channel(opened), _channels(opened)
        return ImageHeader(size_hw=upright_size_hw(opened), channels=channels, bits=bits)


def bits_per_channel(image: Image.Image) -> int:
    """Bits of a channel as they stand in the file of an opened picture, which Pillow may give in fewer.

    Args:
        image: Not decoded yet; of one that is, only Pillow's own form is known.
    """
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return int(max(image.tag_v2.get(BITS, (1,))))
    options = _decoder_options(image)
    # Bitmaps of 16 bits a pixel have 5 or 6 a channel.
    is_deep = image.format != "BMP" and any(";16" in one for one in options if isinstance(one, str))
    if image.format == "PPM":
        is_deep = any(one > 255 for one in options if isinstance(one, int))
    if is_deep or image.mode.startswith("I;16"):
        return 16
    return 32 if image.mode in ("I", "F") else 8


def read_values(path: Path) -> Values:
    """Read what the file holds, upright as its EXIF orientation says, neither scaled nor cut.

    Works for PNG of 8 and 16 bits with 1 to 4 channels; TIFF of the same but 16 bits with 2 channels, without
    loss, channels of a pixel side by side; and any other format that Pillow reads as gray or RGB of 8 bits,
    such as BMP and JPEG.

    Args:
        path: The file.

    Returns:
        (C, H, W) uint8 or uint16.

    Raises:
        DataError: If the file is missing, damaged, or of another kind.
    """
    with named_errors(path), Image.open(path) as opened:
        bits = bits_per_channel(opened)
        has_other_bands = opened.format == "TIFF" and _channels(opened) in (2, 4)
        if bits <= 8 and not has_other_bands:
            values = plain_values(opened, where=path)
        elif bits <= 16 and opened.mode == "I;16" and opened.format == "TIFF":
            _refuse_inverted(opened, path)
            values = np.asarray(opened).astype(np.uint16)[None]
        elif bits == 16 and opened.format == "PNG":
            values = _decode_png(opened, path)
        elif bits in (8, 16) and opened.format == "TIFF":
            values = _decode_tiff(path, opened, bits=bits)
        else:
            raise DataError(_unknown_kind(path, f"{bits} bits a channel, Pillow's mode {opened.mode}"))
        return turn_upright(values, image_orientation(opened))


def plain_values(image: Image.Image, *, where: object) -> Values:
    """The bands of a Pillow image of 8 or 16 bits, not turned.

    Args:
        image: The image.
        where: Where it came from, for the message.

    Returns:
        (C, H, W) uint8, or uint16 for mode I;16.

    Raises:
        DataError: If its mode stands for something else than bands of 8 or 16 bits.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[None]
    bits = bits_per_channel(image)
    if image.mode not in PLAIN_MODES or bits > 8:
        raise DataError(
            _unknown_kind(where, f"Pillow's mode {image.mode} of a file with {bits} bits a channel")
        )
    values = np.asarray(image)
    return np.moveaxis(values if values.ndim == 3 else values[..., None], -1, 0)


def image_orientation(image: Image.Image) -> int:
    """EXIF orientation of a picture, 1 to 8; 1 is upright. Decodes only if it may stand behind the pixels."""
    file: Any = getattr(image, "fp", None)
    if image.format == "PNG" and file is not None and not _has_late_notes(file):
        # A PNG's own look for EXIF data decodes its pixels, since some may stand behind them.
        exif = Image.Image.getexif(image)
    else:
        exif = image.getexif()
    return int(exif.get(ExifTags.Base.Orientation, UPRIGHT))


def _has_late_notes(file: BinaryIO) -> bool:
    """Whether a PNG says anything behind its pixels that may be EXIF data; the file stays where it is."""
    place = file.tell()
    file.seek(len(PNG_MARK))
    has_pixels = found = False
    while not found and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        has_pixels = has_pixels or kind == b"IDAT"
        found = has_pixels and kind in PNG_NOTES
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(place)
    return found


def turn_upright(values: Values, orientation: int) -> Values:
    """Undo what an EXIF orientation describes.

    Args:
        values: (C, H, W).
        orientation: 1 to 8; anything else is upright.

    Returns:
        (C, H, W), or (C, W, H) for orientations from 5.
    """
    if 5 <= orientation <= 8:
        values = values.swapaxes(1, 2)
    return np.ascontiguousarray(np.flip(values, MIRRORED_AXES.get(orientation, ())))


def picture_to_rgb(image: Image.Image) -> Image.Image:
    """A picture upright, as its EXIF orientation says, in RGB: itself, decoded, if it is so already."""
    # Decoded first: a look for the orientation of a PNG may do so as well.
    image.load()
    upright = image if image_orientation(image) == 1 else ImageOps.exif_transpose(image)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def reduce_decoding(image: Image.Image, least_hw: tuple[int, int]) -> Reduction:
    """Make Pillow decode a JPEG at 1/2, 1/4 or 1/8 of its size, the smallest that is large enough.

    Args:
        image: A JPEG, opened and not decoded yet.
        least_hw: Least size of the upright image, in pixels.

    Returns:
        What becomes of the image.
    """
    (width, height), orientation = image.size, image_orientation(image)
    is_turned = orientation >= FIRST_QUARTER_TURN
    size_hw = (width, height) if is_turned else (height, width)
    least_h, least_w = reversed(least_hw) if is_turned else least_hw
    image.draft(None, (least_w, least_h))
    step = round(width / image.width)
    missing_yx = (-size_hw[0] % step, -size_hw[1] % step)
    mirrored = MIRRORED_AXES.get(orientation, ())
    return Reduction(
        step=step,
        size_hw=size_hw,
        before_yx=(missing_yx[0] if 1 in mirrored else 0, missing_yx[1] if 2 in mirrored else 0),
    )


def _channels(image: Image.Image) -> int:
    """As they stand in the file: Pillow drops those of a TIFF that it has no use for."""
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return int(image.tag_v2.get(SAMPLES, 1))
    is_gray_with_alpha = "LA;16B" in _decoder_options(image)
    return 2 if is_gray_with_alpha else len(image.getbands())


def stored_size_wh(image: Image.Image) -> tuple[int, int]:
    """Before any turn; newer Pillow gives the size of a TIFF after it."""
    if image.format == "TIFF" and hasattr(image, "tag_v2"):
        return int(image.tag_v2[WIDTH]), int(image.tag_v2[HEIGHT])
    return image.size


def upright_size_hw(image: Image.Image) -> tuple[int, int]:
    """Size of an opened picture once it is turned as its EXIF orientation says, in pixels."""
    width, height = stored_size_wh(image)
    is_turned = image_orientation(image) >= FIRST_QUARTER_TURN
    return (width, height) if is_turned else (height, width)


def _decoder_options(image: Image.Image) -> tuple[Any, ...]:
    """What Pillow will tell its decoder; nothing once the image is decoded."""
    tiles = getattr(image, "tile", None)
    options = tiles[0][3] if tiles else ()
    return options if isinstance(options, tuple) else (options,)


def _unknown_kind(where: object, found: str) -> str:
    return (
        f"{where}: cannot be read as it is, got {found}. Known are PNG and TIFF of 8 or 16 bits with 1 to 4 "
        f"channels (TIFF not with 2 of 16 bits), and gray or RGB images of 8 bits. Save it as one of them."
    )


def _decode_png(opened: Image.Image, path: Path) -> NDArray[np.uint16]:
    """(C, H, W) of a PNG with 16 bits a channel, not turned."""
    match _decoder_options(opened)[0]:
        case "I;16B":
            return np.asarray(opened).astype(np.uint16)[None]
        case "LA;16B":
            # Four bytes a pixel, as of RGBA: high and low of gray, high and low of alpha.
            split = _unpack(path, "RGBA")
            high, low = split[..., ::2], split[..., 1::2]
        case "RGB;16B":
            high, low = _unpack(path, "RGB;16B"), _unpack(path, "RGB;16L")
        case _:
            high, low = _unpack(path, "RGBA;16B"), _unpack(path, "RGBA;16L")
    values: NDArray[np.uint16] = high.astype(np.uint16) << np.uint16(8) | low
    return values.transpose(2, 0, 1)


def _unpack(path: Path, raw_mode: str) -> NDArray[np.uint8]:
    """(H, W, bands) of a PNG whose bytes Pillow takes for those of another mode of the same length.

    Of 16 bits it keeps the first byte (of `;16B`) or the second (of `;16L`).
    """
    opened: Any
    with Image.open(path) as opened:
        opened.tile = [(*tile[:3], raw_mode) for tile in opened.tile]
        return np.asarray(opened)


def _refuse_inverted(opened: Any, path: Path) -> None:
    if opened.tag_v2.get(PHOTOMETRIC) == 0:
        raise DataError(_unknown_kind(path, "a TIFF in which 0 is white"))


def _decode_tiff(path: Path, opened: Any, *, bits: int) -> Values:
    """(C, H, W) of a TIFF with several channels.

    Pillow is given the same bytes under a header that calls them a gray image of 8 bits, six times as wide
    for three channels of 16 bits, so that it undoes the compression and nothing else.
    """
    tags = opened.tag_v2
    channels, kind = int(tags.get(SAMPLES, 1)), np.dtype(np.uint8 if bits == 8 else np.uint16)
    found = {
        "a compression with loss": tags.get(COMPRESSION, 1) not in LOSSLESS,
        "channels in planes of their own": tags.get(PLANAR, 1) != 1,
        "numbers other than unsigned integers": set(tags.get(SAMPLE_FORMAT, (1,))) != {1},
        "a predictor for fractions": tags.get(PREDICTOR, 1) not in (1, 2),
        "channels of different depth": set(tags[BITS]) != {bits},
        "colors that are neither gray nor RGB": tags.get(PHOTOMETRIC) not in (1, 2),
    }
    if any(found.values()):
        traits = ", ".join(trait for trait, is_there in found.items() if is_there)
        raise DataError(_unknown_kind(path, f"a TIFF of {bits} bits a channel with {traits}"))
    content = path.read_bytes()
    order: Literal["<", ">"] = "<" if content[:2] == b"II" else ">"
    width, height = stored_size_wh(opened)
    renamed = _as_bytes_of_gray(content, order, bytes_a_pixel=bits // 8 * channels)
    with Image.open(io.BytesIO(renamed)) as unpacked:
        flat = np.frombuffer(unpacked.tobytes(), dtype=kind.newbyteorder(order))
    values: Values = flat.reshape(height, width, channels).astype(kind)
    if tags.get(PREDICTOR, 1) == 2:
        # Each strip or tile holds differences to the pixel on the left.
        step = tags.get(TILE_WIDTH, width)
        for left in range(0, width, step):
            part = values[:, left : left + step]
            part[:] = part.cumsum(axis=1, dtype=kind)
    return values.transpose(2, 0, 1)


def _as_bytes_of_gray(content: bytes, order: str, *, bytes_a_pixel: int) -> bytes:
    """A TIFF with a second table of tags behind it, which calls each byte a pixel."""
    magic, start = struct.unpack_from(f"{order}HI", content, 2)
    if magic != 42:
        raise ValueError("BigTIFF is not supported")
    (number,) = struct.unpack_from(f"{order}H", content, start)
    entries: dict[int, bytes] = {}
    for place in range(start + 2, start + 2 + 12 * number, 12):
        tag, kind = struct.unpack_from(f"{order}HH", content, place)
        if tag in PLACES:
            entries[tag] = content[place : place + 12]
        elif tag in (WIDTH, TILE_WIDTH):
            (pixels,) = struct.unpack_from(f"{order}{'H' if kind == SHORT else 'I'}", content, place + 8)
            entries[tag] = struct.pack(f"{order}HHII", tag, LONG, 1, pixels * bytes_a_pixel)
    for tag, value in ((BITS, 8), (PHOTOMETRIC, 1), (SAMPLES, 1), (PLANAR, 1)):
        entries[tag] = struct.pack(f"{order}HHIHH", tag, SHORT, 1, value, 0)
    padding = b"\0" * (len(content) % 2)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    header = content[:4] + struct.pack(f"{order}I", len(content) + len(padding))
    return header + content[8:] + padding + table + struct.pack(f"{order}I", 0)
