"""Images for pretraining: those of a dataset, whose boxes do not count, or all below a folder."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from deim.data.formats.read import detect_formats
from deim.data.formats.split import CocoSplit
from deim.data.images.folder import list_images
from deim.data.images.pixel_format import PixelFormat
from deim.data.images.read import IMAGE_SUFFIXES, read_fitting_header
from deim.data.options import DataOptions
from deim.data.splits import Splits, prepare_root, read_split
from deim.errors import DataError
from deim.files import count, looked_in, raise_listed

logger = logging.getLogger(__name__)

IMAGES: Final = (
    "Set data.root to a folder of images, also within folders below it, and leave data.format at auto."
)
VAL_SHARE: Final = 0.1
"""Share of the images of a folder that are held out, at least one of them."""


def build_unlabeled_splits(data: DataOptions) -> Splits:
    """Find images to pretrain on, and others to validate on.

    Of a dataset with annotations, the training and validation images are taken, never those of the test
    split. Of any other folder all images below it are taken, a tenth of them for validation.

    Raises:
        DataError: If there are fewer than two images, or one cannot be used; up to 20 are named.
    """
    root = Path(data.root)
    if not root.exists() and data.synthetic is None:
        raise DataError(f"data.root: there is no folder {data.root!r}{looked_in(root)}. {IMAGES}")
    prepare_root(data)
    is_named = data.format != "auto" or data.annotation_files or data.images
    if is_named or detect_formats(root)[1]:
        try:
            splits = Splits(train=read_split(data, "train"), val=read_split(data, "val"))
        except DataError as error:
            raise DataError(f"{error}\nPretraining needs no annotations. {IMAGES}") from None
        logger.info("%s: a dataset with annotations; its training images are used without them", root)
        return splits
    names = list_images(root) if root.is_dir() else []
    if len(names) < 2:
        raise DataError(
            f"data.root: {root} holds {count('image', len(names))} ({', '.join(sorted(IMAGE_SUFFIXES))}), "
            f"needs at least 2, since some are held out. {IMAGES}"
        )
    sizes_hw = _read_sizes(root, names, data.pixels)
    held_out = set(sorted(names, key=_digest)[: max(1, int(VAL_SHARE * len(names)))])
    train, val = (
        _to_split(root, name, {path: sizes_hw[path] for path in names if (path in held_out) == is_held_out})
        for name, is_held_out in (("train", False), ("val", True))
    )
    logger.info("%s: %s to train on, %d held out for validation", root, count("image", len(train)), len(val))
    return Splits(train=train, val=val)


def _read_sizes(root: Path, names: Sequence[str], pixels: PixelFormat) -> dict[str, tuple[int, int]]:
    """Return height and width of each image, by name."""
    sizes_hw: dict[str, tuple[int, int]] = {}
    problems = []
    for name in names:
        try:
            sizes_hw[name] = read_fitting_header(root / name, pixels).size_hw
        except DataError as error:
            problems.append(str(error))
    raise_listed(problems)
    return sizes_hw


def _digest(name: str) -> bytes:
    """Return a number that does not depend on the other images of the folder."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _to_split(root: Path, name: str, sizes_hw: dict[str, tuple[int, int]]) -> CocoSplit:
    return CocoSplit(
        name=name,
        annotations_path=root,
        image_dir=root,
        image_ids=np.arange(1, len(sizes_hw) + 1),
        file_names=tuple(sizes_hw),
        sizes_hw=np.array(list(sizes_hw.values()), dtype=np.int64),
        category_ids=(),
        class_names=(),
        first_box=np.zeros(len(sizes_hw) + 1, dtype=np.int64),
        boxes_xywh=np.zeros((0, 4)),
        box_category_ids=np.zeros(0, dtype=np.int64),
        areas=np.zeros(0),
        is_crowd=np.zeros(0, dtype=np.bool_),
    )
