"""COCO annotation files: reading, validation, and the arrays that all formats become."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deim.data.formats.issues import Issue, IssueLog
from deim.errors import DataError
from deim.files import raise_listed, sha256_of_file

Entry = Mapping[str, Any]
"""An entry, or the whole content, of an annotation file."""
SPLITS = ("train", "val", "test")
"""Usual names of the splits, in the order in which they are listed."""
REQUIRED: Final = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high


def _is_id(value: object) -> bool:
    return _is_whole(value, -(2**63), 2**63)


def _is_side(value: object) -> bool:
    return _is_whole(value, 1, 2**31)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number; a whole number may be too large to be one."""
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
"""Test and description of the values of each field, where the field is present."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSplit:
    """Content of the files of a split of any format, not validated."""

    name: str
    """Such as `train`."""
    annotations_path: Path
    """File that lists the images; named in messages."""
    image_dir: Path
    """Folder to which the file names are relative."""
    images: Sequence[Entry]
    """Entries as in a COCO file, with `id`, `file_name`, `width` and `height`."""
    annotations: Sequence[Entry]
    """Entries as in a COCO file, with `image_id`, `category_id` and `bbox`."""
    categories: Sequence[Entry]
    """Entries as in a COCO file, with `id` and `name`."""
    issues: tuple[Issue, ...] = ()
    """Problems with content that could not be read and is not among the entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSplit:
    """A valid split. I counts images, A annotations; annotations are sorted by image."""

    name: str
    """Such as `train`."""
    annotations_path: Path
    image_dir: Path
    image_ids: NDArray[np.int64]
    """(I,) image ids of the file."""
    file_names: tuple[str, ...]
    """I names, relative to `image_dir`."""
    sizes_hw: NDArray[np.int64]
    """(I, 2) height and width in pixels."""
    category_ids: tuple[int, ...]
    """C category ids of the file, ascending."""
    class_names: tuple[str, ...]
    """C names, in the order of `category_ids`."""
    first_box: NDArray[np.int64]
    """(I + 1,) image i owns the annotations first_box[i] to first_box[i + 1] - 1."""
    boxes_xywh: NDArray[np.float64]
    """(A, 4) boxes of the file, in pixels."""
    box_category_ids: NDArray[np.int64]
    """(A,) category ids of the file."""
    areas: NDArray[np.float64]
    """(A,) areas of the file in square pixels; width · height where it gives none."""
    is_crowd: NDArray[np.bool_]
    """(A,) true for regions of many objects, which are never trained on and ignored in evaluation."""

    def __len__(self) -> int:
        return len(self.file_names)

    @property
    def num_empty(self) -> int:
        """Number of images without a box."""
        return int((np.diff(self.first_box) == 0).sum())

    @property
    def num_overhanging(self) -> int:
        """Number of boxes that reach beyond their image by more than a pixel."""
        sizes_wh = np.repeat(self.sizes_hw, np.diff(self.first_box), axis=0)[:, ::-1]
        low, high = self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]
        return int(((low < -1) | (high > sizes_wh + 1)).any(axis=1).sum())

    def image_path(self, index: int) -> Path:
        """Return the path of an image by its position."""
        return self.image_dir / self.file_names[index]

    def annotations_sha256(self) -> str:
        """Return the SHA-256 of the COCO file; for formats with a file per image, of all their content.

        Raises:
            OSError: If the COCO file cannot be read.
        """
        if self.annotations_path.suffix == ".json":
            return sha256_of_file(self.annotations_path)
        return hashlib.sha256(json.dumps(self.to_coco()).encode("utf-8")).hexdigest()

    def fingerprint(self) -> str:
        """Return the SHA-256 of all annotations, image names and file lengths, whatever the folder."""
        lengths = [self.image_path(index).stat().st_size for index in range(len(self))]
        content = json.dumps([self.to_coco(), lengths])
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    def to_coco(self) -> dict[str, Any]:
        """Return the split as a COCO dictionary, for the metrics."""
        sizes, owner = self.sizes_hw.tolist(), np.repeat(self.image_ids, np.diff(self.first_box)).tolist()
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(
                self.image_ids.tolist(), self.file_names, sizes, strict=True
            )
        ]
        columns = (owner, self.box_category_ids.tolist(), self.boxes_xywh.tolist(), self.areas.tolist())
        annotations = [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": int(is_crowd),
            }
            for number, (image_id, category_id, box, area, is_crowd) in enumerate(
                zip(*columns, self.is_crowd.tolist(), strict=True), start=1
            )
        ]
        pairs = zip(self.category_ids, self.class_names, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in pairs]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_coco(annotations_path: Path, image_dir: Path) -> CocoSplit:
    """Read and validate an annotation file.

    Args:
        annotations_path: COCO JSON with `images`, `annotations` and `categories`.
        image_dir: Folder to which the file names are relative.

    Returns:
        The split; images keep the order of the file.

    Raises:
        DataError: If the file cannot be read, is not COCO, or `find_problems` finds any; up to 20 are listed.
    """
    return to_split(read_raw_coco(annotations_path, image_dir))


