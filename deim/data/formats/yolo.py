"""YOLO datasets: `data.yaml`, folders of images, and a text file of boxes for each image.

A line of a text file is `class center-x center-y width height`: the position of the class in `names`, from 0,
and fractions of the image. A line with an outline (`class x1 y1 x2 y2 …`, at least three points) stands for
the box around it. The additional key `category_ids` of `data.yaml` holds the ids of a COCO file, in the order
of `names`; without it the id of a class is its position in `names`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from deim.data.formats.coco import SPLITS, CocoSplit, Entry, RawSplit
from deim.data.formats.issues import IssueLog
from deim.data.formats.text import read_text
from deim.data.images.read import IMAGE_SUFFIXES, read_size
from deim.errors import DataError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES_NAME = "classes.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloSet:
    """Description of a dataset, by its `data.yaml` or else by its folders."""

    path: Path
    """`data.yaml`, or `classes.txt` where there is none."""
    root: Path
    """Folder to which the splits are relative."""
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Id of each name."""
    splits: Mapping[str, tuple[str, ...]]
    """Folders of images, or text files that list images, of each split, as given."""
    has_keypoints: bool = False
    """Whether keypoints follow the box in a line."""


def find_yolo(root: Path) -> Path | None:
    """Return the file that describes a YOLO dataset: `root`, its `data.yaml` or `classes.txt`; or None."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml") else None
    for path in (root / name for name in YAML_NAMES):
        if path.is_file():
            return path
    classes = root / CLASSES_NAME
    return classes if classes.is_file() and (root / "labels").is_dir() else None


def read_yolo_set(root: Path) -> YoloSet:
    """Read the description of a dataset.

    Args:
        root: Folder of the dataset, or its `data.yaml`. A folder without one needs `classes.txt` with a name
            per line, `images/` and `labels/`; its splits are the folders train, val (or valid) and test in
            `images/`.

    Raises:
        DataError: If there is no description or it is wrong.
    """
    path = find_yolo(root)
    if path is None:
        raise DataError(
            f"{root}: no YOLO dataset there. It needs a data.yaml with 'names', 'train' and 'val', or "
            f"{CLASSES_NAME} beside images/ and labels/."
        )
    if path.name == CLASSES_NAME:
        names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
        folders = {"train": "train", "val": "val", "valid": "val", "test": "test"}
        present = [folder for folder in folders if (root / "images" / folder).is_dir()]
        splits: dict[str, tuple[str, ...]]
        splits = {folders[folder]: (f"images/{folder}",) for folder in present} or {"train": ("images",)}
        ids = tuple(range(len(names)))
        return YoloSet(path=path, root=root, names=names, category_ids=ids, splits=splits)
    content = _read_yaml(path)
    names = _read_names(path, content)
    entries = {**content, "val": content.get("val") or content.get("valid")}
    splits = {name: _as_texts(entries[name]) for name in SPLITS if entries.get(name)}
    if not splits:
        raise DataError(
            f"{path}: names no split. Give the folders of the images as 'train', 'val' and 'test'."
        )
    return YoloSet(
        path=path,
        root=_base_folder(path, content),
        names=names,
        category_ids=_read_ids(path, content, names),
        splits=splits,
        has_keypoints="kpt_shape" in content,
    )


def read_raw_yolo(root: Path, split: str) -> RawSplit:
    """Read a split without validating its boxes; sizes come from the images.

    Args:
        root: Folder of the dataset, or its `data.yaml`.
        split: `train`, `val` or `test`.

    Returns:
        The split, images in the order of their names, or of their list. Ids of images are 1, 2, 3, …; the id
        of an annotation is its file and line.

    Raises:
        DataError: If the description is wrong or has no such split.
    """
    dataset = read_yolo_set(root)
    if split not in dataset.splits:
        raise DataError(
            f"split {split!r}: {dataset.path} names none. Choose one of {', '.join(dataset.splits)}."
        )
    places = _find_places(dataset, split)
    image_dir = places[0] if len(places) == 1 and places[0].is_dir() else dataset.root
    images: list[Entry] = []
    annotations: list[Entry] = []
    log = IssueLog(split=split)
    paths = _image_paths(places)
    label_paths: set[Path] = set()
    for number, path in enumerate(paths, start=1):
        name, labels = _relative(path, image_dir), label_path(path)
        if labels in label_paths:
            text = _relative(labels, dataset.root)
            message = (
                f"{name}: its boxes are in {text}, which belongs to another image. Rename or remove one."
            )
            log.add("repeated_id", name, message)
        label_paths.add(labels)
        try:
            height, width = read_size(path)
        except DataError as error:
            log.add("corrupt_image" if path.is_file() else "missing_image", name, str(error))
            continue
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes = _read_labels(labels, dataset, (height, width), log)
        annotations += [{**box, "image_id": number} for box in boxes]
    if paths and not any(path.is_file() for path in label_paths):
        example = _relative(label_path(paths[0]), dataset.root)
        message = (
            f"{dataset.path.name}: none of the {len(paths)} images of {split} has a text file of boxes, "
            f"such as {example}. Put the files there; if no image has a box, one empty file is enough."
        )
        log.add("unreadable", example, message)
    _find_labels_without_image(places, label_paths, dataset.root, log)
    pairs = zip(dataset.category_ids, dataset.names, strict=True)
    return RawSplit(
        name=split,
        annotations_path=dataset.path,
        image_dir=image_dir,
        images=images,
        annotations=annotations,
        categories=[{"id": category_id, "name": name} for category_id, name in pairs],
        issues=tuple(log.issues),
    )


def label_path(image: Path) -> Path:
    """Return the file of the boxes of an image: its path with `labels` for the last `images`, as `.txt`."""
    names = list(image.parts)
    for place in range(len(names) - 2, -1, -1):
        if names[place] == "images":
            names[place] = "labels"
            break
    return Path(*names).with_suffix(".txt")


def write_yolo(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write labels and `data.yaml`; the caller writes the images.

    Args:
        splits: Splits with the same classes, by name.
        names: New name of each image of each split, relative to its image folder.
        root: Existing folder.

    Raises:
        DataError: If there are crowd regions, which the format cannot represent.
    """
    for name, split in splits.items():
        if split.is_crowd.any():
            raise DataError(
                f"{split.annotations_path.name}: {int(split.is_crowd.sum())} annotations have iscrowd 1, "
                f"which YOLO cannot represent. Convert to VOC or COCO, or remove these annotations."
            )
        index = {category_id: number for number, category_id in enumerate(split.category_ids)}
        for image, new_name in enumerate(names[name]):
            height, width = split.sizes_hw[image].tolist()
            lines = []
            for row in range(split.first_box[image], split.first_box[image + 1]):
                left, top, box_width, box_height = split.boxes_xywh[row].tolist()
                center_x, center_y = (left + box_width / 2) / width, (top + box_height / 2) / height
                numbers = (center_x, center_y, box_width / width, box_height / height)
                values = " ".join(f"{number:.12g}" for number in numbers)
                lines.append(f"{index[int(split.box_category_ids[row])]} {values}\n")
            path = label_path(root / "images" / name / new_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
    first = next(iter(splits.values()))
    content = {
        "path": ".",
        **{name: f"images/{name}" for name in splits},
        "names": dict(enumerate(first.class_names)),
        "category_ids": list(first.category_ids),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _read_yaml(path: Path) -> Entry:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict) or "names" not in content:
        kind = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path}: not a YOLO description, got {kind}. It needs 'names', 'train' and 'val'.")
    return content


