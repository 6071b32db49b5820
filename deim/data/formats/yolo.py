"""YOLO datasets: a description, folders of images, and a text file of boxes for each image.

The description is a `data.yaml`, the `obj.data` of Darknet, or a list of class names such as `classes.txt`.
The text file of an image has its name, in the folder `labels` in place of `images`, or beside the image.

A line of a text file is `class center-x center-y width height`: the position of the class in `names`, from 0,
and fractions of the image. A line with an outline (`class x1 y1 x2 y2 …`, at least three points) stands for
the box around it. The additional key `category_ids` of `data.yaml` holds the ids of a COCO file, in the order
of `names`; without it the id of a class is its position in `names`.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import yaml

from deim.data.formats.issues import IssueLog
from deim.data.formats.names import SPLITS, UNSPLIT, WORDS, Format, name_splits, split_words
from deim.data.formats.split import CocoSplit, Entry, RawSplit, refuse_class_names
from deim.data.formats.values import polygon_box, whole_number
from deim.data.images.folder import OUTSIDE, ImageIndex, is_dir, is_file, list_images, path_parts
from deim.data.images.read import read_size
from deim.errors import DataError
from deim.files import lies_below
from deim.parse import parse_yaml, read_lines, read_text

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
"""Lists of class names, one a line, as labeling tools write them."""
MIN_PIXELS = 2.0
"""A larger value is no fraction that reaches a little beyond the image, but a number of pixels."""
NAMES_KEY: Final = re.compile(r"^names\s*:", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class YoloSet:
    """Description of a dataset."""

    path: Path
    """`data.yaml`, `obj.data`, or the list of class names."""
    root: Path
    """Folder to which the splits are relative."""
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """Id of each name."""
    places: Mapping[str, tuple[str, ...]]
    """Folders of images, or text files that list images, of each split, as given."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Message about each split that the description names, that is not there, and that no run needs."""
    allow_outside: bool = False
    """Whether images may lie outside the folder of `path`."""
    has_keypoints: bool = False
    """Whether keypoints follow the box in a line."""
    format: Format = "yolo"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, train, val and test first."""
        return tuple(self.places)

    def read(self, split: str) -> RawSplit:
        """Read a split without validating its boxes; sizes come from the images.

        Args:
            split: One of `splits`.

        Returns:
            The split, images in the order of their names, or of their list. Ids of images are 1, 2, 3, …; the
            id of an annotation is its file and line.

        Raises:
            DataError: If there is no such split.
        """
        return _read_split(self, split)


def find_yolo(root: Path) -> Path | None:
    """Return the file that describes a YOLO dataset: `root`, or a file in it; None if there is none."""
    if root.is_file():
        return root if root.suffix in (".yaml", ".yml", ".data") else None
    others = sorted(
        path for path in root.glob("*.y*ml") if path.name not in YAML_NAMES and _names_classes(path)
    )
    for path in (*(root / name for name in YAML_NAMES), *others, *sorted(root.glob("*.data"))):
        if path.is_file():
            return path
    folders = [root, root / "labels", *sorted(path for path in root.glob("*") if path.is_dir())]
    lists = [folder / name for folder in folders for name in CLASS_FILES if (folder / name).is_file()]
    return lists[0] if lists and has_labels(root) else None


def has_labels(root: Path) -> bool:
    """Whether any image below a folder has a text file of boxes."""
    return any(_label_of(root / image).is_file() for image in list_images(root))


def read_yolo_set(root: Path, *, allow_outside: bool = False) -> YoloSet:
    """Read the description of a dataset.

    Args:
        root: Folder of the dataset, or the file that describes it. A folder with only a list of class names
            has the splits that its subfolders, or those of `images/`, are named for; or the one split `all`.
        allow_outside: Whether the description may name files outside its folder.

    Raises:
        DataError: If there is no description or it is wrong.
    """
    path = find_yolo(root)
    if path is None:
        raise DataError(
            f"{root}: no YOLO dataset there. It needs a data.yaml with 'names', 'train' and 'val', or "
            f"{CLASS_FILES[0]} and a text file of boxes for each image."
        )
    folder = root if root.is_dir() else root.parent
    if path.suffix == ".data":
        return replace(_read_darknet(path), allow_outside=allow_outside)
    if path.suffix not in (".yaml", ".yml"):
        names = tuple(read_lines(path))
        ids = tuple(range(len(names)))
        return YoloSet(
            path=path,
            root=folder,
            names=names,
            category_ids=ids,
            places=_find_folders(folder),
            allow_outside=allow_outside,
        )
    content = _read_yaml(path)
    names = _read_names(path, content)
    given = {
        str(key): _as_texts(value) for key, value in content.items() if str(key).lower() in WORDS and value
    }
    places = {split: given[key] for split, key in name_splits(given).items()}
    base = _base_folder(path, content, allow_outside=allow_outside)
    absent = {}
    if "test" in places and len(places) > 1:
        try:
            _find_places(path, base, "test", places["test"], allow_outside=allow_outside)
        except DataError as error:
            absent["test"] = str(error)
            del places["test"]
    if not places:
        raise DataError(
            f"{path}: names no split. Give the folders of the images as 'train', 'val' and 'test'."
        )
    return YoloSet(
        path=path,
        root=base,
        names=names,
        category_ids=_read_ids(path, content, names),
        places=places,
        absent=absent,
        allow_outside=allow_outside,
        has_keypoints="kpt_shape" in content,
    )


def _names_classes(path: Path) -> bool:
    try:
        return NAMES_KEY.search(read_text(path)) is not None
    except (DataError, OSError):
        return False


def _read_darknet(path: Path) -> YoloSet:
    """Read an `obj.data`, whose paths begin with the folder of the training program."""
    lines = (line.partition("=") for line in read_text(path).splitlines() if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in lines}
    list_path = _find_end(path.parent, content.get("names", ""))
    if list_path is None or not list_path.is_file():
        raise DataError(
            f"{path}: names: there is no {content.get('names')!r} in {path.parent}. Put the list of class "
            f"names there."
        )
    names = tuple(read_lines(list_path))
    given = {key: (value,) for key, value in content.items() if key.lower() in WORDS and value}
    places = {split: given[key] for split, key in name_splits(given).items()}
    if not places:
        raise DataError(f"{path}: names no split. Give the lists of images as 'train' and 'valid'.")
    ids = tuple(range(len(names)))
    return YoloSet(path=path, root=path.parent, names=names, category_ids=ids, places=places)


def _find_folders(root: Path) -> dict[str, tuple[str, ...]]:
    """Return the folders of the splits of a dataset that only lists its classes."""
    base = "images" if (root / "images").is_dir() else "."
    folders = [path.name for path in (root / base).iterdir() if path.is_dir() and list_images(path)]
    splits = {split: name for split, name in name_splits(folders).items() if split in SPLITS}
    return {split: (f"{base}/{name}",) for split, name in splits.items()} or {UNSPLIT: (base,)}


def _find_end(root: Path, text: str) -> Path | None:
    """Return the file or folder below `root` that shares the longest end with a path."""
    parts = path_parts(text)
    # The last word for a split must stay: `test/images` is not all of `images`.
    named = [place for place, part in enumerate(parts) if split_words(part)]
    last = named[-1] if named else len(parts) - 1
    ends = (root.joinpath(*parts[start:]) for start in range(last + 1))
    return next((path for path in ends if is_file(path) or is_dir(path)), None)


def _read_split(dataset: YoloSet, split: str) -> RawSplit:
    if split in dataset.absent:
        raise DataError(dataset.absent[split])
    if split not in dataset.places:
        raise DataError(
            f"split {split!r}: {dataset.path} names none. Choose one of {', '.join(dataset.splits)}."
        )
    places = _find_places(
        dataset.path, dataset.root, split, dataset.places[split], allow_outside=dataset.allow_outside
    )
    image_dir = places[0] if len(places) == 1 and places[0].is_dir() else dataset.root
    images: list[Entry] = []
    annotations: list[Entry] = []
    log = IssueLog(split=split)
    paths = list(_image_paths(dataset, places, log))
    label_paths: set[Path] = set()
    for number, path in enumerate(paths, start=1):
        name, labels = _relative(path, image_dir), _label_of(path)
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
            log.add("corrupt_image", name, str(error))
            continue
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes = _read_labels(labels, dataset, (height, width), log)
        annotations += [{**box, "image_id": number} for box in boxes]
    if paths and not any(path.is_file() for path in label_paths):
        example = _relative(_label_of(paths[0]), dataset.root)
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
        notes=tuple(
            f"{given!r} is not there; {_relative(place, dataset.root)!r} is read instead"
            for given, place in zip(dataset.places[split], places, strict=True)
            if os.path.normpath(dataset.root / given) != os.path.normpath(place)
        ),
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


def _label_of(image: Path) -> Path:
    """Return the file of the boxes of an image, in `labels` or beside the image."""
    usual, beside = label_path(image), image.with_suffix(".txt")
    return beside if beside.is_file() and not usual.is_file() else usual


def write_yolo(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    """Write labels and `data.yaml`; the caller writes the images.

    Args:
        splits: Splits with the same classes, by name.
        names: New name of each image of each split, relative to its image folder.
        root: Existing folder.

    Raises:
        DataError: If there are crowd regions or names of classes, which the format cannot represent.
    """
    first = next(iter(splits.values()))
    refuse_class_names(first, "YOLO")
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
    content = parse_yaml(read_text(path), str(path))
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
    count = content.get("nc")
    if count is not None and str(count).strip() != str(len(names)):
        raise DataError(f"{path}: nc: got {count!r}, 'names' has {len(names)} names. Make them agree.")
    return tuple(map(str, names))


def _read_ids(path: Path, content: Entry, names: Sequence[str]) -> tuple[int, ...]:
    ids = content.get("category_ids", list(range(len(names))))
    try:
        numbers = tuple(map(whole_number, ids))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if not isinstance(ids, list) or len(numbers) != len(names):
        raise DataError(
            f"{path}: category_ids: got {ids!r:.80}. It must have one whole number for each name."
        )
    return numbers


def _base_folder(path: Path, content: Entry, *, allow_outside: bool) -> Path:
    """Return the folder to which the splits are relative: that of `path:` if allowed, or the file's."""
    given = content.get("path")
    base = path.parent / str(given) if given else path.parent
    may_be_used = is_dir(base) and (allow_outside or lies_below(base, path.parent))
    return base if may_be_used else path.parent


