"""Reading and writing Pascal VOC datasets: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/*.txt`.

`xmin`, `ymin`, `xmax` and `ymax` are the edges of a box in pixels from 0, as today's drawing tools write
them, whole or not. An object with `difficult` 1 becomes an annotation with iscrowd 1: never trained on,
ignored in evaluation. The extra file `categories.json` holds ids and names as in a COCO file; without it the
classes are all names of all annotations, numbered from 1 in alphabetical order.
"""

import json
import logging
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from deim.data.formats.coco import SPLITS, CocoSplit, RawSplit
from deim.data.formats.issues import Issue
from deim.data.images.read import IMAGE_SUFFIXES, read_size
from deim.errors import DataError
from deim.files import raise_listed

logger = logging.getLogger(__name__)

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
CATEGORIES_NAME = "categories.json"
TRAINVAL = "trainval"
CLASS_LIST_LINE = re.compile(r".*\s(-1|0|1)")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(kw_only=True, slots=True)
class _Reading:
    """The entries of a split while they are read."""

    root: Path
    split: str
    ids: Mapping[str, int]
    """Category id of each class name."""
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)

    def note(self, rule: str, file: str, message: str, annotation: str | None = None) -> None:
        found = Issue(rule=rule, split=self.split, file=file, annotation=annotation, message=message)
        self.issues.append(found)


def is_voc(root: Path) -> bool:
    """Whether a folder holds XML annotations where the format puts them."""
    return next((root / ANNOTATIONS).rglob("*.xml"), None) is not None


def voc_splits(root: Path) -> tuple[str, ...]:
    """Names of the lists in `ImageSets/Main`, train, val and test first; `all` if there is none.

    Lists of one class are left out, and so is `trainval` where it repeats the images of other lists.

    Args:
        root: Folder of the dataset.

    Raises:
        DataError: If a list cannot be read.
    """
    names, repeats = _list_names(root)
    if repeats:
        logger.info(
            "%s: left out, since it repeats %s", root / LISTS / f"{TRAINVAL}.txt", " and ".join(repeats)
        )
    return names


def read_raw_voc(root: Path, split: str) -> RawSplit:
    """Read a split, whatever boxes it holds.

    Args:
        root: Folder of the dataset.
        split: One of `voc_splits`.

    Returns:
        The split, images in the order of its list. Ids of images are 1, 2, 3, …; an annotation's id is its
        file and number in it, from 1. Annotation files that have no image and that no list names are among
        the issues of the first split.

    Raises:
        DataError: If there is no such split, or `categories.json` is wrong.
    """
    names, _ = _list_names(root)
    if split not in names:
        raise DataError(f"split {split!r}: {root / LISTS} has none. Choose one of {', '.join(names)}.")
    list_path = root / LISTS / f"{split}.txt"
    folder = root / ANNOTATIONS
    if list_path.is_file():
        stems = _read_lines(list_path)
    else:
        found = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.xml"))
        list_path, stems = folder, sorted(path.as_posix() for path in found)
    categories = _categories(root)
    reading = _Reading(root=root, split=split, ids={row["name"]: row["id"] for row in categories})
    files = _image_files(root / IMAGES)
    for number, stem in enumerate(stems, start=1):
        _read_image_entry(reading, number, stem, files)
    if split == names[0] and list_path.is_file():
        _note_without_image(reading, names, files)
    return RawSplit(
        name=split,
        annotations_path=list_path,
        image_dir=root / IMAGES,
        images=reading.images,
        annotations=reading.annotations,
        categories=categories,
        issues=tuple(reading.issues),
    )