def _read_names(path: Path, content: Entry) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names.get(number, names.get(str(number))) for number in range(len(names))]
    if not isinstance(names, list) or any(isinstance(name, (bool, dict, list, type(None))) for name in names):
        raise DataError(
            f"{path}: names: got {content['names']!r}. It must be a list of names, or number them from 0 "
            f"without a gap."
        )
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: nc: got {count!r}, 'names' has {len(names)} names. Make them agree.")
    return tuple(map(str, names))


def _read_ids(path: Path, content: Entry, names: Sequence[str]) -> tuple[int, ...]:
    ids = content.get("category_ids", list(range(len(names))))
    if not isinstance(ids, list) or len(ids) != len(names) or any(type(number) is not int for number in ids):
        raise DataError(f"{path}: category_ids: got {ids!r}. It must have one whole number for each name.")
    return tuple(ids)


def _base_folder(path: Path, content: Entry) -> Path:
    """Return the folder to which the splits are relative: that of `path:`, if it exists, or of the file."""
    given = content.get("path")
    base = path.parent / str(given) if given else path.parent
    return base if base.is_dir() else path.parent


def _as_texts(entry: object) -> tuple[str, ...]:
    return tuple(map(str, entry if isinstance(entry, list) else [entry]))


def _find_places(dataset: YoloSet, split: str) -> tuple[Path, ...]:
    places = []
    for text in dataset.splits[split]:
        # Some exports write `../train/images` for the folder train/images beside the file.
        options = [dataset.root / text, dataset.root / text.removeprefix("../")]
        place = next((option for option in options if option.exists()), None)
        if place is None:
            raise DataError(
                f"{dataset.path}: {split}: there is no {dataset.root / text}. Name a folder of images, "
                f"or a text file that lists them; or remove the line if there is no such split."
            )
        places.append(place)
    return tuple(places)


