"""Pascal VOC datasets: an XML file for each image, in `Annotations/` or beside the image.

Splits are the lists in `ImageSets/Main/*.txt`, or else the subfolders that are named for them. `xmin`,
`ymin`, `xmax` and `ymax` are the edges of a box in pixels from 0, whole numbers or fractions, as current
annotation tools write them. An object with `difficult` 1 becomes an annotation with iscrowd 1: never
trained on, ignored in evaluation. The additional file `categories.json` holds ids and names as in a COCO
file; without it the classes are all names of all annotations, numbered from 1 in alphabetical order.
"""

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from deim.data.formats.issues import IssueLog
from deim.data.formats.names import SPLITS, UNSPLIT, Format, name_splits
from deim.data.formats.split import CocoSplit, Entry, RawSplit, refuse_class_names
from deim.data.formats.values import MAX_SIDE_PX, whole_number
from deim.data.images.folder import OUTSIDE, ImageIndex, is_file, list_images, walk_files
from deim.data.images.read import IMAGE_SUFFIXES, read_size
from deim.errors import DataError
from deim.files import lies_below
from deim.parse import read_json, read_lines, read_xml

logger = logging.getLogger(__name__)

ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets/Main"
ANNOTATION_FOLDERS = ("annotations", "xml", "xmls", "labels")
IMAGE_FOLDERS = ("jpegimages", "images", "imgs")
"""Names of folders in lower case."""
CATEGORIES_NAME = "categories.json"
TRAINVAL = "trainval"
CLASS_LIST_LINE = re.compile(r".*\s(-1|0|1)")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
HEAD_BYTES = 4096
ROOT_TAG = re.compile(rb"<(\w+:)?annotation[\s/>]")


@dataclass(frozen=True, kw_only=True, slots=True)
class VocSet:
    """The files of a dataset."""

    root: Path
    annotations: Path
    """Folder of the XML files."""
    images: Path
    """Folder of the images."""
    stems: Mapping[str, Sequence[str]]
    """Path without suffix of the annotation file of each image of each split, relative to `annotations`."""
    has_lists: bool
    """Whether the splits are lists."""
    format: Format = "voc"
    absent: Mapping[str, str] = field(default_factory=dict)
    """No split is named and not there."""
    allow_outside: bool = False
    """Whether lists and annotation files may name files outside the folder."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, train, val and test first; `all` if there are neither lists nor folders."""
        return tuple(self.stems)

    def read(self, split: str) -> RawSplit:
        """Read a split without validating its boxes.

        Args:
            split: One of `splits`.

        Returns:
            The split, images in the order of its list. Ids of images are 1, 2, 3, …; the id of an annotation
            is its file and its number in it, from 1. Annotation files without an image that no list names are
            issues of the first split.

        Raises:
            DataError: If there is no such split, or `categories.json` is wrong.
        """
        if split not in self.stems:
            raise DataError(
                f"split {split!r}: {self.root / LISTS} has none. Choose one of {', '.join(self.splits)}."
            )
        categories = _read_categories(self)
        reading = _Reading(
            dataset=self,
            ids={row["name"]: row["id"] for row in categories},
            index=ImageIndex(self.images, allow_outside=self.allow_outside),
            log=IssueLog(split=split),
        )
        for number, stem in enumerate(self.stems[split], start=1):
            _read_image_entry(reading, number, stem)
        if split == self.splits[0] and self.has_lists:
            _find_files_without_image(reading)
        list_path = self.root / LISTS / f"{split}.txt"
        return RawSplit(
            name=split,
            annotations_path=list_path if list_path.is_file() else self.annotations,
            image_dir=self.images,
            images=reading.images,
            annotations=reading.annotations,
            categories=categories,
            issues=tuple(reading.log.issues),
        )


@dataclass(kw_only=True, slots=True)
class _Reading:
    """The entries of a split while they are read."""

    dataset: VocSet
    ids: Mapping[str, int]
    """Category id of each class name."""
    index: ImageIndex
    log: IssueLog
    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)

    def where(self, stem: str) -> str:
        """Return the path of an annotation file for messages."""
        path = self.dataset.annotations / f"{stem}.xml"
        return Path(os.path.relpath(path, self.dataset.root)).as_posix()


def find_voc(root: Path) -> Path | None:
    """Return the folder of the XML annotations of a dataset: one of its subfolders, or `root`; or None."""
    if not root.is_dir():
        return None
    folders = [path for path in sorted(root.iterdir()) if path.name.lower() in ANNOTATION_FOLDERS]
    for folder in (*folders, root):
        if folder.is_dir() and any(_is_annotation(folder / name) for name in _xml_files(folder)):
            return folder
    return None


