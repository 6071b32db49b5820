"""The check of a dataset: everything that is wrong or suspicious, found before a run."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from deim.config.schema import Config
from deim.curation.duplicates import Duplicate, count_plain, find_exact, find_near, hash_equal_lengths
from deim.curation.scan import ImageFacts, scan_images
from deim.curation.stats import at_input_size
from deim.data.formats.check_images import describe_size_difference
from deim.data.formats.coco import Entry, RawSplit, annotation_name, annotation_problems, find_problems
from deim.data.formats.issues import ERRORS, WARNINGS, Issue, IssueLog
from deim.data.formats.names import Format
from deim.data.formats.read import read_raw, split_names
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.read import IMAGE_SUFFIXES, UPRIGHT
from deim.data.splits import prepare_root, read_raw_split
from deim.errors import DataError
from deim.files import raise_listed
from deim.records import to_json
from deim.report.tables import format_table

logger = logging.getLogger(__name__)

MIN_SIDE_PX = 4.0
"""Boxes with a shorter side at the training size are reported."""
OVERHANG_PX = 1.0
SAME_BOX_PX = 0.5
MAX_SHOWN: Final = 5
"""Maximum number of issues of a rule in `describe_check`; the JSON file has all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """Counts of a split."""

    annotations: str
    images: int
    without_boxes: int
    boxes: int
    crowds: int
    """Number of crowd regions, which do not count as boxes."""
    boxes_by_class: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """Result of a check."""

    splits: Mapping[str, SplitSummary]
    issues: tuple[Issue, ...]
    notes: tuple[str, ...]
    """What was not checked, with its count."""

    @property
    def num_errors(self) -> int:
        """Number of issues that stop a run."""
        return sum(issue.severity == "error" for issue in self.issues)

    def counts(self) -> dict[str, int]:
        """Return the number of issues of each rule, in the order of `formats/issues.py`."""
        counts = Counter(issue.rule for issue in self.issues)
        return {rule: counts[rule] for rule in (*ERRORS, *WARNINGS)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return {
            "num_errors": self.num_errors,
            "num_warnings": len(self.issues) - self.num_errors,
            "counts": self.counts(),
            "notes": list(self.notes),
            "splits": to_json(self.splits),
            "issues": [{**to_json(issue), "severity": issue.severity} for issue in self.issues],
        }

    def raise_errors(self) -> None:
        """Reject the dataset if there are errors.

        Raises:
            DataError: If there are errors; the first 20 are listed.
        """
        raise_listed([issue.message for issue in self.issues if issue.severity == "error"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _ListedImage:
    """An image of a split."""

    raw: RawSplit
    name: str
    size_hw: tuple[int, int]
    path: Path


def check_before_run(config: Config, names: Sequence[str] = ("train", "val")) -> CheckReport:
    """Check the splits of a run in seconds: image headers, boxes, classes and identical files.

    Nothing is decoded, so this does not find damage inside images and images that were saved again:
    `deim data check` does.

    Args:
        config: The experiment.
        names: Names of the splits that it uses.

    Returns:
        The issues; `raise_errors` rejects the data if there are errors.

    Raises:
        DataError: If the files of a split cannot be read at all.
    """
    data = config.data
    prepare_root(data)
    if data.format == "coco" and data.train_annotations == data.val_annotations and "val" in names:
        logger.warning(
            "data.val_annotations: validation uses the training images, so its scores mean nothing"
        )
        names = [name for name in names if name != "val"]
    raws = {name: replace(read_raw_split(data, name), name=name) for name in names}
    report = check_dataset(raws, input_format=build_input_format(data, config.image_size_hw), decode=False)
    # An image that these splits do not list may belong to the test split.
    issues = tuple(issue for issue in report.issues if issue.rule != "unlisted_image")
    return replace(report, issues=issues)


def read_for_check(root: Path, data_format: Format) -> tuple[dict[str, RawSplit], list[Issue]]:
    """Read all splits of a dataset that can be read, and say why the others cannot.

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
    input_format: InputFormat,
    decode: bool = True,
    groups: Mapping[str, Sequence[str]] | None = None,
    unread: Sequence[Issue] = (),
    workers: int = 2,
    progress: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Check the splits of a dataset, each by itself and against the others.

    Args:
        raws: Splits by name.
        input_format: Size, resizing and tiles of training.
        decode: Whether to decode every image, which finds damage inside and images that were saved again;
            otherwise only headers are read and only files of equal length compared.
        groups: Group of each image of each split, in its order; None if there are no groups.
        unread: Issues of the splits that could not be read.
        workers: Number of images decoded at a time.
        progress: Called with the number of finished images.
    """
    listed = [
        _ListedImage(
            raw=raw,
            name=image["file_name"],
            size_hw=(image["height"], image["width"]),
            path=raw.image_dir / image["file_name"],
        )
        for raw in raws.values()
        for image in raw.images
    ]
    paths = [image.path for image in listed]
    facts = scan_images(paths, decode=decode, workers=workers, progress=progress)
    split_of = [image.raw.name for image in listed]
    hashes = [fact.sha256 for fact in facts] if decode else hash_equal_lengths(paths)
    duplicates = [*find_exact(hashes, split_of), *(find_near(facts, split_of) if decode else ())]
    summaries = {name: _summarize(raw) for name, raw in raws.items()}
    issues = [*unread]
    for raw in raws.values():
        log = IssueLog(split=raw.name, issues=find_problems(raw))
        _find_repeated_annotations(raw, log)
        _find_box_warnings(raw, input_format, log)
        issues += log.issues
    issues += _image_issues(listed, facts)
    issues += [_duplicate_issue(listed, duplicate) for duplicate in duplicates]
    issues += _class_issues(raws, summaries)
    issues += _group_overlaps(raws, groups or {})
    notes = []
    if unread:
        notes.append("unlisted files were not looked for, because a split could not be read")
    else:
        issues += _unlisted(raws)
    plain = count_plain(facts)
    if plain:
        notes.append(f"{plain} images have too little content to be compared with others except byte by byte")
    return CheckReport(splits=summaries, issues=tuple(issues), notes=tuple(notes))


def describe_check(report: CheckReport) -> list[str]:
    """Return the report for the terminal, line by line."""
    headers = ["split", "images", "without boxes", "boxes", "crowd regions"]
    rows = [
        [name, *map(str, (split.images, split.without_boxes, split.boxes, split.crowds))]
        for name, split in report.splits.items()
    ]
    lines = format_table(headers, rows).splitlines()
    meanings = {**ERRORS, **WARNINGS}
    for rule, count in report.counts().items():
        if not count:
            continue
        kind = "error" if rule in ERRORS else "warning"
        lines += ["", f"{kind}  {rule}  {count}: {meanings[rule]}"]
        messages = [issue.message for issue in report.issues if issue.rule == rule]
        lines += [f"  {message}" for message in messages[:MAX_SHOWN]]
        if count > MAX_SHOWN:
            lines.append(f"  … and {count - MAX_SHOWN} more in the JSON file")
    num_warnings = len(report.issues) - report.num_errors
    lines += ["", *(f"note  {note}" for note in report.notes)]
    lines.append(f"{report.num_errors} errors, {num_warnings} warnings")
    return lines


def _summarize(raw: RawSplit) -> SplitSummary:
    names = {category["id"]: category["name"] for category in raw.categories}
    boxes = [annotation for annotation in raw.annotations if not annotation.get("iscrowd", 0)]
    with_boxes = {annotation["image_id"] for annotation in boxes}
    by_class = Counter(names.get(annotation["category_id"]) for annotation in boxes)
    return SplitSummary(
        annotations=str(raw.annotations_path),
        images=len(raw.images),
        without_boxes=sum(image["id"] not in with_boxes for image in raw.images),
        boxes=len(boxes),
        crowds=len(raw.annotations) - len(boxes),
        boxes_by_class={str(name): by_class[name] for name in names.values()},
    )


def _find_repeated_annotations(raw: RawSplit, log: IssueLog) -> None:
    where = raw.annotations_path.name
    counts = Counter(annotation["id"] for annotation in raw.annotations if "id" in annotation)
    for value, count in counts.items():
        if count > 1:
            message = (
                f"{where}: annotation id {value!r} is used {count} times. Other programs may keep only the "
                f"last of them: give each its own id."
            )
            log.add("repeated_annotation", where, message)


def _find_box_warnings(raw: RawSplit, input_format: InputFormat, log: IssueLog) -> None:
    """Add warnings about boxes that are otherwise valid."""
    images = {image["id"]: image for image in raw.images}
    known = {category["id"] for category in raw.categories}
    seen: dict[tuple[Any, ...], list[tuple[str, Sequence[float]]]] = {}
    for number, annotation in enumerate(raw.annotations):
        name = annotation_name(annotation, number)
        image, bbox = images.get(annotation["image_id"]), annotation["bbox"]
        if image is None or annotation_problems(annotation, image, known):
            continue
        warnings = list(_warnings(annotation, (image["height"], image["width"]), input_format))
        same = seen.setdefault((annotation["image_id"], annotation["category_id"]), [])
        twin = next(
            (
                other
                for other, box in same
                if all(abs(a - b) <= SAME_BOX_PX for a, b in zip(box, bbox, strict=True))
            ),
            None,
        )
        if twin is not None:
            warnings.append(("duplicate_box", f"has the same box as annotation {twin}. Remove one of them."))
        same.append((name, bbox))
        label = f"{raw.annotations_path.name}: annotation {name} (image {image['file_name']!r})"
        for rule, problem in warnings:
            log.add(rule, image["file_name"], f"{label} {problem}", annotation=name)


def _warnings(
    annotation: Entry, size_hw: tuple[int, int], input_format: InputFormat
) -> Iterator[tuple[str, str]]:
    """Yield rule and description of each warning about one box."""
    left, top, width, height = annotation["bbox"]
    beyond = max(-left, -top, left + width - size_hw[1], top + height - size_hw[0])
    if beyond > OVERHANG_PX:
        yield (
            "overhanging_box",
            f"reaches {beyond:.1f} px beyond its image: box {annotation['bbox']}, image "
            f"{size_hw[1]}x{size_hw[0]} px. Training clips it.",
        )
    image_wh = np.array(size_hw[::-1], dtype=np.float64)
    low = np.clip([left, top], 0, image_wh)
    visible_wh = np.clip([left + width, top + height], 0, image_wh) - low
    width_px, height_px = at_input_size(visible_wh[None], image_wh[None], input_format)[0].tolist()
    tiles = input_format.tiles
    remedy = "data.tiles" if tiles is None else f"tiles smaller than {tiles.size} px"
    if min(width_px, height_px) < MIN_SIDE_PX and not annotation.get("iscrowd", 0):
        input_hw = input_format.size_hw
        yield (
            "small_box",
            f"is {width_px:.1f}x{height_px:.1f} px at the training size of "
            f"{input_hw[1]}x{input_hw[0]}. Train at a larger size, or with {remedy}.",
        )


def _image_issues(listed: Sequence[_ListedImage], facts: Sequence[ImageFacts]) -> Iterator[Issue]:
    """Yield issues of image files; `find_problems` reports missing ones."""
    for image, fact in zip(listed, facts, strict=True):
        where, name = image.raw.annotations_path.name, image.name
        log = IssueLog(split=image.raw.name)
        if fact.header_problem:
            if image.path.is_file():
                log.add("corrupt_image", name, fact.header_problem)
        elif fact.content_problem:
            message = f"{where}: image {name!r} is truncated or damaged inside ({fact.content_problem})."
            log.add("truncated_image", name, f"{message} Replace or remove it.")
        if fact.size_hw is not None and fact.size_hw != image.size_hw:
            message = describe_size_difference(where, name, image.size_hw, fact.size_hw)
            log.add("size_differs", name, message)
        elif fact.orientation != UPRIGHT:
            message = (
                f"{where}: image {name!r} is rotated by its EXIF data (orientation {fact.orientation}). "
                f"Training turns it upright: its boxes must have been drawn on the upright view."
            )
            log.add("exif_rotation", name, message)
        yield from log.issues


def _duplicate_issue(listed: Sequence[_ListedImage], duplicate: Duplicate) -> Issue:
    image, earlier = listed[duplicate.index], listed[duplicate.earlier]
    is_across = image.raw.name != earlier.raw.name
    rule = f"{'' if duplicate.is_exact else 'near_'}duplicate_{'across' if is_across else 'within'}"
    how = "the same bytes as" if duplicate.is_exact else "the same content as"
    advice = "Keep it in only one split" if is_across else "Remove one of them"
    message = (
        f"{image.raw.annotations_path.name}: image {image.name!r} ({image.raw.name}) has {how} "
        f"{earlier.name!r} ({earlier.raw.name}). {advice}."
    )
    return Issue(rule=rule, split=image.raw.name, file=image.name, message=message)


def _class_issues(raws: Mapping[str, RawSplit], summaries: Mapping[str, SplitSummary]) -> Iterator[Issue]:
    """Yield issues of classes that a split lacks, or that the training split does not list."""
    counts = {name: summaries[name].boxes_by_class for name, raw in raws.items() if raw.images}
    known = counts.get("train")
    for name in dict.fromkeys(name for by_class in counts.values() for name in by_class):
        for split, by_class in counts.items():
            where = raws[split].annotations_path.name
            if known is not None and name not in known:
                if name in by_class:
                    message = (
                        f"{where}: class {name!r} of split {split} is not in train, which has "
                        f"{', '.join(known)}. Classes are matched by name: rename it, remove it, or train "
                        f"with it."
                    )
                    yield Issue(rule="class_not_trained", split=split, file=where, message=message)
            elif not by_class.get(name):
                others = ", ".join(f"{boxes.get(name, 0)} in {other}" for other, boxes in counts.items())
                verb = "learned" if split == "train" else "evaluated"
                message = f"{where}: class {name!r} has no box in {split}, so it cannot be {verb} ({others})."
                yield Issue(rule="class_without_boxes", split=split, file=where, message=message)


def _group_overlaps(raws: Mapping[str, RawSplit], groups: Mapping[str, Sequence[str]]) -> Iterator[Issue]:
    """Yield the groups that a split shares with an earlier one."""
    first_of: dict[str, tuple[str, str]] = {}
    for split, group_names in groups.items():
        raw, reported = raws[split], set[str]()
        for image, group in zip(raw.images, group_names, strict=True):
            name = image["file_name"]
            owner, example = first_of.setdefault(group, (split, name))
            if owner != split and group not in reported:
                reported.add(group)
                message = (
                    f"{raw.annotations_path.name}: group {group!r} is in split {owner} (such as {example!r}) "
                    f"and in {split} (such as {name!r}). Split again with deim data split."
                )
                yield Issue(rule="group_across", split=split, file=name, message=message)


def _unlisted(raws: Mapping[str, RawSplit]) -> Iterator[Issue]:
    """Yield the image files in the image folders that no split lists."""
    listed = {(raw.image_dir / image["file_name"]).resolve() for raw in raws.values() for image in raw.images}
    # Damaged images of YOLO datasets are only known by an issue.
    listed |= {(raw.image_dir / issue.file).resolve() for raw in raws.values() for issue in raw.issues}
    users: dict[Path, list[RawSplit]] = {}
    for raw in raws.values():
        users.setdefault(raw.image_dir, []).append(raw)
    for folder, splits in users.items():
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.resolve() not in listed:
                names = ", ".join(raw.name for raw in splits)
                name = path.relative_to(folder).as_posix()
                message = (
                    f"{folder}: image {name!r} is in no split ({names}). List it, even without boxes, or "
                    f"remove it."
                )
                yield Issue(rule="unlisted_image", split=names, file=name, message=message)
