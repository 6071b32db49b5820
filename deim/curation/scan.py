"""Facts about many image files: size, EXIF orientation, damage, brightness, hash and thumbnail."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deim.data.images.ends import has_usual_end
from deim.data.images.pixel_format import RGB8, PixelFormat
from deim.data.images.read import UPRIGHT, named_errors, read_header, read_values, refuse_giant, upright_image
from deim.errors import DataError
from deim.files import sha256_of_file

THUMBNAIL_SIDE = 32
"""Sides of every thumbnail in pixels, whatever the shape of its image."""
NO_THUMBNAIL: Final = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """Facts about a file. The last four fields are only set if the image is decoded."""

    size_hw: tuple[int, int] | None = None
    """Size of the upright image in pixels; None if the file is missing or not an image."""
    orientation: int = UPRIGHT
    """EXIF orientation, 1 to 8; 1 is upright."""
    pages: int = 1
    """Images in the file; the first is used."""
    size_problem: str = ""
    """Why the image is too large to be read; empty if it is not."""
    header_problem: str = ""
    """Why the file is not an image; empty if it is one."""
    content_problem: str = ""
    """Why the pixels cannot be decoded; empty if they can."""
    sha256: str = ""
    """Hash of the bytes of the file; empty if it cannot be read."""
    brightness: float = float("nan")
    """Mean of the gray image, in [0, 255]."""
    thumbnail: NDArray[np.float32] = field(default_factory=lambda: NO_THUMBNAIL)
    """(32, 32) gray means, in [0, 255]; empty if the pixels cannot be decoded."""


def scan_images(
    paths: Sequence[Path],
    *,
    decode: bool,
    pixels: PixelFormat = RGB8,
    workers: int = 2,
    progress: Callable[[int], object] = lambda _: None,
) -> list[ImageFacts]:
    """Collect facts about files, several at a time, in the order of `paths`.

    Without `decode`, only headers and the ends of files are read, which takes 0.1 ms per file; a file without
    the usual end is decoded, and an image larger than `pixels` allows never is. The interpreter lock is free
    most of the time, so that more threads help. `progress` is called with the number of finished files,
    after each.
    """
    facts = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for number, file_facts in enumerate(
            pool.map(partial(scan_image, decode=decode, pixels=pixels), paths), start=1
        ):
            facts.append(file_facts)
            progress(number)
    return facts


def scan_image(path: Path, *, decode: bool, pixels: PixelFormat = RGB8) -> ImageFacts:
    """Collect facts about one file; see `scan_images`."""
    try:
        header = read_header(path)
    except DataError as error:
        return ImageFacts(header_problem=str(error))
    facts = ImageFacts(size_hw=header.size_hw, orientation=header.orientation, pages=header.pages)
    try:
        refuse_giant(header.size_hw, pixels, where=path)
    except DataError as error:
        return replace(facts, size_problem=str(error))
    problem, sha256, thumbnail = "", "", NO_THUMBNAIL
    try:
        if decode or not has_usual_end(path):
            thumbnail = _make_thumbnail(path, pixels, is_deep=header.bits > 8 and header.channels > 1)
        if decode:
            sha256 = sha256_of_file(path)
    except (DataError, OSError) as error:
        problem = str(error)
    return replace(
        facts,
        content_problem=problem,
        sha256=sha256,
        brightness=float(thumbnail.mean()) if thumbnail.size else float("nan"),
        thumbnail=thumbnail,
    )


def _make_thumbnail(path: Path, pixels: PixelFormat, *, is_deep: bool) -> NDArray[np.float32]:
    """Return (32, 32) gray means; more than 8 bits are stretched from the darkest to the brightest pixel."""
    if is_deep:
        image = Image.fromarray(read_values(path, pixels).mean(axis=0, dtype=np.float32))
    else:
        with named_errors(path), Image.open(path) as opened:
            opened.load()
            image = upright_image(opened)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float32)
        low, high = float(values.min()), float(values.max())
        gray = Image.fromarray((values - low) * (255 / max(high - low, 1e-6)))
    else:
        gray = image.convert("L").convert("F")
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.float32)
