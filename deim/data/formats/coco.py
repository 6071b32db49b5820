"""Reading of COCO annotation files as tools really write them.

Values that can only mean one thing are read: ids as `1.0` or `"1"`, image ids that are text, sizes that are
text or missing, `iscrowd: null`, and a polygon or mask instead of a box.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any, Final

from faster_coco_eval.core import mask as coco_mask

from deim.data.formats.issues import IssueLog
from deim.data.formats.split import CocoSplit, Entry, RawSplit, annotation_name, to_split
from deim.data.formats.values import MAX_SIDE_PX, finite_number, polygon_box, whole_number
from deim.data.images.folder import ImageIndex, Lookup
from deim.data.images.read import read_size
from deim.errors import DataError
from deim.files import raise_listed
from deim.parse import read_json

REQUIRED: Final = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
UNPADDED: Final = re.compile(r"-?(0|[1-9]\d*)(\.0+)?", re.ASCII)


def _image_id(value: object) -> int | str:
    """Return an id as a whole number, or else as text: `"01"` and `"1_2"` stay what they are."""
    if isinstance(value, str) and value.strip() and not UNPADDED.fullmatch(value.strip()):
        return value.strip()
    return whole_number(value)


def _annotation_id(value: object) -> int | float | str | None:
    if value is None or (isinstance(value, (int, float, str)) and not isinstance(value, bool)):
        return value
    raise TypeError


def _side(value: object) -> int | None:
    return None if value is None else whole_number(value, 1, MAX_SIDE_PX)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError
    return value


def _supercategory(value: object) -> str | None:
    return None if value is None or value == "" else _text(value)


def _area(value: object) -> float | None:
    if value is None:
        return None
    if finite_number(value) < 0:
        raise ValueError
    return value if isinstance(value, (int, float)) else finite_number(value)


def _crowd(value: object) -> int:
    return 0 if value is None else whole_number(int(value) if isinstance(value, bool) else value, 0, 2)


FIELDS: Final[Mapping[str, Mapping[str, tuple[Callable[[Any], object], str]]]] = {
    "images": {
        "id": (_image_id, "a whole number of at most 63 bits, or text"),
        "file_name": (_text, "text that is not empty"),
        "width": (_side, "a whole number of pixels above 0"),
        "height": (_side, "a whole number of pixels above 0"),
    },
    "annotations": {
        "id": (_annotation_id, "a number, text or null"),
        "image_id": (_image_id, "a whole number of at most 63 bits, or text"),
        "category_id": (whole_number, "a whole number of at most 63 bits"),
        "area": (_area, "a number from 0, or null"),
        "iscrowd": (_crowd, "0 or 1"),
    },
    "categories": {
        "id": (whole_number, "a whole number of at most 63 bits"),
        "name": (_text, "text that is not empty"),
        "supercategory": (_supercategory, "text or null"),
    },
}
"""Reader and description of the values of each field, where the field is present."""


@dataclass(kw_only=True, slots=True)
class _Reading:
    """What is known of a file while it is read."""

    where: str
    index: ImageIndex
    log: IssueLog
    notes: list[str] = field(default_factory=list)
    skipped_ids: set[int | str] = field(default_factory=set)
    """Ids of images that cannot be read; their annotations are skipped with them."""


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
    return to_split(read_raw_coco(annotations_path, (image_dir,)))


def read_raw_coco(
    annotations_path: Path, image_dirs: Sequence[Path], *, allow_outside: bool = False
) -> RawSplit:
    """Read an annotation file without validating boxes and references; see `read_coco`.

    Args:
        annotations_path: COCO JSON.
        image_dirs: Folders that may hold the images; the one with most of them is taken.
        allow_outside: Whether images may lie outside that folder.

    Raises:
        DataError: If the file cannot be read or is not COCO, or a value has a wrong type.
    """
    content = _read_content(annotations_path)
    where = annotations_path.name
    names = [image["file_name"] for image in content["images"]]
    reading = _Reading(
        where=where,
        index=_best_index(image_dirs, names, allow_outside=allow_outside),
        log=IssueLog(split=annotations_path.stem),
    )
    if not reading.index.folder.is_dir():
        folder = reading.index.folder
        raise DataError(
            f"{where}: the image folder {folder} does not exist. Set data.images to the right one."
        )
    images = _find_images(reading, content["images"])
    annotations = _read_boxes(reading, images, content["annotations"])
    images, annotations = _number_text_ids(reading, images, annotations)
    return RawSplit(
        name=annotations_path.stem,
        annotations_path=annotations_path,
        image_dir=reading.index.folder,
        images=images,
        annotations=annotations,
        categories=content["categories"],
        issues=tuple(reading.log.issues),
        notes=tuple(reading.notes),
    )


def read_image_ids(annotations_path: Path, index: ImageIndex) -> tuple[dict[str, int | str], int]:
    """Read the ids that a COCO file gives to images; its annotations and categories may be missing.

    Args:
        annotations_path: COCO JSON.
        index: The images to look for.

    Returns:
        The id of each image that the file lists, by its path in the index, in the order of the file; and the
        number of images that the file lists and the index does not have.

    Raises:
        DataError: If the file cannot be read or is not COCO, or an image may be several files.
    """
    content = _read_content(annotations_path, keys=("images",))
    ids: dict[str, int | str] = {}
    problems, num_absent = [], 0
    for image in content["images"]:
        lookup = index.find(image["file_name"])
        where = f"{annotations_path}: image {image['file_name']!r} (id {image['id']})"
        if lookup.candidates:
            problems.append(f"{where} {_say_ambiguous(lookup, index)}")
        elif lookup.path in ids:
            other = ids[lookup.path]
            problems.append(f"{where} is {lookup.path}, which also has id {other}. Keep one of the entries.")
        elif lookup.path is not None:
            ids[lookup.path] = image["id"]
        else:
            num_absent += 1
    raise_listed(problems)
    return ids, num_absent


def _say_ambiguous(lookup: Lookup, index: ImageIndex) -> str:
    return f"may be {' or '.join(lookup.candidates)} in {index.folder}. Give its folder in file_name."


def is_coco(path: Path) -> bool:
    """Whether a JSON file has the keys of COCO; only its bytes are searched."""
    try:
        content = path.read_bytes()
    except OSError:
        return True  # the reader says why
    if b"\0" in content[:64]:
        content = content.replace(b"\0", b"")  # UTF-16
    return b'"images"' in content and b'"categories"' in content


def _read_content(path: Path, keys: Sequence[str] = tuple(REQUIRED)) -> dict[str, Sequence[Entry]]:
    """Return the lists of a file that are needed, with readable values."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such annotation file. Set data.root to the dataset's folder, or name the file "
            f"with data.train_annotations, data.val_annotations or data.test_annotations."
        ) from None
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        kind = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(
            f"{path}: not a COCO file, got {kind}. It needs the lists 'images', "
            f"'annotations' and 'categories'."
        )
    for key in keys:
        for number, entry in enumerate(content[key]):
            missing = [name for name in REQUIRED[key] if not isinstance(entry, dict) or name not in entry]
            if missing:
                lacks = ", ".join(map(repr, missing))
                raise DataError(f"{path}: not a COCO file: entry {number} of '{key}' lacks {lacks}.")
    problems: list[str] = []
    lists = {key: _read_fields(path.name, key, content[key], problems) for key in keys}
    raise_listed(problems)
    return lists


