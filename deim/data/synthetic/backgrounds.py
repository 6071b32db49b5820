"""Images of good surfaces as backgrounds of the synthetic set, in place of drawn surfaces."""

import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.random import Generator
from PIL import Image

from deim.data.images.folder import list_images
from deim.data.images.pixel_format import RGB8
from deim.data.images.read import IMAGE_SUFFIXES, read_header, refuse_giant
from deim.data.synthetic.surface import Scene
from deim.errors import DataError
from deim.files import count, looked_in, raise_listed

MIN_SIDE_PX: Final = 64
"""Minimum width and height of an image of the set, and of a background."""
GRAY_SPREAD: Final = 4
"""Largest difference of two channels of 8 bits in an image that counts as gray."""

Box = tuple[float, float, float, float]

logger = logging.getLogger(__name__)


def find_backgrounds(
    folder: Path, num_images: Mapping[str, int], *, seed: int
) -> dict[str, tuple[Path, ...]]:
    """Divide the images below a folder among the splits of a set, at random but always alike for a seed.

    Args:
        folder: Folder with images without defects.
        num_images: Number of images of each split of the set.
        seed: Seed of the set.

    Returns:
        The backgrounds of each split, in the order in which its images take them. No split has one of another
        split, unless there are fewer backgrounds than splits: then all share them, with a warning.

    Raises:
        DataError: If the folder is missing or holds no image, or an image cannot be read or is too small.
    """
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else f"no such folder{looked_in(folder)}"
        raise DataError(
            f"{folder}: {problem}. Backgrounds are images without defects. Name their folder with "
            f"data.synthetic.backgrounds, or --backgrounds."
        )
    paths = [folder / name for name in list_images(folder)]
    if not paths:
        raise DataError(
            f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Put images without defects "
            f"there, or name their folder with data.synthetic.backgrounds, or --backgrounds."
        )
    raise_listed([problem for path in paths for problem in _problems(path)])
    order = np.random.default_rng([seed, len(num_images)]).permutation(len(paths))
    shuffled = tuple(paths[place] for place in order)
    sizes = {split: number for split, number in num_images.items() if number}
    if len(paths) < len(sizes):
        logger.warning(
            "%s: %s for %d splits, which share them, so that a detector is validated on images that it was "
            "trained on",
            folder,
            count("background", len(paths)),
            len(sizes),
        )
        return dict.fromkeys(num_images, shuffled)
    # One for each split, and the rest by the number of its images.
    shares = np.cumsum(list(sizes.values())) / sum(sizes.values())
    ends = np.rint(shares * (len(paths) - len(sizes))).astype(int) + np.arange(1, len(sizes) + 1)
    starts = [0, *ends.tolist()]
    parts = {split: shuffled[starts[place] : starts[place + 1]] for place, split in enumerate(sizes)}
    return {split: parts.get(split, ()) for split in num_images}


def hash_backgrounds(folder: Path) -> str | None:
    """Return the SHA-256 of the names and sizes of the images below a folder; None if there is no folder."""
    if not folder.is_dir():
        return None
    listed = [f"{name} {(folder / name).stat().st_size}" for name in list_images(folder)]
    return hashlib.sha256("\n".join(listed).encode("utf-8", "surrogateescape")).hexdigest()


def _problems(path: Path) -> list[str]:
    try:
        size_hw = read_header(path).size_hw
        refuse_giant(size_hw, RGB8, where=path)
    except DataError as error:
        return [str(error)]
    height, width = size_hw
    if min(size_hw) >= MIN_SIDE_PX:
        return []
    return [
        f"{path}: too small for a background, got {width}x{height} px. Each side needs at least "
        f"{MIN_SIDE_PX} px. Remove it, or take a larger image."
    ]


def open_scene(rng: Generator, path: Path, max_hw: tuple[int, int]) -> Scene:
    """Read a random part of a background as a scene whose surface fills the image.

    The part has at least half of the possible sides. It is reduced, never enlarged, to `max_hw`; of a smaller
    background the scene keeps the ratio of `max_hw`, and `MIN_SIDE_PX` a side.

    Raises:
        DataError: If the image is damaged.
    """
    from deim.data.images.load import read_preview  # the options of images rest on those of this package

    image = read_preview(path)
    box, (height, width) = _draw_part(rng, (image.height, image.width), max_hw)
    rgb = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    angle = rng.uniform(0, 2 * math.pi)
    return Scene(
        canvas=rgb.astype(np.float32) / np.float32(255),
        surface=np.ones((height, width), dtype=np.float32),
        light_xy=(math.cos(angle), math.sin(angle)),
        is_gray=bool((rgb.max(axis=2) - rgb.min(axis=2)).max() <= GRAY_SPREAD),
    )


def _draw_part(
    rng: Generator, image_hw: tuple[int, int], max_hw: tuple[int, int]
) -> tuple[Box, tuple[int, int]]:
    """Draw a part of an image, xyxy in its pixels, and the size (height, width) to reduce it to."""
    fit = min(1.0, image_hw[0] / max_hw[0], image_hw[1] / max_hw[1])
    height, width = (max(round(side * fit), MIN_SIDE_PX) for side in max_hw)
    largest = min(image_hw[0] / height, image_hw[1] / width)
    step = rng.uniform(max(1.0, largest / 2), largest)
    part_hw = min(height * step, image_hw[0]), min(width * step, image_hw[1])
    top, left = (
        int(rng.integers(int(whole - part) + 1)) for whole, part in zip(image_hw, part_hw, strict=True)
    )
    return (left, top, left + part_hw[1], top + part_hw[0]), (height, width)