def read_voc_set(root: Path, *, allow_outside: bool = False) -> VocSet:
    """Find the files of a dataset, which may name files outside `root` with `allow_outside`.

    Raises:
        DataError: If there are none, or a list cannot be read.
    """
    annotations = find_voc(root)
    if annotations is None:
        raise DataError(
            f"{root}: no VOC dataset there. It needs XML files in {ANNOTATIONS}/, or beside the images."
        )
    folders = [path for path in sorted(root.iterdir()) if path.name.lower() in IMAGE_FOLDERS]
    images = next((path for path in (*folders, annotations) if path.is_dir() and list_images(path)), root)
    files = sorted(_xml_files(annotations))
    if annotations == root:
        files = [name for name in files if _is_annotation(root / name)]
    stems = [name.removesuffix(PurePosixPath(name).suffix) for name in files]
    splits = _read_lists(root, annotations) or _split_by_folder(stems)
    return VocSet(
        root=root,
        annotations=annotations,
        images=images,
        stems=splits or {UNSPLIT: stems},
        has_lists=(root / LISTS).is_dir() and UNSPLIT not in splits,
        allow_outside=allow_outside,
    )


def _xml_files(folder: Path) -> Iterable[str]:
    return (name for name in walk_files(folder) if name.lower().endswith(".xml"))


def _is_annotation(path: Path) -> bool:
    """Whether an XML file begins like an annotation of an image, in any encoding, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES).replace(b"\0", b"").lower()
    except OSError:
        return True
    return ROOT_TAG.search(head) is not None


def write_voc(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write annotations, lists and categories; the caller writes the images.

    Args:
        splits: Splits with the same classes, by name.
        names: New name of each image of each split, relative to `JPEGImages`.
        root: Existing folder.

    Raises:
        DataError: If the format cannot represent the name of a category.
    """
    first = next(iter(splits.values()))
    refuse_class_names(first, "VOC")
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


def _read_lists(root: Path, annotations: Path) -> dict[str, list[str]]:
    """Return the stems of each list; those of single classes are joined only where there are no others."""
    paths = sorted((root / LISTS).glob("*.txt"))
    lists = {path.stem: path for path in paths if not _is_class_list(annotations, path)}
    if not lists:
        by_class: dict[str, dict[str, None]] = {}
        for path in paths:
            lines = (line.rsplit(maxsplit=1)[0] for line in read_lines(path))
            by_class.setdefault(path.stem.rpartition("_")[2], {}).update(dict.fromkeys(lines))
        return {split: list(by_class[name]) for split, name in name_splits(by_class).items()}
    splits = {split: _read_stems(lists[name], annotations) for split, name in name_splits(lists).items()}
    if TRAINVAL in splits:
        whole = set(splits[TRAINVAL])
        subsets = {
            name: set(stems) for name, stems in splits.items() if name != TRAINVAL and whole >= set(stems)
        }
        if not subsets.keys().isdisjoint(("train", "val")) and set().union(*subsets.values()) == whole:
            del splits[TRAINVAL]
            logger.info("%s: skipped, because it repeats %s", lists[TRAINVAL], " and ".join(subsets))
    return splits


def _read_stems(path: Path, annotations: Path) -> list[str]:
    """Return the lines of a list without the suffixes of images; `a.jpg` stays if there is an `a.jpg.xml`."""
    lines = (PurePosixPath(line) for line in read_lines(path))
    return [(line.with_suffix("") if _names_image(line, annotations) else line).as_posix() for line in lines]


def _names_image(line: PurePosixPath, annotations: Path) -> bool:
    return line.suffix.lower() in IMAGE_SUFFIXES and not is_file(annotations / f"{line}.xml")


def _split_by_folder(stems: Sequence[str]) -> dict[str, list[str]]:
    """Return the stems of each subfolder that is named for a split."""
    by_folder: dict[str, list[str]] = {}
    for stem in stems:
        by_folder.setdefault(stem.partition("/")[0] if "/" in stem else "", []).append(stem)
    return {split: by_folder[name] for split, name in name_splits(by_folder).items() if split in SPLITS}