def _as_texts(entry: object) -> tuple[str, ...]:
    return tuple(map(str, entry if isinstance(entry, list) else [entry]))


def _find_places(
    path: Path, root: Path, split: str, texts: Sequence[str], *, allow_outside: bool
) -> tuple[Path, ...]:
    """Return the folders and lists of a split.

    Raises:
        DataError: If one of them is not there, or outside the folder of `path` and that is not allowed.
    """
    places = []
    for text in texts:
        # Exports write `../train/images` for train/images beside the file, or the folder of another machine.
        given = root / text
        is_there = is_file(given) or is_dir(given)
        may_be_used = is_there and (allow_outside or lies_below(given, path.parent))
        place = given if may_be_used else _find_end(root, text)
        if place is None and is_there:
            raise DataError(f"{path}: {split}: {given} lies outside {path.parent}. {OUTSIDE}")
        if place is None:
            raise DataError(
                f"{path}: {split}: there is no {root / text}. Name a folder of images, "
                f"or a text file that lists them; or remove the line if there is no such split."
            )
        places.append(place)
    return tuple(places)


def _image_paths(dataset: YoloSet, places: Sequence[Path], log: IssueLog) -> Iterator[Path]:
    """Yield the images of a split; those of a list that are not there become issues."""
    for place in places:
        if place.is_dir():
            yield from (place / name for name in list_images(place))
            continue
        index = ImageIndex(dataset.root, allow_outside=dataset.allow_outside)
        for line in dict.fromkeys(read_lines(place)):
            lookup = index.find(_relative(place.parent / line, dataset.root))
            lookup = lookup if lookup.path or lookup.candidates else index.find(line)
            name = PurePosixPath(os.path.normpath(line)).as_posix()
            if lookup.path is not None:
                yield dataset.root / lookup.path
            elif lookup.candidates:
                message = f"{place.name}: {line!r} may be {' or '.join(lookup.candidates)}. Give its folder."
                log.add("ambiguous_image", name, message)
            else:
                message = f"{place.name}: there is no image {line!r} in {dataset.root}.{lookup.advice}"
                log.add("missing_image", name, message)


