"""Pascal VOC datasets: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/*.txt`.

`xmin`, `ymin`, `xmax` and `ymax` are the edges of a box in pixels from 0, whole numbers or fractions, as
current annotation tools write them. An object with `difficult` 1 becomes an annotation with iscrowd 1: never
trained on, ignored in evaluation. The additional file `categories.json` holds ids and names as in a COCO
file; without it the classes are all names of all annotations, numbered from 1 in alphabetical order.
"""

import json
import logging
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from deim.data.formats.coco import SPLITS, CocoSplit, Entry, RawSplit
from deim.data.formats.issues import IssueLog
from deim.data.formats.text import read_text
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
    ids: Mapping[str, int]
    """Category id of each class name."""
    files: Mapping[str, Sequence[str]]
    """Image files of each stem."""
    log: IssueLog
    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)


def is_voc(root: Path) -> bool:
    """Whether a folder has XML annotations in the place of the format."""
    return next((root / ANNOTATIONS).rglob("*.xml"), None) is not None


def voc_splits(root: Path) -> tuple[str, ...]:
    """Return the names of the lists in `ImageSets/Main`, train, val and test first; `all` if there is none.

    Lists of a single class are skipped, and `trainval` where it repeats the images of other lists.

    Raises:
        DataError: If a list cannot be read.
    """
    names, repeats = _list_names(root)
    if repeats:
        logger.info(
            "%s: skipped, because it repeats %s", root / LISTS / f"{TRAINVAL}.txt", " and ".join(repeats)
        )
    return names


def read_raw_voc(root: Path, split: str) -> RawSplit:
    """Read a split without validating its boxes.

    Args:
        root: Folder of the dataset.
        split: One of `voc_splits`.

    Returns:
        The split, images in the order of its list. Ids of images are 1, 2, 3, …; the id of an annotation is
        its file and its number in it, from 1. Annotation files without an image that no list names are issues
        of the first split.

    Raises:
        DataError: If there is no such split, or `categories.json` is wrong.
    """
    names, _ = _list_names(root)
    if split not in names:
        raise DataError(f"split {split!r}: {root / LISTS} has none. Choose one of {', '.join(names)}.")
    list_path, folder = root / LISTS / f"{split}.txt", root / ANNOTATIONS
    has_list = list_path.is_file()
    if has_list:
        stems = _read_lines(list_path)
    else:
        stems = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.xml"))
    categories = _read_categories(root)
    reading = _Reading(
        root=root,
        ids={row["name"]: row["id"] for row in categories},
        files=_image_files(root / IMAGES),
        log=IssueLog(split=split),
    )
    for number, stem in enumerate(stems, start=1):
        _read_image_entry(reading, number, stem)
    if split == names[0] and has_list:
        _find_files_without_image(reading, names)
    return RawSplit(
        name=split,
        annotations_path=list_path if has_list else folder,
        image_dir=root / IMAGES,
        images=reading.images,
        annotations=reading.annotations,
        categories=categories,
        issues=tuple(reading.log.issues),
    )


