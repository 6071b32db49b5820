"""Reading COCO annotation files, and refusing what is wrong in them."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from deim.data.formats.issues import Issue
from deim.errors import DataError
from deim.files import raise_listed

SPLITS = ("train", "val", "test")
"""Usual names of the splits, in the order in which they are listed."""
REQUIRED: Final = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    return _is_whole(value) and -(2**63) <= cast(int, value) < 2**63


def _is_side(value: object) -> bool:
    return _is_whole(value) and 0 < cast(int, value) < 2**31


def _is_number(value: object) -> bool:
    """Whether it is a finite number; a whole number may be too large to be one."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


TYPES: Final = {
    "id": (_is_id, "a whole number of at most 63 bits"),
    "image_id": (_is_id, "a whole number of at most 63 bits"),
    "category_id": (_is_id, "a whole number of at most 63 bits"),
    "file_name": (lambda value: isinstance(value, str), "text"),
    "name": (lambda value: isinstance(value, str) and value.strip() != "", "text that is not empty"),
    "width": (_is_side, "a whole number of pixels above 0"),
    "height": (_is_side, "a whole number of pixels above 0"),
    "area": (lambda value: value is None or (_is_number(value) and value >= 0), "a number from 0, or null"),
    "iscrowd": (lambda value: value in (0, 1), "0 or 1"),
}
"""Test and description of each field's values, where the field is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSplit:
    """What the files of a split say before any of it is trusted, whatever their format."""

    name: str
    """Such as `train`."""
    annotations_path: Path
    """The file that lists the images; messages name it."""
    image_dir: Path
    """Folder that the file names are relative to."""
    images: Sequence[Mapping[str, Any]]
    """Entries as in a COCO file, with `id`, `file_name`, `width` and `height`."""
    annotations: Sequence[Mapping[str, Any]]
    """Entries as in a COCO file, with `image_id`, `category_id` and `bbox`."""
    categories: Sequence[Mapping[str, Any]]
    """Entries as in a COCO file, with `id` and `name`."""
    issues: tuple[Issue, ...] = ()
    """What could not be read; it is not among the entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """One annotation file. I counts images, A annotations; annotations are sorted by image."""

    name: str
    """Such as `train`."""
    annotations_path: Path
    image_dir: Path
    image_ids: NDArray[np.int64]
    """(I,) ids as in the file."""
    file_names: tuple[str, ...]
    """I names, relative to `image_dir`."""
    sizes_hw: NDArray[np.int64]
    """(I, 2) height and width in pixels."""
    category_ids: tuple[int, ...]
    """C ids as in the file, ascending."""
    class_names: tuple[str, ...]
    """C names, in the order of `category_ids`."""
    first_box: NDArray[np.int64]
    """(I + 1,) image i owns the annotations first_box[i] to first_box[i + 1] - 1."""
    boxes_xywh: NDArray[np.float64]
    """(A, 4) pixels, as in the file."""
    box_category_ids: NDArray[np.int64]
    """(A,) ids as in the file."""
    areas: NDArray[np.float64]
    """(A,) area as in the file, or width · height where it gives none, in square pixels."""
    is_crowd: NDArray[np.bool_]
    """(A,) true for regions of many objects: never trained on, ignored in evaluation."""

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def num_empty(self) -> int:
        """Images without a box."""
        return int((np.diff(self.first_box) == 0).sum())

    @property
    def num_overhanging(self) -> int:
        """Boxes that reach beyond their image by more than a pixel."""
        sizes_wh = np.repeat(self.sizes_hw, np.diff(self.first_box), axis=0)[:, ::-1]
        low, high = self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]
        return int(((low < -1) | (high > sizes_wh + 1)).any(axis=1).sum())

    def image_path(self, index: int) -> Path:
        """Path of the image at a position."""
        return self.image_dir / self.file_names[index]

    def annotations_sha256(self) -> str:
        """SHA-256 of the COCO file; of formats with a file an image, of all that was read from them.

        Raises:
            OSError: If the COCO file cannot be read.
        """
        if self.annotations_path.suffix == ".json":
            return hashlib.sha256(self.annotations_path.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(self.to_coco()).encode("utf-8")).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 of all annotations and of the images' names and lengths in bytes; the folder may move."""
        lengths = [self.image_path(index).stat().st_size for index in range(len(self))]
        content = json.dumps([self.to_coco(), lengths])
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    def to_coco(self) -> dict[str, Any]:
        """The split as a COCO dictionary, for the metrics."""
        images = [
            {"id": int(image_id), "file_name": name, "height": int(height), "width": int(width)}
            for image_id, name, (height, width) in zip(
                self.image_ids, self.file_names, self.sizes_hw, strict=True
            )
        ]
        owner = np.repeat(self.image_ids, np.diff(self.first_box))
        annotations = [
            {
                "id": number + 1,
                "image_id": int(owner[number]),
                "category_id": int(self.box_category_ids[number]),
                "bbox": self.boxes_xywh[number].tolist(),
                "area": float(self.areas[number]),
                "iscrowd": int(self.is_crowd[number]),
            }
            for number in range(len(self.boxes_xywh))
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_coco(annotations_path: Path, image_dir: Path) -> CocoSplit:
    """Read and check an annotation file.

    Args:
        annotations_path: COCO JSON with `images`, `annotations` and `categories`.
        image_dir: Folder that the file names are relative to.

    Returns:
        The split; images keep the order of the file.

    Raises:
        DataError: If the file cannot be read, is not COCO, or anything in it is wrong: images that are listed
            but absent, unknown ids, duplicate ids, boxes without area or outside their image. All problems
            are listed, up to 20 of them.
    """
    return to_split(read_raw_coco(annotations_path, image_dir))


def read_raw_coco(annotations_path: Path, image_dir: Path) -> RawSplit:
    """Read an annotation file, whatever boxes, ids and images it names.

    Args:
        annotations_path: COCO JSON with `images`, `annotations` and `categories`.
        image_dir: Folder that the file names are relative to.

    Raises:
        DataError: If the file cannot be read or is not COCO.
    """
    tree = _read_json(annotations_path)
    return RawSplit(
        name=annotations_path.stem,
        annotations_path=annotations_path,
        image_dir=image_dir,
        images=tree["images"],
        annotations=tree["annotations"],
        categories=tree["categories"],
    )


def to_split(raw: RawSplit) -> CocoSplit:
    """Turn what was read into arrays.

    Raises:
        DataError: If `find_problems` finds any; the first 20 are listed.
    """
    raise_listed([issue.message for issue in find_problems(raw)])
    return _to_arrays(raw)


def find_problems(raw: RawSplit) -> list[Issue]:
    """Everything for which a split is refused, but the insides of its images.

    Args:
        raw: What its files say.
    """
    where = raw.annotations_path.name
    problems = [
        *raw.issues,
        *_duplicates(raw, "image id", [image["id"] for image in raw.images]),
        *_duplicates(raw, "category id", [category["id"] for category in raw.categories]),
        *_duplicates(raw, "category name", [category["name"] for category in raw.categories]),
        *_absent_images(raw),
        *_annotation_problems(raw),
    ]
    if not raw.images:
        message = f"{where}: 'images' is empty. A split needs at least one image."
        problems.append(Issue(rule="empty_list", split=raw.name, file=where, message=message))
    if not raw.categories:
        message = f"{where}: 'categories' is empty. List every class with an id and a name."
        problems.append(Issue(rule="empty_list", split=raw.name, file=where, message=message))
    return problems


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such annotation file. Set data.root to the dataset's folder, or name the file "
            f"with data.train_annotations, data.val_annotations or data.test_annotations."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}).") from None
    if not isinstance(tree, dict) or any(not isinstance(tree.get(key), list) for key in REQUIRED):
        found = ", ".join(tree) if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise DataError(
            f"{path}: not a COCO file, got {found}. It needs the lists 'images', "
            f"'annotations' and 'categories'."
        )
    for key, names in REQUIRED.items():
        for number, entry in enumerate(tree[key]):
            absent = [name for name in names if not isinstance(entry, dict) or name not in entry]
            if absent:
                lacks = ", ".join(map(repr, absent))
                raise DataError(f"{path}: not a COCO file: entry {number} of '{key}' lacks {lacks}.")
    raise_listed([*_wrong_types(path.name, "images", tree), *_wrong_types(path.name, "categories", tree)])
    raise_listed(_wrong_types(path.name, "annotations", tree))
    return tree