def _is_class_list(annotations: Path, path: Path) -> bool:
    """Whether a list is of a single class, such as pit_train.txt: all its lines end in -1, 0 or 1."""
    if path.stem in (*SPLITS, TRAINVAL):
        return False
    lines = read_lines(path)
    # Image names may end like that too, such as `part 1.png`.
    return (
        bool(lines)
        and all(CLASS_LIST_LINE.fullmatch(line) for line in lines)
        and not (annotations / f"{lines[0]}.xml").is_file()
    )


def _read_categories(dataset: VocSet) -> list[Entry]:
    path = dataset.root / CATEGORIES_NAME
    if not path.is_file():
        names = set()
        for name in _xml_files(dataset.annotations):
            try:
                root = read_xml(dataset.annotations / name)
            except (DataError, FileNotFoundError):
                continue  # named by the split that lists it
            names |= {_text(entry, "name") for entry in root.iter("object")}
        return [{"id": number, "name": name} for number, name in enumerate(sorted(names - {""}), start=1)]
    try:
        categories: Any = read_json(path)
        return [{"id": whole_number(row["id"]), "name": str(row["name"])} for row in categories]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
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
    where, log, dataset = reading.where(stem), reading.log, reading.dataset
    path = dataset.annotations / f"{stem}.xml"
    if not (dataset.allow_outside or lies_below(path, dataset.root)):
        log.add("unreadable", where, f"{log.split}.txt: {stem!r} leads out of {dataset.root}. {OUTSIDE}")
        return
    try:
        root = read_xml(path)
    except FileNotFoundError:
        message = (
            f"{where}: no such annotation file, but {log.split}.txt lists it. Add it, even without boxes."
        )
        log.add("unreadable", where, message)
        return
    except DataError as error:
        log.add("unreadable", where, str(error).replace(str(reading.dataset.root / where), where))
        return
    file_name = _find_image(reading, where, stem, given=_text(root, "filename"))
    if file_name is None:
        return
    size = root.find("size")
    width, height = _number(size, "width"), _number(size, "height")
    if width is None or height is None or not 1 <= min(width, height) <= max(width, height) < MAX_SIDE_PX:
        try:
            height, width = read_size(reading.dataset.images / file_name)
        except DataError as error:
            log.add("corrupt_image", file_name, str(error))
            return
    entry = {"id": number, "file_name": file_name, "width": int(width), "height": int(height)}
    reading.images.append(entry)
    for place, element in enumerate(root.iter("object"), start=1):
        _read_object(reading, entry, where, place, element)


def _find_image(reading: _Reading, where: str, stem: str, *, given: str) -> str | None:
    """Return the image of an annotation file by its name, or by the file name in it; or add the problem."""
    lookup = reading.index.find_stem(stem)
    if lookup.path is not None:
        return lookup.path
    # Other tools write the name alone, whatever folder the image lies in.
    same = [name for name in lookup.candidates if PurePosixPath(name).name == PurePosixPath(given).name]
    if len(same) == 1:
        return same[0]
    if lookup.candidates:
        names = " and ".join(lookup.candidates)
        message = (
            f"{where}: belongs to {names}, and its filename {given!r} is none of them. Name "
            f"one of them there, and rename or remove the other."
        )
        reading.log.add("repeated_id", lookup.candidates[0], message)
        return None
    lookup = reading.index.find(given) if given else lookup
    if lookup.path is None:
        name = given or stem
        fitting = f", but {' or '.join(lookup.candidates)} may be meant" if lookup.candidates else ""
        folder = reading.dataset.images
        message = (
            f"{where}: its image {name!r} is not in {folder}{fitting}. Add it, or correct the name."
            f"{lookup.advice}"
        )
        reading.log.add("ambiguous_image" if fitting else "missing_image", name, message)
    return lookup.path


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


def _find_files_without_image(reading: _Reading) -> None:
    """Report the annotation files that have no image and that no list names."""
    dataset, index = reading.dataset, reading.index
    stems = {name.removesuffix(PurePosixPath(name).suffix) for name in _xml_files(dataset.annotations)}
    for stem in sorted(stems.difference(*dataset.stems.values())):
        lookup = index.find_stem(stem)
        where = reading.where(stem)
        try:
            given = _text(read_xml(dataset.annotations / f"{stem}.xml"), "filename")
        except (DataError, FileNotFoundError):
            given = ""
        if lookup.path or lookup.candidates or (given and index.find(given).path):
            continue  # the image is reported as one that no split lists
        message = (
            f"{where}: there is no image for this file in {dataset.images.name}, and no list in {LISTS} "
            f"names it. Add the image and list it, or remove the file."
        )
        reading.log.add("missing_image", where, message)