def _read_fields(where: str, key: str, entries: Sequence[Entry], problems: list[str]) -> Sequence[Entry]:
    cleaned: list[Entry] = []
    for number, entry in enumerate(entries):
        values = dict(entry)
        for name, (read, description) in FIELDS[key].items():
            if name not in entry:
                continue
            try:
                values[name] = read(entry[name])
            except (TypeError, ValueError, OverflowError):
                problems.append(
                    f"{where}: entry {number} of '{key}' has {name} {entry[name]!r:.80}. It must be "
                    f"{description}."
                )
        cleaned.append(values)
    return cleaned


def _best_index(image_dirs: Sequence[Path], names: Sequence[str], *, allow_outside: bool) -> ImageIndex:
    """Return the index of the folder that has most of the images, and most of them under the name given."""
    first, *others = (partial(ImageIndex, folder, allow_outside=allow_outside) for folder in image_dirs)
    best_score, best = (-1, -1), first()
    for index in (best, *(build() for build in others)):
        paths = [index.find(name).path for name in names]
        score = (len(paths) - paths.count(None), sum(map(eq, paths, names)))
        if score > best_score:
            best, best_score = index, score
        if best_score == (len(names), len(names)):
            break  # other folders may be large
    return best


def _find_images(reading: _Reading, entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the images with the paths of their files, and their sizes where the file lacks them."""
    images, moved = [], []
    folder = reading.index.folder
    for entry in entries:
        name = entry["file_name"]
        where = f"{reading.where}: image {name!r} (id {entry['id']})"
        lookup = reading.index.find(name)
        if lookup.candidates:
            message = f"{where} {_say_ambiguous(lookup, reading.index)}"
            reading.log.add("ambiguous_image", name, message)
            reading.skipped_ids.add(entry["id"])
            continue
        if lookup.path is None:
            reading.log.add("missing_image", name, f"{where} is listed but not in {folder}.{lookup.advice}")
            reading.skipped_ids.add(entry["id"])
            continue
        if lookup.path != name:
            moved.append(f"{name!r} is {lookup.path!r}")
        image = {**entry, "file_name": lookup.path}
        if image.get("width") is None or image.get("height") is None:
            try:
                image["height"], image["width"] = read_size(folder / lookup.path)
            except DataError as error:
                reading.log.add("corrupt_image", name, str(error))
                reading.skipped_ids.add(entry["id"])
                continue
        images.append(image)
    if moved:
        reading.notes.append(
            f"{len(moved)} of {len(entries)} images were found under another path in {folder}, such as "
            f"{moved[0]}"
        )
    return images


def _read_boxes(reading: _Reading, images: Sequence[Entry], entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the annotations of the images that can be read, with a box instead of an outline or a mask."""
    sizes_hw = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations, outlined = [], 0
    for number, entry in enumerate(entries):
        if entry["image_id"] in reading.skipped_ids:
            continue
        bbox = entry.get("bbox")
        if bbox is None or bbox == []:
            size_hw = sizes_hw.get(entry["image_id"])
            try:
                bbox = _outline_box(entry.get("segmentation"), size_hw)
            except (TypeError, ValueError, OverflowError, LookupError, RuntimeError):
                name = annotation_name(entry, number)
                message = (
                    f"{reading.where}: annotation {name} has no bbox, and its segmentation is no polygon or "
                    f"mask of its image. A box is [left, top, width, height] in pixels."
                )
                reading.log.add("bad_box", reading.where, message, annotation=name)
                continue
            outlined += 1
        else:
            bbox = _box_of_text(bbox)
        annotations.append({"id": f"number {number}", **entry, "bbox": bbox})
    if outlined:
        reading.notes.append(f"{outlined} annotations have no box; theirs is the one around polygon or mask")
    return annotations


def _box_of_text(bbox: object) -> object:
    """Return a box whose numbers are text as numbers; anything else unchanged, to be reported."""
    if not isinstance(bbox, list) or not any(isinstance(value, str) for value in bbox):
        return bbox
    try:
        return [finite_number(value) for value in bbox]
    except (TypeError, ValueError):
        return bbox


def _outline_box(segmentation: object, size_hw: tuple[int, int] | None) -> list[float]:
    """Return left, top, width and height of the box around polygons or a run-length mask.

    Raises:
        TypeError: If it is neither a list nor a mask.
        ValueError: If numbers or the size of a mask are wrong; also LookupError, OverflowError, RuntimeError.
    """
    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], [int(side) for side in segmentation["size"]]
        if size_hw is not None and size != list(size_hw):
            raise ValueError
        if isinstance(counts, list) and (min(counts) < 0 or sum(counts) != size[0] * size[1]):
            raise ValueError
        mask = coco_mask.frPyObjects(segmentation, *size) if isinstance(counts, list) else segmentation
        box: list[float] = coco_mask.toBbox(mask).tolist()
        return box
    if not isinstance(segmentation, list):
        raise TypeError
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    numbers = [[finite_number(value) for value in polygon] for polygon in polygons]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in numbers):
        raise ValueError
    xs = [x for polygon in numbers for x in polygon[0::2]]
    ys = [y for polygon in numbers for y in polygon[1::2]]
    return polygon_box(xs, ys)


def _number_text_ids(
    reading: _Reading, images: Sequence[Entry], annotations: Sequence[Entry]
) -> tuple[Sequence[Entry], Sequence[Entry]]:
    """Return both lists with image ids numbered in the order of the file, if any of the ids is text."""
    if not any(isinstance(image["id"], str) for image in images):
        return images, annotations
    numbers = {key: number for number, key in enumerate(dict.fromkeys(image["id"] for image in images), 1)}
    reading.notes.append(f"image ids are text; the images are numbered from 1 to {len(numbers)}")
    return (
        [{**image, "id": numbers[image["id"]]} for image in images],
        [{**row, "image_id": numbers.get(row["image_id"], str(row["image_id"]))} for row in annotations],
    )