def write_voc(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write annotations, lists and categories; the caller writes the images.

    Args:
        splits: Splits with the same classes, by name.
        names: New name of each image of each split, relative to `JPEGImages`.
        root: Existing folder.

    Raises:
        DataError: If the name of a category contains a control character.
    """
    first = next(iter(splits.values()))
    raise_listed(
        [
            f"{first.annotations_path.name}: category {number} has the name {name!r} with a control "
            f"character, which VOC cannot represent. Rename the category."
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
            element = _image_element(split, image, new_name)
            ElementTree.indent(element)
            ElementTree.ElementTree(element).write(path, encoding="utf-8", xml_declaration=True)
        stems = [PurePosixPath(new_name).with_suffix("").as_posix() for new_name in names[name]]
        (lists / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    pairs = zip(first.category_ids, first.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    text = json.dumps(categories, indent=1, ensure_ascii=False)
    (root / CATEGORIES_NAME).write_text(text + "\n", encoding="utf-8")


def _image_element(split: CocoSplit, image: int, new_name: str) -> ElementTree.Element:
    """Return the annotations of one image."""
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


def _read_lines(path: Path) -> list[str]:
    """Return the stripped lines of a list that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _list_names(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the splits, and of those that `trainval` repeats where it is skipped."""
    paths = [path for path in sorted((root / LISTS).glob("*.txt")) if not _is_class_list(root, path)]
    order = {name: place for place, name in enumerate(SPLITS)}
    names = sorted((path.stem for path in paths), key=lambda name: (order.get(name, len(order)), name))
    repeats: tuple[str, ...] = ()
    if TRAINVAL in names:
        stems = {name: set(_read_lines(root / LISTS / f"{name}.txt")) for name in names}
        whole = stems.pop(TRAINVAL)
        subsets = {name: part for name, part in stems.items() if part <= whole}
        if not subsets.keys().isdisjoint(("train", "val")) and set().union(*subsets.values()) == whole:
            names.remove(TRAINVAL)
            repeats = tuple(subsets)
    return tuple(names) or ("all",), repeats


def _is_class_list(root: Path, path: Path) -> bool:
    """Whether a list is of a single class, such as pit_train.txt: all its lines end in -1, 0 or 1."""
    if path.stem in (*SPLITS, TRAINVAL):
        return False
    lines = _read_lines(path)
    # Image names may end like that too, such as `part 1.png`.
    return (
        bool(lines)
        and all(CLASS_LIST_LINE.fullmatch(line) for line in lines)
        and not (root / ANNOTATIONS / f"{lines[0]}.xml").is_file()
    )


def _image_files(folder: Path) -> dict[str, list[str]]:
    """Return the relative names of the images of each stem; several differ in their suffix."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    return files


def _read_categories(root: Path) -> list[Entry]:
    path = root / CATEGORIES_NAME
    if not path.is_file():
        names = set()
        for xml_path in (root / ANNOTATIONS).rglob("*.xml"):
            try:
                root_element = ElementTree.parse(xml_path)
            except (ElementTree.ParseError, OSError):
                continue  # named by the split that lists it
            names |= {_text(entry, "name") for entry in root_element.iter("object")}
        return [{"id": number, "name": name} for number, name in enumerate(sorted(names - {""}), start=1)]
    try:
        categories = json.loads(read_text(path))
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
    """Describe what is wrong with the numbers of a box, such as `no xmin`."""
    if box is None:
        return "no bndbox"
    wrong = [key for key in CORNERS if _number(box, key) is None]
    return ", ".join(f"no {key}" if box.find(key) is None else f"{key} {_text(box, key)!r}" for key in wrong)


def _read_image_entry(reading: _Reading, number: int, stem: str) -> None:
    """Add an image of the list with its annotations, or the problem with it."""
    where, log = f"{ANNOTATIONS}/{stem}.xml", reading.log
    try:
        root = ElementTree.parse(reading.root / where).getroot()
    except FileNotFoundError:
        message = (
            f"{where}: no such annotation file, but {log.split}.txt lists it. Add it, even without boxes."
        )
        log.add("unreadable", where, message)
        return
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        log.add("unreadable", where, f"{where}: not an XML file ({error}). Repair or replace it.")
        return
    given, present = _text(root, "filename"), reading.files.get(stem, ())
    if len(present) > 1:
        # Other tools write the name alone, whatever folder the image lies in.
        same = [name for name in present if PurePosixPath(name).name == PurePosixPath(given).name]
        present = same or present
    if len(present) > 1:
        message = (
            f"{where}: belongs to {' and '.join(present)}, and its filename {given!r} is none of them. Name "
            f"one of them there, and rename or remove the other."
        )
        log.add("repeated_id", present[0], message)
        return
    file_name = present[0] if present else given or stem
    size = root.find("size")
    width, height = _number(size, "width"), _number(size, "height")
    if width is None or height is None or min(width, height) < 1:
        try:
            height, width = read_size(reading.root / IMAGES / file_name)
        except DataError as error:
            log.add("corrupt_image" if stem in reading.files else "missing_image", file_name, str(error))
            return
    entry = {"id": number, "file_name": file_name, "width": int(width), "height": int(height)}
    reading.images.append(entry)
    for place, element in enumerate(root.iter("object"), start=1):
        _read_object(reading, entry, where, place, element)


def _read_object(
    reading: _Reading, image: Entry, where: str, place: int, element: ElementTree.Element
) -> None:
    """Add an annotation of an image, or the problem with it."""
    annotation, name = f"{where}:{place}", element.findtext("name") or ""
    if name not in reading.ids:
        name = name.strip()  # some files have a line break around it
    if name not in reading.ids:
        message = (
            f"{where}: object {place} has class {name!r}, {CATEGORIES_NAME} has "
            f"{', '.join(reading.ids)}. Correct the name, or add the class."
        )
        reading.log.add("unknown_category", image["file_name"], message, annotation=annotation)
        return
    box = element.find("bndbox")
    corners = [number for key in CORNERS if (number := _number(box, key)) is not None]
    if len(corners) < len(CORNERS):
        message = (
            f"{where}: object {place} (class {name!r}) has {_box_fault(box)}. bndbox needs the numbers "
            f"xmin, ymin, xmax and ymax, in pixels. Correct the box, or remove the object."
        )
        reading.log.add("bad_box", image["file_name"], message, annotation=annotation)
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


def _find_files_without_image(reading: _Reading, names: Sequence[str]) -> None:
    """Report the annotation files that have no image and that no list names."""
    folder = reading.root / ANNOTATIONS
    stems = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.xml")}
    listed = {stem for name in names for stem in _read_lines(reading.root / LISTS / f"{name}.txt")}
    for stem in sorted(stems - listed - reading.files.keys()):
        where = f"{ANNOTATIONS}/{stem}.xml"
        try:
            given = _text(ElementTree.parse(reading.root / where).getroot(), "filename")
        except (ElementTree.ParseError, OSError, UnicodeDecodeError):
            given = ""
        if (reading.root / IMAGES / given).is_file():
            continue  # the image is reported as one that no split lists
        message = (
            f"{where}: there is no image for this file in {IMAGES}, and no list in {LISTS} names it. Add the "
            f"image and list it, or remove the file."
        )
        reading.log.add("missing_image", where, message)
