"""Writing a dataset in COCO, YOLO or VOC format, with its images."""

import json
import math
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, assert_never

from deim.data.formats.names import Format
from deim.data.formats.split import CocoSplit, RawSplit, has_control_character
from deim.data.formats.voc import IMAGES, write_voc
from deim.data.formats.yolo import write_yolo
from deim.errors import DataError
from deim.files import explain_full_disk, raise_listed

KEPT_FIELDS: Final = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"},
    "categories": {"id", "name"},
}
"""Fields of the entries of a COCO file that are kept, or dropped with a line of their own."""


def write_dataset(
    splits: Mapping[str, CocoSplit],
    data_format: Format,
    output: Path,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write splits and copies of their images as a new dataset.

    The folder appears only when it is complete. Images keep their names; where two splits have an image of
    the same name, each split gets a folder.

    Args:
        splits: Splits with the same classes, by name.
        data_format: Format of the new dataset.
        output: Folder to make; its parents are made too.
        names: New name of each image of each split; None keeps the names in `splits`.

    Raises:
        DataError: If `output` exists, a name leads out of the image folder, two images of a split would share
            a file, or the format cannot represent the annotations.
    """
    refuse_existing(output)
    requested = names or {name: split.file_names for name, split in splits.items()}
    names = place_names(requested, by_stem=data_format != "coco", has_split_folders=data_format == "yolo")
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        explain_full_disk(output, partial(_image_bytes, splits)),
        tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch,
    ):
        draft = Path(scratch) / "dataset"
        draft.mkdir()
        match data_format:
            case "coco":
                _write_coco(splits, names, draft)
                folders = dict.fromkeys(splits, draft / "images")
            case "yolo":
                write_yolo(splits, names, draft)
                folders = {name: draft / "images" / name for name in splits}
            case "voc":
                write_voc(splits, names, draft)
                folders = dict.fromkeys(splits, draft / IMAGES)
            case _:
                assert_never(data_format)
        for name, split in splits.items():
            for index, new_name in enumerate(names[name]):
                target = folders[name] / new_name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(split.image_path(index), target)
        draft.rename(output)


def _image_bytes(splits: Mapping[str, CocoSplit]) -> int:
    paths = (split.image_path(index) for split in splits.values() for index in range(len(split)))
    return sum(path.stat().st_size for path in paths)


def refuse_existing(output: Path) -> None:
    """Raise a DataError if a folder exists that is to be made."""
    if output.exists():
        raise DataError(f"{output}: exists already. Name a folder that does not exist, or remove it.")


def place_names(
    names: Mapping[str, Sequence[str]], *, by_stem: bool, has_split_folders: bool = False
) -> dict[str, list[str]]:
    """Return the names with the split's name as a folder if images of two splits would collide.

    Args:
        names: Requested name of each image of each split, relative to the image folder.
        by_stem: Whether names that only differ in their suffix collide, as in YOLO and VOC, where annotations
            have the name of the image.
        has_split_folders: Whether the format has a folder for each split anyway.

    Raises:
        DataError: If two images of a split would collide, or a name leads out of the image folder.
    """
    problems, owners = [], Counter[str]()
    for split, split_names in names.items():
        spellings: dict[str, list[str]] = {}
        for name in split_names:
            stem = PurePosixPath(name).with_suffix("").as_posix() if by_stem else name
            spellings.setdefault(_file_key(stem), []).append(stem)
        problems += [
            f"{split}: {len(same)} images would have the file {same[0]!r}"
            f"{'' if len(set(same)) == 1 else ' on systems that ignore case and Unicode form'}. Give each a "
            f"different name."
            for same in spellings.values()
            if len(same) > 1
        ]
        problems += [
            f"{split}: image {name!r} has a line break or control character, or a space at an end, which "
            f"lists of files cannot hold. Rename it."
            for name in split_names
            if by_stem and not _fits_a_line(name)
        ]
        problems += [
            f"{split}: image {name!r} lies outside the image folder. Move it into the folder."
            for name in split_names
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts
        ]
        owners.update(spellings.keys())
    raise_listed(problems)
    if has_split_folders or max(owners.values(), default=1) == 1:
        return {split: list(split_names) for split, split_names in names.items()}
    return {split: [f"{split}/{name}" for name in split_names] for split, split_names in names.items()}


def _file_key(name: str) -> str:
    """Return the same text for names of one file on a system that ignores case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _fits_a_line(name: str) -> bool:
    """Whether a name, and it without its suffix, can stand on a line of a list and be read again."""
    stem = PurePosixPath(name).with_suffix("").as_posix()
    return name.strip() == name and stem.strip() == stem and not has_control_character(name)


def describe_losses(raws: Mapping[str, RawSplit], data_format: Format) -> list[str]:
    """Return a line with a count for everything that a conversion of valid splits drops."""
    annotations = [annotation for raw in raws.values() for annotation in raw.annotations]
    lines = []
    outlines = sum(bool(annotation.get("segmentation")) for annotation in annotations)
    if outlines:
        lines.append(f"{outlines} outlines (segmentation) are dropped: the project trains on boxes")
    other = sorted(
        {
            key
            for raw in raws.values()
            for kind, known in KEPT_FIELDS.items()
            for entry in getattr(raw, kind)
            for key in entry.keys() - known
        }
    )
    if other:
        lines.append(f"{len(other)} fields are dropped: {', '.join(other)}")
    if data_format == "coco":
        return lines
    # Pairs of the area in the file and that of the box.
    pairs = [(annotation.get("area"), math.prod(annotation["bbox"][2:])) for annotation in annotations]
    areas = sum(area is not None and abs(area - of_box) > 1e-3 * of_box for area, of_box in pairs)
    if areas:
        lines.append(f"{areas} areas are dropped: {data_format.upper()} only keeps width and height")
    images = sum(len(raw.images) for raw in raws.values() if raw.annotations_path.suffix == ".json")
    if images:
        lines.append(
            f"{images} image ids are dropped: when read again, the images of a split are numbered from 1"
        )
    return lines


def _write_coco(splits: Mapping[str, CocoSplit], names: Mapping[str, Sequence[str]], root: Path) -> None:
    (root / "annotations").mkdir()
    for name, split in splits.items():
        content = replace(split, file_names=tuple(names[name])).to_coco()
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
