"""Reading and writing YOLO datasets: `data.yaml`, folders of images, and a text file of boxes for each image.

A line of a text file is `class center-x center-y width height`, the class as its 0-based place in `names` and
the rest as fractions of the image. A line with an outline (`class x1 y1 x2 y2 …`, at least three points)
stands for the box around it. The extra key `category_ids` of `data.yaml` holds the ids of a COCO file, in the
order of `names`; without it a class has its place in `names` for an id.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deim.data.formats.coco import SPLITS, CocoSplit, RawSplit
from deim.data.formats.issues import Issue
from deim.data.images.read import IMAGE_SUFFIXES, read_size
from deim.errors import DataError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES_NAME = "classes.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloSet:
    """What `data.yaml`, or the folders in its absence, say of a dataset."""

    path: Path
    """`data.yaml`, or `classes.txt` where there is none."""
    root: Path
    """Folder that the splits are relative to."""
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Id of each name."""
    splits: Mapping[str, tuple[str, ...]]
    """Folders of images, or text files that list images, of each split, as they are written."""
    has_keypoints: bool = False
    """Whether points follow the box in a line."""


def find_yolo(root: Path) -> Path | None:
    """The file that describes a YOLO dataset: `root` itself, its `data.yaml` or `classes.txt`, or None."""
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
        root: Its folder, or its `data.yaml`. A folder without one needs `classes.txt`, a name a line,
            `images/` and `labels/`; the splits are the folders train, val (or valid) and test in `images/`.

    Raises:
        DataError: If there is no such description or it is wrong.
    """
    path = find_yolo(root)
    if path is None:
        raise DataError(
            f"{root}: no YOLO dataset there. It needs a data.yaml with 'names', 'train' and 'val', or "
            f"{CLASSES_NAME} beside images/ and labels/."
        )
    if path.name == CLASSES_NAME:
        names = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
        folders = {"train": "train", "val": "val", "valid": "val", "test": "test"}
        splits: dict[str, tuple[str, ...]] = {
            split: (f"images/{folder}",)
            for folder, split in folders.items()
            if (root / "images" / folder).is_dir()
        }
        splits = splits or {"train": ("images",)}
        return YoloSet(
            path=path, root=root, names=names, category_ids=tuple(range(len(names))), splits=splits
        )
    tree = _read_yaml(path)
    names = _names(path, tree)
    base = _base(path, tree)
    entries = {**tree, "val": tree.get("val") or tree.get("valid")}
    splits = {name: _as_texts(entries[name]) for name in SPLITS if entries.get(name)}
    if not splits:
        raise DataError(
            f"{path}: names no split. Give the folders of the images as 'train', 'val' and 'test'."
        )
    return YoloSet(
        path=path,
        root=base,
        names=names,
        category_ids=_ids(path, tree, names),
        splits=splits,
        has_keypoints="kpt_shape" in tree,
    )


def read_raw_yolo(root: Path, split: str) -> RawSplit:
    """Read a split, whatever boxes it holds; sizes come from the images.

    Args:
        root: Folder of the dataset, or its `data.yaml`.
        split: `train`, `val` or `test`.

    Returns:
        The split, images in the order of their names, or of their list. Ids of images are 1, 2, 3, …; an
        annotation's id is its file and line.

    Raises:
        DataError: If the description is wrong or has no such split.
    """
    described = read_yolo_set(root)
    if split not in described.splits:
        raise DataError(
            f"split {split!r}: {described.path} names none. Choose one of {', '.join(described.splits)}."
        )
    places = _places(described, split)
    image_dir = places[0] if len(places) == 1 and places[0].is_dir() else described.root
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    issues: list[Issue] = []
    paths = _image_paths(places)
    label_paths: set[Path] = set()
    for number, path in enumerate(paths, start=1):
        name = _relative(path, image_dir)
        labels = label_path(path)
        if labels in label_paths:
            text = _relative(labels, described.root)
            message = (
                f"{name}: its boxes are those of {text}, which another image has already. Give each image a "
                f"name of its own, or remove one."
            )
            issues.append(Issue(rule="repeated_id", split=split, file=name, message=message))
        label_paths.add(labels)
        try:
            height, width = read_size(path)
        except DataError as error:
            rule = "corrupt_image" if path.is_file() else "missing_image"
            issues.append(Issue(rule=rule, split=split, file=name, message=str(error)))
            continue
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes, wrong = _read_labels(labels, described, (height, width), split=split)
        annotations += [{**box, "image_id": number} for box in boxes]
        issues += wrong
    if paths and not any(path.is_file() for path in label_paths):
        example = _relative(label_path(paths[0]), described.root)
        message = (
            f"{described.path.name}: none of the {len(paths)} images of {split} has a text file of boxes, "
            f"such as {example}. Put the files there; if no image has a box, one empty file is enough."
        )
        issues.append(Issue(rule="unreadable", split=split, file=example, message=message))
    issues += _without_image(places, label_paths, described.root, split)
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(described.category_ids, described.names, strict=True)
    ]
    return RawSplit(
        name=split,
        annotations_path=described.path,
        image_dir=image_dir,
        images=images,
        annotations=annotations,
        categories=categories,
        issues=tuple(issues),
    )


def label_path(image: Path) -> Path:
    """Where the boxes of an image stand: `labels` in place of the last `images` of its path, as `.txt`."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def write_yolo(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write labels and `data.yaml`; the images are put beside them by the caller.

    Args:
        splits: Of one set of classes.
        names: New name of each image of a split, relative to its folder of images.
        root: Folder that exists.

    Raises:
        DataError: If there are regions of many objects, which the format has no place for.
    """
    for name, split in splits.items():
        if split.is_crowd.any():
            raise DataError(
                f"{split.annotations_path.name}: {int(split.is_crowd.sum())} annotations have iscrowd 1, "
                f"which YOLO has no place for. Convert to VOC or COCO, or remove these annotations."
            )
        index = {category_id: number for number, category_id in enumerate(split.category_ids)}
        for image, new_name in enumerate(names[name]):
            height, width = split.sizes_hw[image].tolist()
            rows = range(split.first_box[image], split.first_box[image + 1])
            lines = []
            for row in rows:
                left, top, box_width, box_height = split.boxes_xywh[row].tolist()
                numbers = (
                    (left + box_width / 2) / width,
                    (top + box_height / 2) / height,
                    box_width / width,
                    box_height / height,
                )
                values = " ".join(f"{number:.12g}" for number in numbers)
                lines.append(f"{index[int(split.box_category_ids[row])]} {values}\n")
            path = label_path(root / "images" / name / new_name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
    first = next(iter(splits.values()))
    tree = {
        "path": ".",
        **{name: f"images/{name}" for name in splits},
        "names": dict(enumerate(first.class_names)),
        "category_ids": list(first.category_ids),
    }
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error}).") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from None
    if not isinstance(tree, dict) or "names" not in tree:
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise DataError(f"{path}: not a YOLO description, got {found}. It needs 'names', 'train' and 'val'.")
    return tree


def _names(path: Path, tree: Mapping[str, Any]) -> tuple[str, ...]:
    names = tree["names"]
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names.get(number, names.get(str(number))) for number in range(len(names))]
    if not isinstance(names, list) or any(isinstance(name, (bool, dict, list, type(None))) for name in names):
        raise DataError(
            f"{path}: names: got {tree['names']!r}. It must be a list of names, or number them from 0 "
            f"without a gap."
        )
    count = tree.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{path}: nc: got {count!r}, 'names' has {len(names)} names. Make them agree.")
    return tuple(map(str, names))


def _ids(path: Path, tree: Mapping[str, Any], names: Sequence[str]) -> tuple[int, ...]:
    ids = tree.get("category_ids", list(range(len(names))))
    if not isinstance(ids, list) or len(ids) != len(names) or any(type(number) is not int for number in ids):
        raise DataError(f"{path}: category_ids: got {ids!r}. It must have one whole number for each name.")
    return tuple(ids)


def _base(path: Path, tree: Mapping[str, Any]) -> Path:
    """Folder that the splits are relative to: `path:`, if there is such a folder, or that of the file."""
    given = tree.get("path")
    base = path.parent / str(given) if given else path.parent
    return base if base.is_dir() else path.parent


def _as_texts(entry: object) -> tuple[str, ...]:
    return tuple(map(str, entry if isinstance(entry, list) else [entry]))


def _places(described: YoloSet, split: str) -> tuple[Path, ...]:
    places = []
    for text in described.splits[split]:
        # Some exports write `../train/images` for the folder train/images beside the file.
        options = [described.root / text, described.root / text.removeprefix("../")]
        found = next((option for option in options if option.exists()), None)
        if found is None:
            raise DataError(
                f"{described.path}: {split}: there is no {described.root / text}. Name a folder of images, "
                f"or a text file that lists them; or remove the line if there is no such split."
            )
        places.append(found)
    return tuple(places)


def _image_paths(places: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for place in places:
        if place.is_dir():
            found = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            paths += sorted(found, key=lambda path: path.relative_to(place).as_posix())
        else:
            lines = (line.strip() for line in _read_text(place).splitlines())
            paths += [place.parent / line for line in lines if line]
    return paths


def _read_labels(
    path: Path, described: YoloSet, size_hw: tuple[int, int], *, split: str
) -> tuple[list[dict[str, Any]], list[Issue]]:
    """Annotations without their image id, and the lines that are none."""
    if not path.is_file():
        return [], []
    name = _relative(path, described.root)
    try:
        lines = _read_text(path).splitlines()
    except DataError as error:
        return [], [Issue(rule="unreadable", split=split, file=name, message=str(error))]
    boxes, issues = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        annotation = f"{name}:{number}"
        try:
            category, *values = map(float, line.split())
        except ValueError:
            category, values = math.nan, []
        if described.has_keypoints:
            values = values[:4]
        is_box, is_outline = len(values) == 4, len(values) >= 6 and len(values) % 2 == 0
        if not (is_box or is_outline) or not category.is_integer() or not np.isfinite(values).all():
            message = (
                f"{name}: line {number} is no box, got {line.strip()[:60]!r}. A line is class, center x, "
                f"center y, width and height, the last four as fractions of the image."
            )
            issues.append(
                Issue(rule="unreadable", split=split, file=name, annotation=annotation, message=message)
            )
            continue
        if not 0 <= category < len(described.names):
            message = (
                f"{name}: line {number} has class {int(category)}, {described.path.name} names "
                f"{len(described.names)} classes, from 0. Correct the line, or name the class."
            )
            issues.append(
                Issue(rule="unknown_category", split=split, file=name, annotation=annotation, message=message)
            )
            continue
        bbox = _box(values, size_hw) if is_box else _outline_box(values, size_hw)
        category_id = described.category_ids[int(category)]
        boxes.append({"id": annotation, "category_id": category_id, "bbox": bbox})
    return boxes, issues


def _box(values: Sequence[float], size_hw: tuple[int, int]) -> list[float]:
    """Left, top, width and height in pixels of a box given by fractions."""
    height, width = size_hw
    center_x, center_y, box_width, box_height = values
    # Rounded to a millionth of a pixel, so that a box that was whole pixels is so again.
    left, top = (center_x - box_width / 2) * width, (center_y - box_height / 2) * height
    return [round(value, 6) for value in (left, top, box_width * width, box_height * height)]


def _outline_box(values: Sequence[float], size_hw: tuple[int, int]) -> list[float]:
    height, width = size_hw
    xs, ys = values[0::2], values[1::2]
    left, top = min(xs) * width, min(ys) * height
    return [round(value, 6) for value in (left, top, max(xs) * width - left, max(ys) * height - top)]


def _without_image(places: Sequence[Path], used: set[Path], root: Path, split: str) -> list[Issue]:
    """Text files of boxes in the folders of labels that belong to no image."""
    issues = []
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
                message = f"{name}: boxes are looked for in {path.stem}.txt. Rename the file."
            else:
                message = (
                    f"{name}: there is no image for these boxes in {place}. Add the image, or remove the "
                    f"file."
                )
            issues.append(Issue(rule="missing_image", split=split, file=name, message=message))
    return issues