def read_raw_coco(annotations_path: Path, image_dir: Path) -> RawSplit:
    """Read an annotation file without validating boxes, ids and images; see `read_coco`.

    Raises:
        DataError: If the file cannot be read or is not COCO.
    """
    content = _read_json(annotations_path)
    return RawSplit(
        name=annotations_path.stem,
        annotations_path=annotations_path,
        image_dir=image_dir,
        images=content["images"],
        annotations=content["annotations"],
        categories=content["categories"],
    )


def to_split(raw: RawSplit) -> CocoSplit:
    """Turn the content of a split into arrays.

    Raises:
        DataError: If `find_problems` finds any; the first 20 are listed.
    """
    raise_listed([issue.message for issue in find_problems(raw)])
    return _to_arrays(raw)


def find_problems(raw: RawSplit) -> list[Issue]:
    """Return everything that makes a split invalid, except damage inside its images."""
    where = raw.annotations_path.name
    log = IssueLog(split=raw.name, issues=list(raw.issues))
    _find_duplicates(raw, "image id", [image["id"] for image in raw.images], log)
    _find_duplicates(raw, "category id", [category["id"] for category in raw.categories], log)
    _find_duplicates(raw, "category name", [category["name"] for category in raw.categories], log)
    _find_missing_images(raw, log)
    _find_annotation_problems(raw, log)
    if not raw.images:
        log.add("empty_list", where, f"{where}: 'images' is empty. A split needs at least one image.")
    if not raw.categories:
        message = f"{where}: 'categories' is empty. List every class with an id and a name."
        log.add("empty_list", where, message)
    return log.issues


def _read_json(path: Path) -> Entry:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such annotation file. Set data.root to the dataset's folder, or name the file "
            f"with data.train_annotations, data.val_annotations or data.test_annotations."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error}).") from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in REQUIRED):
        kind = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(
            f"{path}: not a COCO file, got {kind}. It needs the lists 'images', "
            f"'annotations' and 'categories'."
        )
    for key, names in REQUIRED.items():
        for number, entry in enumerate(content[key]):
            missing = [name for name in names if not isinstance(entry, dict) or name not in entry]
            if missing:
                lacks = ", ".join(map(repr, missing))
                raise DataError(f"{path}: not a COCO file: entry {number} of '{key}' lacks {lacks}.")
    raise_listed(
        [*_wrong_types(path.name, "images", content), *_wrong_types(path.name, "categories", content)]
    )
    raise_listed(_wrong_types(path.name, "annotations", content))
    return content


def _wrong_types(where: str, key: str, content: Entry) -> list[str]:
    return [
        f"{where}: entry {number} of '{key}' has {name} {entry[name]!r}. It must be {TYPES[name][1]}."
        for number, entry in enumerate(content[key])
        for name in TYPES
        if name in entry and not TYPES[name][0](entry[name])
    ]


def _find_duplicates(raw: RawSplit, what: str, values: Sequence[object], log: IssueLog) -> None:
    where = raw.annotations_path.name
    for value, count in Counter(values).items():
        if count > 1:
            message = f"{where}: {what} {value!r} is used {count} times. Each must be unique."
            log.add("repeated_id", where, message)


def _find_missing_images(raw: RawSplit, log: IssueLog) -> None:
    where, image_dir = raw.annotations_path.name, raw.image_dir
    if not image_dir.is_dir():
        message = f"{where}: the image folder {image_dir} does not exist. Set data.images to the right one."
        log.add("missing_image", str(image_dir), message)
        return
    with os.scandir(image_dir) as entries:
        present = {entry.name for entry in entries if entry.is_file()}
    for image in raw.images:
        name = image["file_name"]
        if name not in present and not (image_dir / name).is_file():
            message = f"{where}: image {name!r} (id {image['id']}) is listed but not in {image_dir}."
            log.add("missing_image", name, message)


def _find_annotation_problems(raw: RawSplit, log: IssueLog) -> None:
    where = raw.annotations_path.name
    by_id = {image["id"]: image for image in raw.images}
    known = {category["id"] for category in raw.categories}
    for number, annotation in enumerate(raw.annotations):
        name = annotation_name(annotation, number)
        image = by_id.get(annotation["image_id"])
        file = where if image is None else image["file_name"]
        what = f"annotation {name}" if image is None else f"annotation {name} (image {file!r})"
        for rule, problem in annotation_problems(annotation, image, known):
            log.add(rule, file, f"{where}: {what} {problem}", annotation=name)


def annotation_problems(
    annotation: Entry, image: Entry | None, known: Collection[int]
) -> list[tuple[str, str]]:
    """Return rule and description of everything that makes an annotation invalid.

    Args:
        annotation: Entry of a COCO file.
        image: Its image; None if that is not listed.
        known: Listed category ids.
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


def annotation_name(annotation: Entry, number: int) -> str:
    """Return the name of an annotation in messages: its id, or else its number in the file, from 0."""
    return str(annotation.get("id", f"number {number}"))


def _box_problems(bbox: Any, image: Entry) -> list[tuple[str, str]]:
    """Return rule and description of each problem of a box."""
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
    """Map the category ids of a split to class indices, by name.

    Args:
        split: Any split.
        class_names: Names of the detector's classes, by class index.
        trained_on: Source of these names, for the message.

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