def _wrong_types(where: str, key: str, tree: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}: entry {number} of '{key}' has {name} {entry[name]!r}. It must be {TYPES[name][1]}."
        for number, entry in enumerate(tree[key])
        for name in TYPES
        if name in entry and not TYPES[name][0](entry[name])
    ]


def _duplicates(raw: RawSplit, what: str, values: Sequence[object]) -> list[Issue]:
    where = raw.annotations_path.name
    return [
        Issue(
            rule="repeated_id",
            split=raw.name,
            file=where,
            message=f"{where}: {what} {value!r} is used {count} times. Each must be unique.",
        )
        for value, count in Counter(values).items()
        if count > 1
    ]


def _absent_images(raw: RawSplit) -> list[Issue]:
    where, image_dir = raw.annotations_path.name, raw.image_dir
    if not image_dir.is_dir():
        message = f"{where}: the image folder {image_dir} does not exist. Set data.images to the right one."
        return [Issue(rule="missing_image", split=raw.name, file=str(image_dir), message=message)]
    with os.scandir(image_dir) as entries:
        present = {entry.name for entry in entries if entry.is_file()}
    return [
        Issue(
            rule="missing_image",
            split=raw.name,
            file=image["file_name"],
            message=f"{where}: image {image['file_name']!r} (id {image['id']}) is listed but not in "
            f"{image_dir}.",
        )
        for image in raw.images
        if image["file_name"] not in present and not (image_dir / image["file_name"]).is_file()
    ]


