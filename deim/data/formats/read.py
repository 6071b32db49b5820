"""Detection of a dataset's format and files, and reading of any format to the same arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from deim.data.formats.check_images import check_images
from deim.data.formats.coco import is_coco, read_raw_coco
from deim.data.formats.names import CONTENTS, SPLITS, Format, name_splits
from deim.data.formats.split import CocoSplit, RawSplit, to_split
from deim.data.formats.voc import find_voc, read_voc_set
from deim.data.formats.yolo import find_yolo, has_labels, read_yolo_set
from deim.data.images.folder import is_hidden
from deim.errors import DataError
from deim.files import looked_in, raise_listed


class Dataset(Protocol):
    """The files of a dataset of one format."""

    @property
    def format(self) -> Format:
        """Name of the format."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, train, val and test first."""

    @property
    def absent(self) -> Mapping[str, str]:
        """Message about each split that is named, not there, and not needed."""

    def read(self, split: str) -> RawSplit:
        """Read one split without validating it.

        Raises:
            DataError: If there is no such split, or its files cannot be read at all.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoFiles:
    """Annotation file of a split, and the folders that may hold its images."""

    annotations: Path
    image_dirs: Sequence[Path]


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSet:
    """The files of a COCO dataset."""

    root: Path
    files: Mapping[str, CocoFiles]
    format: Format = "coco"
    absent: Mapping[str, str] = field(default_factory=dict)
    """No split is named and not there."""
    allow_outside: bool = False
    """Whether images may lie outside the folder."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, train, val and test first."""
        return tuple(self.files)

    def read(self, split: str) -> RawSplit:
        """Read one split without validating it.

        Raises:
            DataError: If there is no such split, or its files cannot be read at all.
        """
        if split not in self.files:
            raise DataError(f"split {split!r}: {self.root} has none. Choose one of {', '.join(self.splits)}.")
        files = self.files[split]
        raw = read_raw_coco(files.annotations, files.image_dirs, allow_outside=self.allow_outside)
        return replace(raw, name=split, issues=tuple(replace(issue, split=split) for issue in raw.issues))


def find_dataset(root: Path, data_format: Format | None = None, *, allow_outside: bool = False) -> Dataset:
    """Detect the format of a dataset and find its files.

    Args:
        root: Folder; or a `data.yaml`, or a COCO file.
        data_format: Its format; None detects it.
        allow_outside: Whether its files may name others outside the folder.

    Raises:
        DataError: If there is no such folder, it fits no format or several, or its description is wrong.
    """
    if not root.exists():
        raise DataError(f"{root}: no such folder{looked_in(root)}. Name the folder of a dataset.")
    root, formats = (root, (data_format,)) if data_format else detect_formats(root)
    if len(formats) != 1:
        what = f"looks like {' and '.join(formats)}" if formats else "no dataset there"
        if not formats and root.is_dir() and has_labels(root):
            what += ", only text files of boxes without the names of their classes: add classes.txt"
        known = "; ".join(f"{name.upper()} has {content}" for name, content in CONTENTS.items())
        raise DataError(
            f"{root}: {what}. {known}. Name the folder of one dataset, or its format with --format."
        )
    match formats[0]:
        case "yolo":
            return read_yolo_set(root, allow_outside=allow_outside)
        case "voc":
            return read_voc_set(root, allow_outside=allow_outside)
        case "coco":
            coco_files = find_coco_files(root)
            if not coco_files:
                raise DataError(
                    f"{root}: no COCO dataset there. It needs annotations/train.json and images/."
                )
            folder = root if root.is_dir() else root.parent
            return CocoSet(root=folder, files=coco_files, allow_outside=allow_outside)


def detect_formats(root: Path) -> tuple[Path, tuple[Format, ...]]:
    """Return the folder or file of a dataset, and the formats that its files fit.

    An archive often holds one folder with everything: then it is that folder.
    """
    formats: dict[Format, object] = {"yolo": find_yolo(root), "voc": find_voc(root)}
    formats["coco"] = find_coco_files(root) or None
    fitting = tuple(name for name, files in formats.items() if files is not None)
    if not fitting and root.is_dir():
        inside = [path for path in root.iterdir() if not is_hidden(Path(path.name))]
        if len(inside) == 1 and inside[0].is_dir():
            return detect_formats(inside[0])
    return root, fitting


