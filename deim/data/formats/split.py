"""What the reader of every format yields, its validation, and the arrays that it becomes."""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deim.data.formats.issues import Issue, IssueLog
from deim.files import is_utf8, raise_listed, sha256_of_file
from deim.language import ENGLISH, Language

Entry = Mapping[str, Any]
"""An entry, or the whole content, of an annotation file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxCounts:
    """What becomes of the boxes of a split."""

    images: int
    images_without_boxes: int
    """Images without a trainable box."""
    read: int
    """Boxes in the files."""
    crowd: int
    """Regions of many objects (`iscrowd`, `difficult`): never trained on, ignored in evaluation."""
    dropped: Mapping[str, int]
    """Number of boxes that cannot be used, by rule of `formats/issues.py`."""

    @property
    def trainable(self) -> int:
        """Number of boxes to train on."""
        return self.read - self.crowd - sum(self.dropped.values())

    def describe(self, language: Language = ENGLISH) -> str:
        """Return one line for the console, the log and the page."""
        return language.text(
            "{images} ({empty} without boxes), {boxes} read, {crowd}{reasons}, {trainable} trainable",
            images=language.count("image", self.images),
            empty=self.images_without_boxes,
            boxes=language.count("box", self.read),
            crowd=language.count("crowd region", self.crowd),
            reasons="".join(
                language.text(", {number} dropped ({rule})", number=number, rule=rule)
                for rule, number in self.dropped.items()
            ),
            trainable=self.trainable,
        )


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
    notes: tuple[str, ...] = ()
    """What the reader did to make sense of the files, a sentence each."""

    def count_boxes(self) -> BoxCounts:
        """Count the boxes, also of a split that is not valid."""
        sizes = {image["id"]: image for image in self.images}
        known = {category["id"] for category in self.categories}
        dropped = Counter(issue.rule for issue in self.issues if issue.annotation is not None)
        unread = sum(dropped.values())
        crowd, with_boxes = 0, set[int]()
        for annotation in self.annotations:
            problems = annotation_problems(annotation, sizes.get(annotation["image_id"]), known)
            if problems:
                dropped[problems[0][0]] += 1
            elif annotation.get("iscrowd"):
                crowd += 1
            else:
                with_boxes.add(annotation["image_id"])
        return BoxCounts(
            images=len(self.images),
            images_without_boxes=len(self.images) - len(with_boxes),
            read=len(self.annotations) + unread,
            crowd=crowd,
            dropped=dict(dropped),
        )


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

    def count_boxes(self) -> BoxCounts:
        """Count the boxes; a valid split has no dropped ones."""
        owner = np.repeat(np.arange(len(self)), np.diff(self.first_box))
        return BoxCounts(
            images=len(self),
            images_without_boxes=len(self) - len(np.unique(owner[~self.is_crowd])),
            read=len(self.boxes_xywh),
            crowd=int(self.is_crowd.sum()),
            dropped={},
        )

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
    _find_duplicates(raw, "image file", [image["file_name"] for image in raw.images], log)
    _find_duplicates(raw, "category id", [category["id"] for category in raw.categories], log)
    _find_duplicates(raw, "category name", [category["name"] for category in raw.categories], log)
    _find_bad_names(raw, log)
    _find_fractions(raw, log)
    _find_annotation_problems(raw, log)
    if not raw.images and not log.issues:
        log.add("empty_list", where, f"{where}: 'images' is empty. A split needs at least one image.")
    if not raw.categories:
        message = f"{where}: 'categories' is empty. List every class with an id and a name."
        log.add("empty_list", where, message)
    return log.issues


def find_untrainable(where: str, counts: BoxCounts) -> list[str]:
    """Return the message about a training or validation split without a trainable box, if it is one."""
    if not counts.images or counts.trainable:
        return []
    if not counts.crowd:
        return [f"{where}: no image has a box. Training and validation need objects to learn and to measure."]
    return [
        f"{where}: all {counts.crowd} boxes are marked as crowd regions (iscrowd or difficult), which are "
        f"never trained on. CVAT marks every object drawn with its brush: take them as objects with "
        f"data.crowd_as_objects=true, or --crowd-as-objects of deim data."
    ]


def take_crowds(raw: RawSplit) -> RawSplit:
    """Return a split whose crowd regions are objects like others."""
    return replace(raw, annotations=[{**annotation, "iscrowd": 0} for annotation in raw.annotations])


def _find_duplicates(raw: RawSplit, what: str, values: Sequence[object], log: IssueLog) -> None:
    where = raw.annotations_path.name
    for value, uses in Counter(values).items():
        if uses > 1:
            message = f"{where}: {what} {value!r} is used {uses} times. Each must be unique."
            log.add("repeated_id", where, message)


def has_control_character(name: str) -> bool:
    """Whether a name has a line break of any kind, or another control character."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)


def refuse_class_names(split: CocoSplit, format_name: str) -> None:
    """Refuse class names that programs for a format with a line for each name would read differently.

    Raises:
        DataError: If a name has a control character.
    """
    where = split.annotations_path.name
    problems = [
        f"{where}: category {number} has the name {name!r} with a control character, which {format_name} "
        f"cannot represent. Rename the category."
        for number, name in zip(split.category_ids, split.class_names, strict=True)
        if has_control_character(name)
    ]
    raise_listed(problems)


def _find_bad_names(raw: RawSplit, log: IssueLog) -> None:
    """Report names of images and classes that no report could hold."""
    where = raw.annotations_path.name
    names = [("image file", image["file_name"]) for image in raw.images]
    names += [("category name", category["name"]) for category in raw.categories]
    for what, name in names:
        if not is_utf8(name) or not name.strip():
            shown = name.encode("utf-8", "backslashreplace").decode()
            message = f"{where}: {what} {shown!r} is not text in UTF-8, or empty. Rename it."
            log.add("unreadable", shown if what == "image file" else where, message)


def _find_fractions(raw: RawSplit, log: IssueLog) -> None:
    """Report boxes in pixels that all lie within one pixel, because they must be fractions of the image."""
    where = raw.annotations_path.name
    boxes = [annotation["bbox"] for annotation in raw.annotations]
    are_within_a_pixel = all(_is_box(box) and min(box[2:]) > 0 and max(box) <= 1 for box in boxes)
    if are_within_a_pixel and any(side % 1 for box in boxes for side in box):
        message = (
            f"{where}: all boxes lie in [0, 1], such as {boxes[0]}: they are fractions of the image. Boxes "
            f"are pixels here: multiply them by width and height, or use the YOLO format."
        )
        log.add("fraction_box", where, message)


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
    name = annotation.get("id")
    return f"number {number}" if name is None else str(name)


def _is_box(bbox: object) -> bool:
    """Whether a value is four finite numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return False
    try:
        return all(type(value) in (int, float) and math.isfinite(value) for value in bbox)
    except OverflowError:
        return False


def _box_problems(bbox: Any, image: Entry) -> list[tuple[str, str]]:
    """Return rule and description of each problem of a box."""
    if not _is_box(bbox):
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