def write_voc(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write annotations, lists and categories; the images are put beside them by the caller.

    Args:
        splits: Of one set of classes.
        names: New name of each image of a split, relative to `JPEGImages`.
        root: Folder that exists.

    Raises:
        DataError: If the name of a category holds a control character.
    """
    first = next(iter(splits.values()))
    raise_listed(
        [
            f"{first.annotations_path.name}: category {number} has the name {name!r}, which holds a control "
            f"character; VOC has no place for one. Rename the category."
            for number, name in zip(first.category_ids, first.class_names, strict=True)
            if any(unicodedata.category(character) == "Cc" for character in name)
        ]
    )
    lists = root / LISTS
    lists.mkdir(parents=True)
    for name, split in splits.items():
        for image, new_name in enumerate(names[name]):
            path = (root / ANNOTATIONS / new_name).with_suffix(".xml")
            path.parent.mkdir(parents=True, exist_ok=True)
            tree = _image_element(split, image, new_name)
            ElementTree.indent(tree)
            ElementTree.ElementTree(tree).write(path, encoding="utf-8", xml_declaration=True)
        stems = [PurePosixPath(new_name).with_suffix("").as_posix() for new_name in names[name]]
        (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    categories = [
        {"id": number, "name": name}
        for number, name in zip(first.category_ids, first.class_names, strict=True)
    ]
    text = json.dumps(categories, indent=1, ensure_ascii=False)
    (root / CATEGORIES_NAME).write_text(text + "\n", encoding="utf-8")


def _image_element(split: CocoSplit, image: int, new_name: str) -> ElementTree.Element:
    """The annotation of one image."""
    height, width = split.sizes_hw[image].tolist()
    names = dict(zip(split.category_ids, split.class_names, strict=True))
    root = ElementTree.Element("annotation")
    _add(root, "folder", IMAGES)
    _add(root, "filename", new_name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, key, value)
    for row in range(split.first_box[image], split.first_box[image + 1]):
        left, top, box_width, box_height = split.boxes_xywh[row].tolist()
        entry = ElementTree.SubElement(root, "object")
        _add(entry, "name", names[int(split.box_category_ids[row])])
        _add(entry, "difficult", int(split.is_crowd[row]))
        box = ElementTree.SubElement(entry, "bndbox")
        for key, value in zip(CORNERS, (left, top, left + box_width, top + box_height), strict=True):
            _add(box, key, f"{value:.10g}")
    return root


def _add(parent: ElementTree.Element, key: str, value: object) -> None:
    ElementTree.SubElement(parent, key).text = str(value)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from None


def _read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, without outer spaces."""
    return [line.strip() for line in _read_text(path).splitlines() if line.strip()]


def _list_names(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the splits, and of those that `trainval` is made of where it is none itself."""
    paths = [path for path in sorted((root / LISTS).glob("*.txt")) if not _is_class_list(root, path)]
    order = {name: place for place, name in enumerate(SPLITS)}
    names = sorted((path.stem for path in paths), key=lambda name: (order.get(name, len(order)), name))
    repeats: tuple[str, ...] = ()
    if TRAINVAL in names:
        stems = {name: set(_read_lines(root / LISTS / f"{name}.txt")) for name in names}
        whole = stems.pop(TRAINVAL)
        parts = {name: of_part for name, of_part in stems.items() if of_part <= whole}
        if not parts.keys().isdisjoint(("train", "val")) and set().union(*parts.values()) == whole:
            names.remove(TRAINVAL)
            repeats = tuple(parts)
    return tuple(names) or ("all",), repeats


def _is_class_list(root: Path, path: Path) -> bool:
    """Whether a list is of one class, such as pit_train.txt: all lines end in -1, 0 or 1; it is no split."""
    if path.stem in (*SPLITS, TRAINVAL):
        return False
    lines = _read_lines(path)
    # Names of images may end so too, such as those of `part 1.png`.
    return (
        bool(lines)
        and all(CLASS_LIST_LINE.fullmatch(line) for line in lines)
        and not (root / ANNOTATIONS / f"{lines[0]}.xml").is_file()
    )


def _image_files(folder: Path) -> dict[str, list[str]]:
    """Names of the images of each stem, which are two where they differ in their suffix; all relative."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    return files


def _categories(root: Path) -> list[dict[str, Any]]:
    path = root / CATEGORIES_NAME
    if not path.is_file():
        names = set()
        for xml_path in (root / ANNOTATIONS).rglob("*.xml"):
            try:
                tree = ElementTree.parse(xml_path)
            except (ElementTree.ParseError, OSError):
                continue  # named by the split that lists it
            names |= {_text(entry, "name") for entry in tree.iter("object")}
        return [{"id": number, "name": name} for number, name in enumerate(sorted(names - {""}), start=1)]
    try:
        categories = json.loads(_read_text(path))
        return [{"id": int(row["id"]), "name": str(row["name"])} for row in categories]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not a list of categories ({error!r}). It needs an id and a name for each class."
        ) from None


def _text(element: ElementTree.Element, key: str) -> str:
    return (element.findtext(key) or "").strip()


def _number(element: ElementTree.Element | None, key: str) -> float | None:
    try:
        value = math.nan if element is None else float(_text(element, key))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _box_fault(box: ElementTree.Element | None) -> str:
    """What a box has in place of its numbers, such as `no xmin`."""
    if box is None:
        return "no bndbox"
    wrong = [key for key in CORNERS if _number(box, key) is None]
    return ", ".join(f"no {key}" if box.find(key) is None else f"{key} {_text(box, key)!r}" for key in wrong)


def _read_image_entry(reading: _Reading, number: int, stem: str, files: Mapping[str, Sequence[str]]) -> None:
    """Add an image of the list with its annotations, or what is wrong with it."""
    path = reading.root / ANNOTATIONS / f"{stem}.xml"
    where = f"{ANNOTATIONS}/{stem}.xml"
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        message = (
            f"{where}: no such annotation file, but {reading.split}.txt lists it. Add it, even without boxes."
        )
        reading.note("unreadable", where, message)
        return
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        reading.note("unreadable", where, f"{where}: not an XML file ({error}). Mend or replace it.")
        return
    given, present = _text(root, "filename"), files.get(stem, ())
    if len(present) > 1:
        # Other tools write the name alone, whatever folder the image lies in.
        present = [
            name for name in present if PurePosixPath(name).name == PurePosixPath(given).name
        ] or present
    if len(present) > 1:
        message = (
            f"{where}: belongs to {' and '.join(present)}, and its filename {given!r} is none of them. Name "
            f"one of them there, and give the other a name of its own or remove it."
        )
        reading.note("repeated_id", present[0], message)
        return
    file_name = present[0] if present else given or stem
    size = root.find("size")
    width, height = _number(size, "width"), _number(size, "height")
    if width is None or height is None or min(width, height) < 1:
        try:
            height, width = read_size(reading.root / IMAGES / file_name)
        except DataError as error:
            rule = "corrupt_image" if stem in files else "missing_image"
            reading.note(rule, file_name, str(error))
            return
    entry = {"id": number, "file_name": file_name, "width": int(width), "height": int(height)}
    reading.images.append(entry)
    for place, element in enumerate(root.iter("object"), start=1):
        _read_object(reading, entry, where, place, element)


def _read_object(
    reading: _Reading, image: Mapping[str, Any], where: str, place: int, element: ElementTree.Element
) -> None:
    """Add an annotation of an image, or what is wrong with it."""
    annotation, name = f"{where}:{place}", element.findtext("name") or ""
    if name not in reading.ids:
        name = name.strip()  # some files have a line break around it
    if name not in reading.ids:
        message = (
            f"{where}: object {place} has class {name!r}, {CATEGORIES_NAME} has "
            f"{', '.join(reading.ids)}. Correct the name, or add the class."
        )
        reading.note("unknown_category", image["file_name"], message, annotation)
        return
    box = element.find("bndbox")
    corners = [number for key in CORNERS if (number := _number(box, key)) is not None]
    if len(corners) < len(CORNERS):
        message = (
            f"{where}: object {place} (class {name!r}) has {_box_fault(box)}. bndbox needs the numbers "
            f"xmin, ymin, xmax and ymax, in pixels. Correct the box, or remove the object."
        )
        reading.note("bad_box", image["file_name"], message, annotation)
        return
    left, top, right, bottom = corners
    reading.annotations.append(
        {
            "id": annotation,
            "image_id": image["id"],
            "category_id": reading.ids[name],
            "bbox": [left, top, round(right - left, 6), round(bottom - top, 6)],
            "iscrowd": int(_number(element, "difficult") == 1),
        }
    )


def _note_without_image(reading: _Reading, names: Sequence[str], files: Mapping[str, Sequence[str]]) -> None:
    """Note the annotation files that have no image and that no list names."""
    folder = reading.root / ANNOTATIONS
    stems = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.xml")}
    listed = {stem for name in names for stem in _read_lines(reading.root / LISTS / f"{name}.txt")}
    for stem in sorted(stems - listed - files.keys()):
        where = f"{ANNOTATIONS}/{stem}.xml"
        try:
            given = _text(ElementTree.parse(reading.root / where).getroot(), "filename")
        except (ElementTree.ParseError, OSError, UnicodeDecodeError):
            given = ""
        if (reading.root / IMAGES / given).is_file():
            continue  # the image is named as one that no split lists
        message = (
            f"{where}: there is no image for this file in {IMAGES}, and no list in {LISTS} names it. Add the "
            f"image and list it, or remove the file."
        )
        reading.note("missing_image", where, message)