def find_coco_files(root: Path) -> dict[str, CocoFiles]:
    """Return annotation file and image folders of each split of a COCO folder, train, val and test first.

    The files are `annotations/*.json`, or `*.json` beside the images, or JSON files in the folders of the
    splits; file and folder names are matched to splits loosely.
    """
    if root.is_file():
        root, paths = root.parent, [root] if is_coco(root) else []
    else:
        places = [root / "annotations", root / "Annotations", root]
        paths = next(filter(None, map(_coco_paths, places)), [])
    if paths:
        images = [path for path in (root / "images", root / "Images") if path.is_dir()]
        named = {path.stem: path for path in paths}
        return {
            split: CocoFiles(annotations=named[name], image_dirs=(*images, root))
            for split, name in name_splits(named).items()
        }
    by_folder = {path.name: _coco_paths(path) for path in sorted(root.glob("*"))}
    alone = {name: files[0] for name, files in by_folder.items() if len(files) == 1}
    return {
        split: CocoFiles(annotations=alone[name], image_dirs=(root / name,))
        for split, name in name_splits(alone).items()
    }


def _coco_paths(folder: Path) -> list[Path]:
    """Return the COCO files in a folder; a file with the name of a split is one, and need not be searched."""
    paths = sorted(
        path for path in folder.glob("*.json") if path.is_file() and not is_hidden(Path(path.name))
    )
    return [path for path in paths if next(iter(name_splits([path.stem]))) in SPLITS or is_coco(path)]


def read_all(dataset: Dataset) -> dict[str, RawSplit]:
    """Read all splits of a dataset without validating them.

    Raises:
        DataError: If the files of a split cannot be read at all.
    """
    return drop_placeholders({name: dataset.read(name) for name in dataset.splits})


def drop_placeholders(raws: Mapping[str, RawSplit]) -> dict[str, RawSplit]:
    """Drop the categories that only group others, such as the project's name in exports of Roboflow.

    A category is dropped if it is the supercategory of another and has no box in any of the splits.

    Returns:
        The splits, with a note about each dropped category.
    """
    used = set()
    for raw in raws.values():
        used_ids = {annotation["category_id"] for annotation in raw.annotations}
        used |= {category["name"] for category in raw.categories if category["id"] in used_ids}
    result = {}
    for name, raw in raws.items():
        above = {
            category.get("supercategory")
            for category in raw.categories
            if category["name"] != category.get("supercategory")
        }
        dropped = [row["name"] for row in raw.categories if row["name"] in above and row["name"] not in used]
        notes = [
            f"category {row!r} is dropped: it is the supercategory of others and has no box"
            for row in dropped
        ]
        kept = [row for row in raw.categories if row["name"] not in dropped]
        result[name] = replace(raw, categories=kept, notes=(*raw.notes, *notes)) if dropped else raw
    return result


def to_splits(raws: Mapping[str, RawSplit]) -> dict[str, CocoSplit]:
    """Turn the splits of a dataset into arrays; images may have any depth and channels.

    Raises:
        DataError: If any split is invalid, an image has another size than listed, or classes differ.
    """
    splits = {name: to_split(raw) for name, raw in raws.items()}
    for split in splits.values():
        check_images(split, pixels=None)
    first, *_ = splits.values()
    raise_listed(
        [
            f"{split.annotations_path.name}: the classes are {_classes(split)}, in "
            f"{first.annotations_path.name} they are {_classes(first)}. Give all splits the same list."
            for split in splits.values()
            if _classes(split) != _classes(first)
        ]
    )
    return splits


def _classes(split: CocoSplit) -> dict[int, str]:
    return dict(zip(split.category_ids, split.class_names, strict=True))
