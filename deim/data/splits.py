"""The splits that a config names: made if they are synthetic, read, checked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deim.config.schema import Config
from deim.curation.check import CheckReport, check_dataset
from deim.data.dataset import check_images
from deim.data.formats.coco import CocoSplit, RawSplit, match_classes, read_raw_coco, to_split
from deim.data.formats.read import read_raw
from deim.data.loader import pixel_format
from deim.data.options import DataOptions
from deim.data.synthetic.make import make_synthetic_dataset
from deim.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Training and validation data with matching classes."""

    train: CocoSplit
    val: CocoSplit


def prepare_root(config: DataOptions) -> None:
    """Make the synthetic set if the config asks for one and nothing is there.

    Raises:
        DataError: If the dataset folder does not exist and the config makes none.
    """
    root = Path(config.root)
    if root.is_dir() and (config.synthetic is None or any(root.iterdir())):
        return
    if config.synthetic is None:
        raise DataError(
            f"data.root: there is no folder {str(root)!r} (looked in {Path.cwd()}). It must hold "
            f"{_contents(config)}. "
            f"Name your dataset with --set data.root=FOLDER, or make a synthetic one with "
            f"python tools/make_synthetic.py --root {root}"
        )
    made = config.synthetic
    logger.info("making the synthetic defect set in %s", root)
    make_synthetic_dataset(
        root,
        train_images=made.train_images,
        val_images=made.val_images,
        test_images=made.test_images,
        max_size_wh=made.max_size_wh,
        seed=made.seed,
    )


def _contents(config: DataOptions) -> str:
    """What the dataset's folder must hold."""
    match config.format:
        case "coco":
            files = f"{config.train_annotations}, {config.val_annotations} and {config.images}/"
            return f"{files} in COCO format"
        case "yolo":
            return "a data.yaml in YOLO format"
        case "voc":
            return "JPEGImages/, Annotations/ and ImageSets/Main/ in Pascal VOC format"


def read_split(config: DataOptions, name: str) -> CocoSplit:
    """Read one split.

    Args:
        config: The `data` block.
        name: `train`, `val` or `test`.

    Raises:
        DataError: If the config names no such split or anything in its file is wrong.
    """
    split = to_split(read_raw_split(config, name))
    check_images(split, pixel_format(config))
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
            "%s: %d boxes reach beyond their image; training and predictions are clipped to it, the scores "
            "count the boxes as they are in the file",
            name,
            split.num_overhanging,
        )
    return split


def read_raw_split(config: DataOptions, name: str) -> RawSplit:
    """Read one split without judging it.

    Args:
        config: The `data` block.
        name: `train`, `val` or `test`.

    Raises:
        DataError: If the config names no such split, or its files cannot be read at all.
    """
    root = Path(config.root)
    if config.format != "coco":
        return read_raw(root, config.format, name)
    files = {
        "train": config.train_annotations,
        "val": config.val_annotations,
        "test": config.test_annotations,
    }
    file = files.get(name)
    if file is None:
        named = [split for split, path in files.items() if path is not None]
        raise DataError(f"split {name!r}: the dataset has none. Choose one of {', '.join(named)}.")
    return read_raw_coco(root / file, root / config.images)


def check_before_run(config: Config, names: Sequence[str] = ("train", "val")) -> CheckReport:
    """Check the splits of a run in seconds: headers of images, boxes, classes, files that are there twice.

    Nothing is decoded, so damage inside an image and images that were saved again are not found:
    `tools/data.py check` finds them.

    Args:
        config: The experiment.
        names: Splits that it uses.

    Returns:
        The issues; `raise_errors` refuses the data if there are errors.

    Raises:
        DataError: If a split's files cannot be read at all.
    """
    data = config.data
    prepare_root(data)
    if data.format == "coco" and data.train_annotations == data.val_annotations and "val" in names:
        logger.warning("data.val_annotations: validation is on the training images; its scores say nothing")
        names = [name for name in names if name != "val"]
    raws = {name: replace(read_raw_split(data, name), name=name) for name in names}
    report = check_dataset(
        raws,
        input_size_hw=config.image_size_hw,
        resize=data.resize,
        tile_size=None if data.tiles is None else data.tiles.size,
        full=False,
    )
    # An image that these splits do not list may be one of the test split.
    found = tuple(issue for issue in report.issues if issue.rule != "unlisted_image")
    return replace(report, issues=found)


def build_splits(config: DataOptions) -> Splits:
    """Read the training and validation data.

    Raises:
        DataError: If a file is wrong, or validation has a class that training lacks.
    """
    prepare_root(config)
    train, val = read_split(config, "train"), read_split(config, "val")
    match_classes(val, train.class_names, trained_on=train.annotations_path.name)
    return Splits(train=train, val=val)
