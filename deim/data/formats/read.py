"""Detection of a dataset's format, and reading of any format to the same arrays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deim.data.formats.check_images import check_images
from deim.data.formats.coco import SPLITS, CocoSplit, RawSplit, read_raw_coco, to_split
from deim.data.formats.names import CONTENTS, Format
from deim.data.formats.voc import is_voc, read_raw_voc, voc_splits
from deim.data.formats.yolo import find_yolo, read_raw_yolo, read_yolo_set
from deim.errors import DataError
from deim.files import raise_listed

EXPORTED_NAME = "_annotations.coco.json"


def detect_format(root: Path) -> Format:
    """Detect the format of a dataset by its files.

    Args:
        root: Folder, or a `data.yaml`.

    Raises:
        DataError: If there is no such folder, or it fits no format or several.
    """
    if not root.exists():
        raise DataError(f"{root}: no such folder (looked in {Path.cwd()}). Name the folder of a dataset.")
    formats: list[Format] = []
    if find_yolo(root) is not None:
        formats.append("yolo")
    if root.is_dir() and is_voc(root):
        formats.append("voc")
    if root.is_dir() and coco_files(root):
        formats.append("coco")
    if len(formats) == 1:
        return formats[0]
    what = f"looks like {' and '.join(formats)}" if formats else "no dataset there"
    known = ", ".join(f"{name.upper()} has {content}" for name, content in CONTENTS.items())
    raise DataError(f"{root}: {what}. {known}. Name the folder of one dataset, or its format with --format.")


def coco_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return annotation file and image folder of each split of a COCO folder, train, val and test first.

    The files are `annotations/*.json`, or `*.json` beside the images, or `<split>/_annotations.coco.json`.
    """
    annotations = {path.stem: path for path in sorted((root / "annotations").glob("*.json"))}
    annotations = annotations or {path.stem: path for path in sorted(root.glob("*.json")) if _is_coco(path)}
    if annotations:
        images = root / "images"
        files = {name: (path, images if images.is_dir() else root) for name, path in annotations.items()}
    else:
        files = {
            "val" if path.parent.name == "valid" else path.parent.name: (path, path.parent)
            for path in sorted(root.glob(f"*/{EXPORTED_NAME}"))
        }
    order = {name: place for place, name in enumerate(SPLITS)}
    return dict(sorted(files.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def split_names(root: Path, data_format: Format) -> tuple[str, ...]:
    """Return the names of the splits of a dataset.

    Raises:
        DataError: If it has none, or its description is wrong.
    """
    match data_format:
        case "yolo":
            return tuple(read_yolo_set(root).splits)
        case "voc":
            if not is_voc(root):
                raise DataError(f"{root}: no VOC dataset there. It needs {CONTENTS['voc']}.")
            return voc_splits(root)
        case "coco":
            names = tuple(coco_files(root))
            if not names:
                raise DataError(
                    f"{root}: no COCO dataset there. It needs annotations/train.json and images/."
                )
            return names


def read_raw(root: Path, data_format: Format, split: str) -> RawSplit:
    """Read one split without validating it.

    Raises:
        DataError: If there is no such split, or its files cannot be read at all.
    """
    match data_format:
        case "yolo":
            return read_raw_yolo(root, split)
        case "voc":
            return read_raw_voc(root, split)
        case "coco":
            files = coco_files(root)
            if split not in files:
                raise DataError(f"split {split!r}: {root} has none. Choose one of {', '.join(files)}.")
            return replace(read_raw_coco(*files[split]), name=split)


def read_all(root: Path, data_format: Format) -> dict[str, RawSplit]:
    """Read all splits of a dataset without validating them.

    Raises:
        DataError: If the files of a split cannot be read at all.
    """
    return {name: read_raw(root, data_format, name) for name in split_names(root, data_format)}


def to_splits(raws: Mapping[str, RawSplit]) -> dict[str, CocoSplit]:
    """Turn the splits of a dataset into arrays; images may have any depth and channels.

    Raises:
        DataError: If any split is invalid, an image has another size than listed, or classes differ.
    """
    splits = {name: to_split(raw) for name, raw in raws.items()}
    for split in splits.values():
        check_images(split, pixels=None)
    first = next(iter(splits.values()))
    raise_listed(
        [
            f"{split.annotations_path.name}: the classes are {_classes(split)}, in "
            f"{first.annotations_path.name} they are {_classes(first)}. Give all splits the same list."
            for split in splits.values()
            if _classes(split) != _classes(first)
        ]
    )
    return splits


def _classes(split: CocoSplit) -> dict[int, str]:
    return dict(zip(split.category_ids, split.class_names, strict=True))


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        # A file with the name of a split is a damaged annotation file.
        return path.stem in SPLITS
    return isinstance(content, dict) and "images" in content
