"""Everything that is wrong or worth knowing in a dataset, found before a run and not in the middle of it."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from deim.curation.duplicates import Duplicate, count_plain, find_exact, find_near, hash_equal_lengths
from deim.data.dataset import describe_size_difference
from deim.data.formats.coco import RawSplit, annotation_name, annotation_problems, find_problems
from deim.data.formats.issues import ERRORS, WARNINGS, Issue
from deim.data.formats.read import Format, read_raw, split_names
from deim.data.formats.yolo import IMAGE_SUFFIXES
from deim.data.images.read import UPRIGHT
from deim.data.images.scan import ImageFacts, scan_images
from deim.errors import DataError
from deim.files import raise_listed

SMALLEST_SIDE_PX = 4.0
"""At the training size; a box with a shorter side is reported."""
OVERHANG_PX = 1.0
SAME_BOX_PX = 0.5
SHOWN_OF_A_RULE: Final = 5
"""Issues of a rule that `describe_check` prints; the JSON file has all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """What a check found."""

    splits: Mapping[str, Mapping[str, Any]]
    """Of each split: images, images without boxes, boxes, crowd regions, boxes of each class."""
    issues: tuple[Issue, ...]
    notes: tuple[str, ...]
    """What was not checked, with its count."""

    @property
    def num_errors(self) -> int:
        """Issues that stop a run."""
        return sum(issue.severity == "error" for issue in self.issues)

    def counts(self) -> dict[str, int]:
        """Issues of each rule, in the order of `formats/issues.py`; 0 for most, one hopes."""
        found = Counter(issue.rule for issue in self.issues)
        return {rule: found[rule] for rule in (*ERRORS, *WARNINGS)}

    def to_dict(self) -> dict[str, Any]:
        """The report for a JSON file."""
        return {
            "num_errors": self.num_errors,
            "num_warnings": len(self.issues) - self.num_errors,
            "counts": self.counts(),
            "notes": list(self.notes),
            "splits": {name: dict(split) for name, split in self.splits.items()},
            "issues": [issue.to_dict() for issue in self.issues],
        }

    def raise_errors(self) -> None:
        """Refuse the dataset.

        Raises:
            DataError: If there are errors; the first 20 are listed.
        """
        raise_listed([issue.message for issue in self.issues if issue.severity == "error"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listed:
    """One image of one split."""

    raw: RawSplit
    name: str
    size_hw: tuple[int, int]
    path: Path


def read_for_check(root: Path, data_format: Format) -> tuple[dict[str, RawSplit], list[Issue]]:
    """All splits of a dataset that can be read, and why the others cannot.

    Raises:
        DataError: If there is no such dataset.
    """
    raws, issues = {}, []
    for name in split_names(root, data_format):
        try:
            raws[name] = read_raw(root, data_format, name)
        except DataError as error:
            issues.append(Issue(rule="unreadable", split=name, file=name, message=str(error)))
    return raws, issues


def check_dataset(
    raws: Mapping[str, RawSplit],
    *,
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
    tile_size: int | None = None,
    full: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    unread: Sequence[Issue] = (),
    workers: int = 2,
    progress: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Check the splits of a dataset, each for itself and against one another.

    Args:
        raws: What the files say, by the name of the split.
        input_size_hw: Training size, in pixels.
        resize: How an image becomes that size.
        tile_size: Side of the tiles that become that size instead, in pixels; None for whole images.
        full: Decode every image, which finds damage inside and images that were saved again. Else only
            headers are read, and only files of equal length compared: the form that runs before training.
        groups: Group of each image of each split, in its order; None if there are no groups.
        unread: Why other splits could not be read.
        workers: Images decoded at a time.
        progress: Called with the number of images done.
    """
    listed = [
        _Listed(
            raw=raw,
            name=image["file_name"],
            size_hw=(image["height"], image["width"]),
            path=raw.image_dir / image["file_name"],
        )
        for raw in raws.values()
        for image in raw.images
    ]
    paths = [image.path for image in listed]
    facts = scan_images(paths, decode=full, workers=workers, progress=progress)
    split_of = [image.raw.name for image in listed]
    hashes = [fact.sha256 for fact in facts] if full else hash_equal_lengths(paths)
    duplicates = [*find_exact(hashes, split_of), *(find_near(facts, split_of) if full else ())]
    issues = [*unread]
    for raw in raws.values():
        problems = find_problems(raw)
        issues += [*problems, *_repeated_annotations(raw)]
        issues += _box_warnings(raw, input_size_hw, resize, tile_size)
    issues += _image_issues(listed, facts)
    issues += [_duplicate_issue(listed, duplicate) for duplicate in duplicates]
    issues += _class_issues(raws)
    issues += _group_overlaps(raws, groups or {})
    notes = []
    if unread:
        notes.append("files that no split lists were not looked for, since a split could not be read")
    else:
        issues += _unlisted(raws)
    plain = count_plain(facts)
    if plain:
        notes.append(f"{plain} images are too plain to be compared with others but byte for byte")
    return CheckReport(
        splits={name: _summary(raw) for name, raw in raws.items()},
        issues=tuple(issues),
        notes=tuple(notes),
    )


def describe_check(report: CheckReport) -> list[str]:
    """The report for the terminal, line by line."""
    rows = [("split", "images", "without boxes", "boxes", "crowd regions")]
    rows += [
        (name, str(split["images"]), str(split["without_boxes"]), str(split["boxes"]), str(split["crowds"]))
        for name, split in report.splits.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    meanings = {**ERRORS, **WARNINGS}
    for rule, count in report.counts().items():
        if not count:
            continue
        kind = "error" if rule in ERRORS else "warning"
        lines += ["", f"{kind}  {rule}  {count}: {meanings[rule]}"]
        messages = [issue.message for issue in report.issues if issue.rule == rule]
        lines += [f"  {message}" for message in messages[:SHOWN_OF_A_RULE]]
        if count > SHOWN_OF_A_RULE:
            lines.append(f"  … and {count - SHOWN_OF_A_RULE} more in the JSON file")
    num_warnings = len(report.issues) - report.num_errors
    lines += ["", *(f"note  {note}" for note in report.notes)]
    lines.append(f"{report.num_errors} errors, {num_warnings} warnings")
    return lines


def _summary(raw: RawSplit) -> dict[str, Any]:
    names = {category["id"]: category["name"] for category in raw.categories}
    boxes = [annotation for annotation in raw.annotations if not annotation.get("iscrowd", 0)]
    with_boxes = {annotation["image_id"] for annotation in boxes}
    by_class = Counter(names.get(annotation["category_id"]) for annotation in boxes)
    return {
        "annotations": str(raw.annotations_path),
        "images": len(raw.images),
        "without_boxes": sum(image["id"] not in with_boxes for image in raw.images),
        "boxes": len(boxes),
        "crowds": len(raw.annotations) - len(boxes),
        "boxes_by_class": {str(name): by_class[name] for name in names.values()},
    }


def _repeated_annotations(raw: RawSplit) -> Iterator[Issue]:
    """Ids of several annotations; nothing is lost by them but the use of the id."""
    where = raw.annotations_path.name
    counts = Counter(annotation["id"] for annotation in raw.annotations if "id" in annotation)
    for value, count in counts.items():
        if count > 1:
            message = (
                f"{where}: annotation id {value!r} is used {count} times. Other programs may keep the last "
                f"of them alone: give each its own."
            )
            yield Issue(rule="repeated_annotation", split=raw.name, file=where, message=message)


def _box_warnings(
    raw: RawSplit,
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
    tile_size: int | None,
) -> Iterator[Issue]:
    """What is worth knowing of the boxes that are not refused."""
    images = {image["id"]: image for image in raw.images}
    known = {category["id"] for category in raw.categories}
    seen: dict[tuple[Any, ...], list[tuple[str, Sequence[float]]]] = {}
    for number, annotation in enumerate(raw.annotations):
        name = annotation_name(annotation, number)
        image, bbox = images.get(annotation["image_id"]), annotation["bbox"]
        if image is None or annotation_problems(annotation, image, known):
            continue
        size_hw = (image["height"], image["width"])
        remarks = list(_remarks(annotation, size_hw, input_size_hw, resize, tile_size))
        same = seen.setdefault((annotation["image_id"], annotation["category_id"]), [])
        twin = next((other for other, box in same if _is_same_box(box, bbox)), None)
        if twin is not None:
            remarks.append(("duplicate_box", f"is the box of annotation {twin} again. Remove one of them."))
        same.append((name, bbox))
        label = f"{raw.annotations_path.name}: annotation {name} (image {image['file_name']!r})"
        for rule, problem in remarks:
            yield Issue(
                rule=rule,
                split=raw.name,
                file=image["file_name"],
                annotation=name,
                message=f"{label} {problem}",
            )


def _remarks(
    annotation: Mapping[str, Any],
    size_hw: tuple[int, int],
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
    tile_size: int | None,
) -> Iterator[tuple[str, str]]:
    """Rule and description of what is worth knowing of one box."""
    left, top, width, height = annotation["bbox"]
    beyond = max(-left, -top, left + width - size_hw[1], top + height - size_hw[0])
    if beyond > OVERHANG_PX:
        yield (
            "overhanging_box",
            f"reaches {beyond:.1f} px beyond its image: box {annotation['bbox']}, image "
            f"{size_hw[1]}x{size_hw[0]} px. Training clips it.",
        )
    visible_wh = _visible_side(left, width, size_hw[1]), _visible_side(top, height, size_hw[0])
    shown_hw = size_hw if tile_size is None else (min(size_hw[0], tile_size), min(size_hw[1], tile_size))
    width_px, height_px = at_input_size(visible_wh, shown_hw, input_size_hw, resize)
    tiles = "data.tiles" if tile_size is None else f"smaller tiles than of {tile_size} px"
    if min(width_px, height_px) < SMALLEST_SIDE_PX and not annotation.get("iscrowd", 0):
        yield (
            "small_box",
            f"is {width_px:.1f}x{height_px:.1f} px at the training size of "
            f"{input_size_hw[1]}x{input_size_hw[0]}. Train at a larger size, or with {tiles}.",
        )


def _visible_side(start: float, length: float, limit: int) -> float:
    return min(start + length, limit) - max(start, 0)


def at_input_size(
    side_wh: tuple[float, float],
    size_hw: tuple[int, int],
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
) -> tuple[float, float]:
    """Width and height of a box at the training size, in pixels."""
    scale_y, scale_x = input_size_hw[0] / size_hw[0], input_size_hw[1] / size_hw[1]
    if resize == "letterbox":
        scale_y = scale_x = min(scale_y, scale_x)
    return side_wh[0] * scale_x, side_wh[1] * scale_y


def _is_same_box(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= SAME_BOX_PX for a, b in zip(one, other, strict=True))


def _image_issues(listed: Sequence[_Listed], facts: Sequence[ImageFacts]) -> Iterator[Issue]:
    """What is wrong with files; absent ones are named by `find_problems`."""
    for image, fact in zip(listed, facts, strict=True):
        split, where = image.raw.name, image.raw.annotations_path.name
        if fact.header_problem:
            if image.path.is_file():
                yield Issue(rule="corrupt_image", split=split, file=image.name, message=fact.header_problem)
            continue
        if fact.content_problem:
            message = (
                f"{where}: image {image.name!r} is cut short or damaged inside ({fact.content_problem}). "
                f"Replace or remove it."
            )
            yield Issue(rule="truncated_image", split=split, file=image.name, message=message)
        if fact.size_hw is not None and fact.size_hw != image.size_hw:
            message = describe_size_difference(where, image.name, image.size_hw, fact.size_hw)
            yield Issue(rule="size_differs", split=split, file=image.name, message=message)
        elif fact.orientation != UPRIGHT:
            message = (
                f"{where}: image {image.name!r} is turned by its EXIF data (orientation {fact.orientation}). "
                f"Training turns it upright: its boxes must have been drawn on the upright view."
            )
            yield Issue(rule="exif_rotation", split=split, file=image.name, message=message)


def _duplicate_issue(listed: Sequence[_Listed], duplicate: Duplicate) -> Issue:
    image, earlier = listed[duplicate.index], listed[duplicate.earlier]
    is_across = image.raw.name != earlier.raw.name
    rule = f"{'' if duplicate.is_exact else 'near_'}duplicate_{'across' if is_across else 'within'}"
    how = "the bytes of" if duplicate.is_exact else "the same content as"
    advice = "Keep it in one split alone" if is_across else "Remove one of them"
    message = (
        f"{image.raw.annotations_path.name}: image {image.name!r} ({image.raw.name}) has {how} "
        f"{earlier.name!r} ({earlier.raw.name}). {advice}."
    )
    return Issue(rule=rule, split=image.raw.name, file=image.name, message=message)


def _class_issues(raws: Mapping[str, RawSplit]) -> Iterator[Issue]:
    """Classes that a split lacks, or that training does not know."""
    counts = {name: _summary(raw)["boxes_by_class"] for name, raw in raws.items() if raw.images}
    known = counts.get("train")
    for name in dict.fromkeys(name for of_split in counts.values() for name in of_split):
        for split, of_split in counts.items():
            where = raws[split].annotations_path.name
            if known is not None and name not in known:
                if name in of_split:
                    message = (
                        f"{where}: class {name!r} of split {split} is not known to train, which has "
                        f"{', '.join(known)}. Classes are matched by name: rename it, remove it, or train "
                        f"with it."
                    )
                    yield Issue(rule="class_not_trained", split=split, file=where, message=message)
            elif not of_split.get(name):
                others = ", ".join(f"{boxes.get(name, 0)} in {other}" for other, boxes in counts.items())
                what = "learned" if split == "train" else "scored"
                message = f"{where}: class {name!r} has no box in {split}, so it cannot be {what} ({others})."
                yield Issue(rule="class_without_boxes", split=split, file=where, message=message)


def _group_overlaps(raws: Mapping[str, RawSplit], groups: Mapping[str, Sequence[str]]) -> Iterator[Issue]:
    """Groups that a split shares with an earlier one."""
    first_of: dict[str, tuple[str, str]] = {}
    for split, of_images in groups.items():
        raw = raws[split]
        counts = Counter(of_images)
        for image, group in zip(raw.images, of_images, strict=True):
            owner, example = first_of.setdefault(group, (split, image["file_name"]))
            if owner != split and counts.pop(group, 0):
                message = (
                    f"{raw.annotations_path.name}: group {group!r} is in split {owner} (such as {example!r}) "
                    f"and in {split} (such as {image['file_name']!r}). Split again with tools/data.py split."
                )
                yield Issue(rule="group_across", split=split, file=image["file_name"], message=message)


def _unlisted(raws: Mapping[str, RawSplit]) -> Iterator[Issue]:
    """Image files in the folders of images that no split lists."""
    listed = {(raw.image_dir / image["file_name"]).resolve() for raw in raws.values() for image in raw.images}
    # Damaged images of YOLO sets are known by a issue alone.
    listed |= {(raw.image_dir / issue.file).resolve() for raw in raws.values() for issue in raw.issues}
    users: dict[Path, list[RawSplit]] = {}
    for raw in raws.values():
        users.setdefault(raw.image_dir, []).append(raw)
    for folder, of_folder in users.items():
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve() not in listed:
                splits = ", ".join(raw.name for raw in of_folder)
                name = path.relative_to(folder).as_posix()
                message = (
                    f"{folder}: image {name!r} is in no split ({splits}). List it, even without boxes, or "
                    f"remove it."
                )
                yield Issue(rule="unlisted_image", split=splits, file=name, message=message)