def _read_labels(path: Path, dataset: YoloSet, size_hw: tuple[int, int], log: IssueLog) -> list[Entry]:
    """Return the annotations of an image without its id; lines that are not valid become issues."""
    if not os.path.lexists(path):
        return []
    name = _relative(path, dataset.root)
    try:
        lines = read_text(path).splitlines()
    except (DataError, FileNotFoundError) as error:
        dangling = f"{name}: a link to a file that is not there. Restore the file, or remove the link."
        log.add("unreadable", name, str(error) if isinstance(error, DataError) else dangling)
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
        elif max(values) >= MIN_PIXELS:
            message = (
                f"{name}: line {number} has {max(values):g} where a fraction of the image is meant, got "
                f"{line.strip()[:60]!r}. Divide pixels by width and height of the image."
            )
            log.add("bad_box", name, message, annotation=annotation)
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
    xs, ys = [x * width for x in values[0::2]], [y * height for y in values[1::2]]
    return [round(value, 6) for value in polygon_box(xs, ys)]


def _find_labels_without_image(places: Sequence[Path], used: set[Path], root: Path, log: IssueLog) -> None:
    """Report text files of boxes that belong to no image."""
    for place in places:
        labels = label_path(place / "any").parent
        if not place.is_dir() or labels == place or not labels.is_dir():
            continue
        texts = {path for path in labels.rglob("*") if path.suffix.lower() == ".txt"}
        for path in sorted(texts - used):
            if path.name in CLASS_FILES:
                continue  # labeling tools put the names of the classes there
            name = _relative(path, root)
            if path.with_suffix(".txt") in used:
                message = f"{name}: boxes are read from {path.stem}.txt. Rename the file."
            else:
                message = f"{name}: there is no image for these boxes in {place}. Add it, or remove the file."
            log.add("missing_image", name, message)
