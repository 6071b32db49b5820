"""The splits of an experiment: generated if they are synthetic, read and validated."""

import logging
from dataclasses import dataclass
from pathlib import Path

from deim.data.formats.check_images import check_images
from deim.data.formats.coco import CocoSplit, RawSplit, match_classes, read_raw_coco, to_split
from deim.data.formats.names import CONTENTS
from deim.data.formats.read import read_raw
from deim.data.images.pixel_format import PixelFormat
from deim.data.options import DataOptions
from deim.data.synthetic.make import make_synthetic_dataset
from deim.errors import DataError
from deim.files import looked_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Training and validation data with matching classes."""

    train: CocoSplit
    val: CocoSplit


def prepare_root(data: DataOptions) -> None:
    """Make the synthetic set if the config asks for one and the folder is missing or empty.

    Raises:
        DataError: If the dataset folder does not exist and the config makes none.
    """
    root = Path(data.root)
    if root.is_dir() and (data.synthetic is None or any(root.iterdir())):
        return
    if data.synthetic is None:
        raise DataError(
            f"data.root: there is no folder {str(root)!r}{looked_in(root)}. It must hold "
            f"{_describe_content(data)}. "
            f"Name your dataset with --set data.root=FOLDER, or make a synthetic one with "
            f"deim synthetic --root {root}"
        )
    logger.info("making the synthetic defect set in %s", root)
    make_synthetic_dataset(root, data.synthetic)


def _describe_content(data: DataOptions) -> str:
    """Describe the required content of the dataset folder."""
    content = CONTENTS[data.format]
    if data.format == "coco":
        content = f"{data.train_annotations}, {data.val_annotations} and {data.images}/"
    return f"{content} in {data.format.upper()} format"


def read_split(data: DataOptions, name: str) -> CocoSplit:
    """Read one split.

    Args:
        data: The `data` block of the config.
        name: `train`, `val` or `test`.

    Raises:
        DataError: If the config names no such split or anything in its file is wrong.
    """
    split = to_split(read_raw_split(data, name))
    check_images(split, PixelFormat(channels=data.channels, scaling=data.scaling))
    logger.info(
        "%s: %d images (%d without boxes), %d boxes, %d classes",
        name,
        len(split),
        split.num_empty,
        len(split.boxes_xywh),
        len(split.class_names),
    )
    if split.num_overhanging:
        logger.warning(
            "%s: %d boxes reach beyond their image; training and predictions clip them, metrics use the "
            "boxes of the file",
            name,
            split.num_overhanging,
        )
    return split


def read_raw_split(data: DataOptions, name: str) -> RawSplit:
    """Read one split without validating it.

    Args:
        data: The `data` block of the config.
        name: `train`, `val` or `test`.

    Raises:
        DataError: If the config names no such split, or its files cannot be read at all.
    """
    root = Path(data.root)
    if data.format != "coco":
        return read_raw(root, data.format, name)
    files = {"train": data.train_annotations, "val": data.val_annotations, "test": data.test_annotations}
    file = files.get(name)
    if file is None:
        named = [split for split, path in files.items() if path is not None]
        raise DataError(f"split {name!r}: the dataset has none. Choose one of {', '.join(named)}.")
    return read_raw_coco(root / file, root / data.images)


def build_splits(data: DataOptions) -> Splits:
    """Read the training and validation data.

    Raises:
        DataError: If a file is wrong, or validation has a class that training lacks.
    """
    prepare_root(data)
    train, val = read_split(data, "train"), read_split(data, "val")
    match_classes(val, train.class_names, trained_on=train.annotations_path.name)
    return Splits(train=train, val=val)