def _annotation_problems(raw: RawSplit) -> list[Issue]:
    where = raw.annotations_path.name
    by_id = {image["id"]: image for image in raw.images}
    known = {category["id"] for category in raw.categories}
    problems = []
    for number, annotation in enumerate(raw.annotations):
        name = annotation_name(annotation, number)
        image = by_id.get(annotation["image_id"])
        file = where if image is None else image["file_name"]
        what = f"annotation {name}" if image is None else f"annotation {name} (image {file!r})"
        problems += [
            Issue(
                rule=rule,
                split=raw.name,
                file=file,
                annotation=name,
                message=f"{where}: {what} {problem}",
            )
            for rule, problem in annotation_problems(annotation, image, known)
        ]
    return problems


def annotation_problems(
    annotation: Mapping[str, Any], image: Mapping[str, Any] | None, known: Collection[int]
) -> list[tuple[str, str]]:
    """Rule and description of everything for which an annotation is refused.

    Args:
        annotation: Entry as in a COCO file.
        image: Its image; None if that is not listed.
        known: Category ids that are listed.
    """
    if image is None:
        return [("unknown_image", f"belongs to image id {annotation['image_id']}, which is not in 'images'.")]
    problems = _box_problems(annotation["bbox"], image)
    if annotation["category_id"] not in known:
        unknown = (
            f"has category id {annotation['category_id']}, which is not in 'categories': {sorted(known)}."
        )
        problems.insert(0, ("unknown_category", unknown))
    return problems


def annotation_name(annotation: Mapping[str, Any], number: int) -> str:
    """How messages name an annotation: by its id, or by its place in the file, from 0, if it has none."""
    return str(annotation.get("id", f"number {number}"))


def _box_problems(bbox: Any, image: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rule and description of what is wrong with a box."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return [("bad_box", f"has bbox {bbox!r}. A box is [left, top, width, height] in pixels.")]
    left, top, width, height = (float(value) for value in bbox)
    for name, side in (("width", width), ("height", height)):
        if side <= 0:
            problem = (
                f"has {name} {side:.1f} px. Boxes need width and height > 0. "
                f"Correct the box, or remove the annotation."
            )
            return [("negative_box" if side < 0 else "zero_box", problem)]
    if left >= image["width"] or top >= image["height"] or left + width <= 0 or top + height <= 0:
        problem = (
            f"lies outside its image: box {bbox}, image {image['width']}x{image['height']} px. "
            f"Correct the box, or remove the annotation."
        )
        return [("outside_box", problem)]
    return []


def _to_arrays(raw: RawSplit) -> CocoSplit:
    images, annotations = raw.images, raw.annotations
    position = {image["id"]: index for index, image in enumerate(images)}
    ordered = sorted(annotations, key=lambda annotation: position[annotation["image_id"]])
    counts = Counter(position[annotation["image_id"]] for annotation in annotations)
    boxes = np.array([annotation["bbox"] for annotation in ordered], dtype=np.float64).reshape(-1, 4)
    areas = [
        box[2] * box[3] if annotation.get("area") is None else annotation["area"]
        for annotation, box in zip(ordered, boxes, strict=True)
    ]
    classes = sorted((int(category["id"]), str(category["name"])) for category in raw.categories)
    return CocoSplit(
        name=raw.name,
        annotations_path=raw.annotations_path,
        image_dir=raw.image_dir,
        image_ids=np.array([image["id"] for image in images], dtype=np.int64),
        file_names=tuple(str(image["file_name"]) for image in images),
        sizes_hw=np.array([(image["height"], image["width"]) for image in images], dtype=np.int64),
        category_ids=tuple(category_id for category_id, _ in classes),
        class_names=tuple(name for _, name in classes),
        first_box=np.cumsum([0, *(counts[index] for index in range(len(images)))], dtype=np.int64),
        boxes_xywh=boxes,
        box_category_ids=np.array([a["category_id"] for a in ordered], dtype=np.int64),
        areas=np.array(areas, dtype=np.float64),
        is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in ordered], dtype=np.bool_),
    )


def match_classes(split: CocoSplit, class_names: Sequence[str], *, trained_on: str) -> dict[int, int]:
    """Map a split's category ids to class indices, by name.

    Args:
        split: Any split.
        class_names: Names of the detector's classes, in the order of their indices.
        trained_on: Where these names come from, for the message.

    Returns:
        Class index of each category id of the split.

    Raises:
        DataError: If the split lists a class that is not among `class_names`.
    """
    index = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in split.class_names if name not in index]
    raise_listed(
        [
            f"{split.annotations_path.name}: class {name!r} is not known to {trained_on}, which has "
            f"{', '.join(class_names)}. Classes are matched by name: rename it, remove it, or train with it."
            for name in unknown
        ]
    )
    return {
        category_id: index[name]
        for category_id, name in zip(split.category_ids, split.class_names, strict=True)
    }