def _image_paths(places: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for place in places:
        if place.is_dir():
            images = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            paths += sorted(images, key=lambda path: path.relative_to(place).as_posix())
        else:
            lines = (line.strip() for line in read_text(place).splitlines())
            paths += [place.parent / line for line in lines if line]
    return paths


def _read_labels(path: Path, dataset: YoloSet, size_hw: tuple[int, int], log: IssueLog) -> list[Entry]:
    """Return the annotations of an image without its id; lines that are not valid become issues."""
    if not path.is_file():
        return []
    name = _relative(path, dataset.root)
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        log.add("unreadable", name, str(error))
        return []
    boxes: list[Entry] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        annotation = f"{name}:{number}"
        try:
            category, *values = map(float, line.split())
        except ValueError:
            category, values = math.nan, []
        if dataset.has_keypoints:
            values = values[:4]
        is_box, is_outline = len(values) == 4, len(values) >= 6 and len(values) % 2 == 0
        if not (is_box or is_outline) or not category.is_integer() or not np.isfinite(values).all():
            message = (
                f"{name}: line {number} is no box, got {line.strip()[:60]!r}. A line is class, center x, "
                f"center y, width and height, the last four as fractions of the image."
            )
            log.add("unreadable", name, message, annotation=annotation)
        elif not 0 <= category < len(dataset.names):
            message = (
                f"{name}: line {number} has class {int(category)}, {dataset.path.name} names "
                f"{len(dataset.names)} classes, from 0. Correct the line, or name the class."
            )
            log.add("unknown_category", name, message, annotation=annotation)
        else:
            bbox = _box(values, size_hw) if is_box else _outline_box(values, size_hw)
            boxes.append({"id": annotation, "category_id": dataset.category_ids[int(category)], "bbox": bbox})
    return boxes


def _box(values: Sequence[float], size_hw: tuple[int, int]) -> list[float]:
    """Return left, top, width and height in pixels of a box given by fractions."""
    height, width = size_hw
    center_x, center_y, box_width, box_height = values
    # Rounded to a millionth of a pixel, which restores boxes of whole pixels.
    left, top = (center_x - box_width / 2) * width, (center_y - box_height / 2) * height
    return [round(value, 6) for value in (left, top, box_width * width, box_height * height)]


def _outline_box(values: Sequence[float], size_hw: tuple[int, int]) -> list[float]:
    height, width = size_hw
    xs, ys = values[0::2], values[1::2]
    left, top = min(xs) * width, min(ys) * height
    return [round(value, 6) for value in (left, top, max(xs) * width - left, max(ys) * height - top)]


def _find_labels_without_image(places: Sequence[Path], used: set[Path], root: Path, log: IssueLog) -> None:
    """Report text files of boxes that belong to no image."""
    for place in places:
        labels = label_path(place / "any").parent
        if not place.is_dir() or labels == place or not labels.is_dir():
            continue
        texts = {path for path in labels.rglob("*") if path.suffix.lower() == ".txt"}
        for path in sorted(texts - used):
            if path.name == CLASSES_NAME:
                continue  # labeling tools put the names of the classes there
            name = _relative(path, root)
            if path.with_suffix(".txt") in used:
                message = f"{name}: boxes are read from {path.stem}.txt. Rename the file."
            else:
                message = f"{name}: there is no image for these boxes in {place}. Add it, or remove the file."
            log.add("missing_image", name, message)
