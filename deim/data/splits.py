"""The splits of an experiment: generated if they are synthetic, read and validated."""

import logging
from dataclasses import dataclass
from pathlib import Path

from deim.data.formats.check_images import check_images
from deim.data.formats.names import CONTENTS
from deim.data.formats.read import (
    CocoFiles,
    CocoSet,
    Dataset,
    drop_placeholders,
    find_coco_files,
    find_dataset,
)
from deim.data.formats.split import (
    CocoSplit,
    RawSplit,
    find_untrainable,
    match_classes,
    take_crowds,
    to_split,
)
from deim.data.options import DataOptions
from deim.data.synthetic.backgrounds import hash_backgrounds
from deim.data.synthetic.make import (
    SyntheticOptions,
    make_synthetic_dataset,
    read_backgrounds_sha256,
    refuse_backgrounds_within,
)
from deim.errors import DataError
from deim.files import looked_in, raise_listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Training and validation data with matching classes."""

    train: CocoSplit
    val: CocoSplit


def prepare_root(data: DataOptions) -> None:
    """Make the synthetic set if the config asks for one and the folder is missing or empty.

    Raises:
        DataError: If the dataset folder does not exist and the config makes none, or the backgrounds of the
            synthetic set cannot be used.
    """
    root = Path(data.root)
    if data.synthetic is not None:
        refuse_backgrounds_within(root, data.synthetic)
    if root.is_dir() and (data.synthetic is None or any(root.iterdir())):
        _refuse_other_backgrounds(root, data.synthetic)
        return
    if data.synthetic is None:
        content = "; ".join(f"{name.upper()} with {files}" for name, files in CONTENTS.items())
        raise DataError(
            f"data.root: there is no folder {str(root)!r}{looked_in(root)}. It must hold a dataset: "
            f"{content}. Name your dataset with --set data.root=FOLDER, or make a synthetic one with "
            f"deim synthetic --root {root}"
        )
    logger.info("making the synthetic defect set in %s", root)
    make_synthetic_dataset(root, data.synthetic)


def _refuse_other_backgrounds(root: Path, synthetic: SyntheticOptions | None) -> None:
    """Refuse a dataset that is there already and was not made on the backgrounds that are asked for.

    A set that was made on images which are gone since is taken as it is.

    Raises:
        DataError: If it was made on others, or on none.
    """
    if synthetic is None or synthetic.backgrounds is None:
        return
    actual, asked = read_backgrounds_sha256(root), hash_backgrounds(Path(synthetic.backgrounds))
    if actual is None or asked not in (actual, None):
        raise DataError(
            f"data.synthetic.backgrounds: got {synthetic.backgrounds}, but {root} exists already and was not "
            f"made on these images. Choose another data.root, where a set is made, or set the option to null."
        )


def data_places(data: DataOptions) -> list[Path]:
    """Return the folders that the files of a dataset are read from, and that of its backgrounds."""
    root = Path(data.root)
    images = [root / data.images] if data.images else []
    made_from = data.synthetic.backgrounds if data.synthetic is not None else None
    backgrounds = [] if made_from is None else [Path(made_from)]
    return [root.parent if root.is_file() else root, *images, *backgrounds]


def open_dataset(data: DataOptions) -> Dataset:
    """Find the files of the dataset that the options name.

    Raises:
        DataError: If there is none, or its description is wrong.
    """
    root = Path(data.root)
    if data.annotation_files or data.images:
        files = {name: files.annotations for name, files in find_coco_files(root).items()}
        files |= {name: root / file for name, file in data.annotation_files.items()}
        folders = [root / data.images] if data.images else [root / "images", root]
        folders = [folder for folder in folders if folder.is_dir()] or folders[:1]
        return CocoSet(
            root=root,
            files={name: CocoFiles(annotations=path, image_dirs=folders) for name, path in files.items()},
            allow_outside=data.allow_outside,
        )
    data_format = None if data.format == "auto" else data.format
    return find_dataset(root, data_format, allow_outside=data.allow_outside)


def read_split(data: DataOptions, name: str) -> CocoSplit:
    """Read the split `train`, `val` or `test`.

    Raises:
        DataError: If there is no such split or anything in its files is wrong.
    """
    raw = read_raw_split(data, name)
    split = to_split(raw)
    check_images(split, data.pixels)
    logger.info("%s: %s, %d classes", name, split.count_boxes().describe(), len(split.class_names))
    for note in raw.notes:
        logger.info("%s: %s", name, note)
    if split.num_overhanging:
        logger.warning(
            "%s: %d boxes reach beyond their image; training and predictions clip them, metrics use the "
            "boxes of the file",
            name,
            split.num_overhanging,
        )
    return split


def read_raw_split(data: DataOptions, name: str) -> RawSplit:
    """Read the split `train`, `val` or `test` without validating it.

    Raises:
        DataError: If there is no such split, or its files cannot be read at all.
    """
    dataset = open_dataset(data)
    if name not in dataset.splits and name not in dataset.absent:
        has = f"has only {', '.join(dataset.splits)}"
        raise DataError(
            f"split {name!r}: {data.root} {has}. To divide a dataset into train, val and test: deim data "
            f"split {data.root} --output {data.root}_split"
        )
    raw = drop_placeholders({name: dataset.read(name)})[name]
    return take_crowds(raw) if data.crowd_as_objects else raw


def build_splits(data: DataOptions) -> Splits:
    """Read the training and validation data.

    Raises:
        DataError: If a file is wrong, a split has no box to train on, or validation has a class that training
            lacks.
    """
    prepare_root(data)
    train, val = read_split(data, "train"), read_split(data, "val")
    raise_listed(
        [message for split in (train, val) for message in find_untrainable(split.name, split.count_boxes())]
    )
    match_classes(val, train.class_names, trained_on=train.annotations_path.name)
    return Splits(train=train, val=val)
