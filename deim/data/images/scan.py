"""Looking at many image files at once: size, EXIF rotation, damage, brightness, hash and thumbnail."""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deim.data.images.read import (
    FIRST_QUARTER_TURN,
    UPRIGHT,
    bits_per_channel,
    image_orientation,
    read_values,
    stored_size_wh,
)
from deim.data.transforms import read_size
from deim.errors import DataError

THUMBNAIL_SIDE = 32
"""Pixels; every thumbnail is square, whatever the shape of its image."""
DAMAGE: Final = (OSError, SyntaxError, ValueError, IndexError, EOFError, Image.DecompressionBombError)
"""What Pillow's decoders raise for damaged files; OSError for one that is cut short."""
NO_THUMBNAIL: Final = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a file is. Without `decode` the last four fields say nothing."""

    size_hw: tuple[int, int] | None = None
    """Of the upright image, in pixels; None if the file is absent or not an image."""
    orientation: int = UPRIGHT
    """EXIF orientation, 1 to 8; 1 is upright."""
    header_problem: str = ""
    """Why the file is not an image; empty if it is one."""
    content_problem: str = ""
    """Why the pixels cannot be decoded; empty if they can."""
    sha256: str = ""
    """Of the bytes of the file; empty if it cannot be read."""
    brightness: float = float("nan")
    """Mean of the gray image, in [0, 255]."""
    thumbnail: NDArray[np.float32] = field(default_factory=lambda: NO_THUMBNAIL)
    """(32, 32) gray means, in [0, 255]; empty if the pixels cannot be decoded."""


def scan_images(
    paths: Sequence[Path],
    *,
    decode: bool,
    workers: int = 2,
    progress: Callable[[int], object] = lambda _: None,
) -> list[ImageFacts]:
    """Look at files, several at a time.

    Args:
        paths: Any files.
        decode: Whether to decode the pixels; else only headers are read, at a tenth of a millisecond a file.
        workers: Files at a time. Threads, since almost all time is spent outside the interpreter lock.
        progress: Called with the number of files done, after each.

    Returns:
        Facts of each file, in the order of `paths`.
    """
    facts = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for number, found in enumerate(pool.map(partial(scan_image, decode=decode), paths), start=1):
            facts.append(found)
            progress(number)
    return facts


def scan_image(path: Path, *, decode: bool) -> ImageFacts:
    """Look at one file; see `scan_images`."""
    try:
        content = path.read_bytes() if decode else b""
        opened = Image.open(io.BytesIO(content) if decode else path)
    except DAMAGE as error:
        return ImageFacts(header_problem=_describe_damage(path, error))
    sha256 = hashlib.sha256(content).hexdigest() if decode else ""
    with opened:
        width, height = stored_size_wh(opened)
        orientation, problem, thumbnail = UPRIGHT, "", NO_THUMBNAIL
        try:
            # Ahead of decoding, after which Pillow no longer knows how deep the file is.
            bits = bits_per_channel(opened)
            orientation = image_orientation(opened)
            if decode:
                opened.load()
                is_deep = bits > 8 and len(opened.getbands()) > 1
                thumbnail = _make_thumbnail(_deep_gray(path) if is_deep else ImageOps.exif_transpose(opened))
        except (*DAMAGE, DataError) as error:
            problem = str(error)
    return ImageFacts(
        size_hw=(width, height) if orientation >= FIRST_QUARTER_TURN else (height, width),
        orientation=orientation,
        content_problem=problem,
        sha256=sha256,
        brightness=float(thumbnail.mean()) if thumbnail.size else float("nan"),
        thumbnail=thumbnail,
    )


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _describe_damage(path: Path, error: Exception) -> str:
    """The message that training would give for the file."""
    try:
        read_size(path)
    except DataError as named:
        return str(named)
    return f"{path}: the image cannot be read ({error}). Replace or remove it."


def _deep_gray(path: Path) -> Image.Image:
    """Mean of the channels, of which Pillow itself would keep the high bytes alone; upright."""
    return Image.fromarray(read_values(path).mean(axis=0, dtype=np.float32))


def _make_thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """(32, 32) gray means; more than 8 bits are stretched from the darkest to the brightest pixel."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        gray = Image.fromarray((values - low) * (255 / max(high - low, 1e-6)))
    else:
        gray = image.convert("L").convert("F")
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.float32)
