"""The check of a dataset: everything that is wrong or suspicious, found before a run."""

import logging
import os
import unicodedata
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
from deim.data.formats.issues import ERRORS, WARNINGS, Issue
from deim.data.formats.read import Dataset, drop_placeholders
from deim.data.formats.split import (
    BoxCounts,
    Entry,
    RawSplit,
    annotation_name,
    annotation_problems,
    find_problems,
    find_untrainable,
)
from deim.data.images.folder import list_images
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.read import UPRIGHT
from deim.data.splits import prepare_root, read_raw_split
from deim.errors import DataError
from deim.files import raise_listed
from deim.metrics.coco import MAX_DETECTIONS
from deim.records import to_json

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
    counts: BoxCounts
    boxes_by_class: Mapping[str, int]
    """Number of boxes of each class, without crowd regions."""


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
        """Raise a DataError that lists the first 20 errors, if there are any."""
        raise_listed([issue.message for issue in self.issues if issue.severity == "error"])


_Listed = tuple[RawSplit, Entry]
"""An image and the split that lists it."""


def check_before_run(config: Config) -> CheckReport:
    """Check the splits of a run in seconds: image headers, boxes, classes and identical files.

    Nothing is decoded, so this does not find damage inside images and images that were saved again:
    `deim data check` does.

    Raises:
        DataError: If the files of a split cannot be read at all.
    """
    data = config.data
    prepare_root(data)
    raws = {name: replace(read_raw_split(data, name), name=name) for name in ("train", "val")}
    train, val = raws["train"], raws["val"]
    if (train.annotations_path, train.images) == (val.annotations_path, val.images):
        logger.warning(
            "data.val_annotations: validation uses the training images, so its scores mean nothing"
        )
        del raws["val"]
    max_boxes = min(config.evaluation.max_detections, config.model.decoder.num_queries)
    input_format = build_input_format(data, config.image_size_hw)
    report = check_dataset(raws, input_format=input_format, decode=False, max_boxes=max_boxes)
    overfull = [issue.message for issue in report.issues if issue.rule == "many_boxes"]
    if overfull:
        logger.warning("%s %d images have too many boxes.", overfull[0], len(overfull))
    # An image that these splits do not list may belong to the test split.
    issues = tuple(issue for issue in report.issues if issue.rule != "unlisted_image")
    return replace(report, issues=issues)


def read_for_check(dataset: Dataset) -> tuple[dict[str, RawSplit], list[Issue]]:
    """Read all splits of a dataset that can be read, and say why the others cannot."""
    raws, issues = {}, []
    for name in dataset.splits:
        try:
            raws[name] = dataset.read(name)
        except DataError as error:
            issues.append(Issue(rule="unreadable", split=name, file=name, message=str(error)))
    for name, message in dataset.absent.items():
        issues.append(Issue(rule="missing_split", split=name, file=name, message=message))
    return drop_placeholders(raws), issues


def check_dataset(
    raws: Mapping[str, RawSplit],
    *,
    input_format: InputFormat,
    decode: bool = True,
    groups: Sequence[str] | None = None,
    unread: Sequence[Issue] = (),
    max_boxes: int = MAX_DETECTIONS,
    workers: int = 2,
    progress: Callable[[int], object] = lambda _: None,
) -> CheckReport:
    """Check the splits of a dataset, each by itself and against the others.

    Args:
        raws: Splits by name.
        input_format: Size, resizing and tiles of training.
        decode: Whether to decode every image, which finds damage inside and images that were saved again;
            otherwise only headers are read and only files of equal length compared.
        groups: Group of each image, split by split; None if there are no groups.
        unread: Issues of the splits that could not be read.
        max_boxes: Detections of an image that a detector makes and COCO metrics count.
        workers: Number of images decoded at a time.
        progress: Called with the number of finished images.
    """
    listed = [(raw, image) for raw in raws.values() for image in raw.images]
    paths = [raw.image_dir / image["file_name"] for raw, image in listed]
    facts = scan_images(paths, decode=decode, pixels=input_format.pixels, workers=workers, progress=progress)
    split_of = [raw.name for raw, _ in listed]
    hashes = [fact.sha256 for fact in facts] if decode else hash_equal_lengths(paths)
    duplicates = [*find_exact(hashes, split_of), *(find_near(facts, split_of) if decode else ())]
    issues = [*unread]
    for raw in raws.values():
        issues += [*find_problems(raw), *_box_account_issues(raw, max_boxes), *_similar_classes(raw)]
        issues += [*_repeated_annotations(raw), *_box_issues(raw, input_format)]
    for image, path, fact in zip(listed, paths, facts, strict=True):
        issues += _image_issues(image, path, fact)
    issues += [_duplicate_issue(listed, duplicate) for duplicate in duplicates]
    summaries = {name: _summarize(raw) for name, raw in raws.items()}
    issues += _class_issues(raws, summaries)
    issues += [] if groups is None else _group_overlaps(listed, groups)
    notes = [f"{raw.name}: {note}" for raw in raws.values() for note in raw.notes]
    if any(issue.severity == "error" for issue in unread):
        notes.append("unlisted files were not looked for, because a split could not be read")
    else:
        issues += _unlisted(raws)
    plain = count_plain(facts)
    if plain:
        notes.append(f"{plain} images have too little content to be compared with others except byte by byte")
    return CheckReport(splits=summaries, issues=tuple(issues), notes=tuple(notes))


def describe_check(report: CheckReport) -> list[str]:
    """Return the report for the terminal, line by line."""
    lines = [f"{name}: {split.counts.describe()}" for name, split in report.splits.items()]
    for rule, count in report.counts().items():
        if not count:
            continue
        kind = "error" if rule in ERRORS else "warning"
        lines += ["", f"{kind}  {rule}  {count}: {(ERRORS | WARNINGS)[rule]}"]
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
    boxes = (annotation for annotation in raw.annotations if not annotation.get("iscrowd", 0))
    by_class = Counter(names.get(annotation["category_id"]) for annotation in boxes)
    return SplitSummary(
        annotations=str(raw.annotations_path),
        counts=raw.count_boxes(),
        boxes_by_class={str(name): by_class[name] for name in names.values()},
    )


def _issue(raw: RawSplit, rule: str, file: str, problem: str, annotation: str | None = None) -> Issue:
    """Build an issue whose message begins with the annotation file."""
    message = f"{raw.annotations_path.name}: {problem}"
    return Issue(rule=rule, split=raw.name, file=file, message=message, annotation=annotation)


def _box_account_issues(raw: RawSplit, max_boxes: int) -> Iterator[Issue]:
    """Yield issues of splits without trainable boxes, crowd regions, and images with too many boxes."""
    where, counts = raw.annotations_path.name, raw.count_boxes()
    if raw.name in ("train", "val"):
        for message in find_untrainable(where, counts):
            yield Issue(rule="no_trainable_box", split=raw.name, file=where, message=message)
    if counts.crowd and counts.trainable:
        problem = (
            f"{counts.crowd} of {counts.read} boxes are crowd regions (iscrowd or difficult), never trained "
            f"on. If they are objects, as in exports of CVAT's brush, set data.crowd_as_objects."
        )
        yield _issue(raw, "crowd_box", where, problem)
    per_image = Counter(annotation["image_id"] for annotation in raw.annotations)
    for image in raw.images:
        if per_image[image["id"]] > max_boxes:
            problem = (
                f"image {image['file_name']!r} has {per_image[image['id']]} boxes. An image has at most "
                f"{max_boxes} detections that count, so that the rest is missed: raise "
                f"evaluation.max_detections and model.decoder.num_queries."
            )
            yield _issue(raw, "many_boxes", image["file_name"], problem)


def _similar_classes(raw: RawSplit) -> Iterator[Issue]:
    """Yield names of classes that a person would take for the same."""
    groups: dict[str, list[str]] = {}
    for category in raw.categories:
        key = " ".join(unicodedata.normalize("NFKC", category["name"]).casefold().split())
        groups.setdefault(key, []).append(category["name"])
    for names in groups.values():
        if len(set(names)) > 1:
            problem = (
                f"the classes {' and '.join(map(repr, names))} differ only in case, spaces or Unicode form. "
                f"If they are one class, give them one name and id."
            )
            yield _issue(raw, "similar_classes", raw.annotations_path.name, problem)


def _repeated_annotations(raw: RawSplit) -> Iterator[Issue]:
    counts = Counter(annotation["id"] for annotation in raw.annotations if "id" in annotation)
    for value, count in counts.items():
        if count > 1:
            problem = (
                f"annotation id {value!r} is used {count} times. Other programs may keep only the last of "
                f"them: give each its own id."
            )
            yield _issue(raw, "repeated_annotation", raw.annotations_path.name, problem)


def _box_issues(raw: RawSplit, input_format: InputFormat) -> Iterator[Issue]:
    """Yield issues of boxes that are otherwise valid."""
    images = {image["id"]: image for image in raw.images}
    known = {category["id"] for category in raw.categories}
    seen: dict[tuple[int, int], list[tuple[str, Sequence[float]]]] = {}
    for number, annotation in enumerate(raw.annotations):
        name = annotation_name(annotation, number)
        image, box = images.get(annotation["image_id"]), annotation["bbox"]
        if image is None or annotation_problems(annotation, image, known):
            continue
        problems = list(_box_problems(annotation, image, input_format))
        same = seen.setdefault((annotation["image_id"], annotation["category_id"]), [])
        for twin, other in same:
            if max(abs(a - b) for a, b in zip(box, other, strict=True)) <= SAME_BOX_PX:
                problem = f"has the same box as annotation {twin}. Remove one of them."
                problems.append(("duplicate_box", problem))
                break
        same.append((name, box))
        for rule, problem in problems:
            label = f"annotation {name} (image {image['file_name']!r})"
            yield _issue(raw, rule, image["file_name"], f"{label} {problem}", annotation=name)


def _box_problems(annotation: Entry, image: Entry, input_format: InputFormat) -> Iterator[tuple[str, str]]:
    """Yield rule and description of each warning about one box."""
    left, top, width, height = annotation["bbox"]
    image_wh = np.array([image["width"], image["height"]], dtype=np.float64)
    beyond = max(-left, -top, left + width - image["width"], top + height - image["height"])
    if beyond > OVERHANG_PX:
        yield (
            "overhanging_box",
            f"reaches {beyond:.1f} px beyond its image: box {annotation['bbox']}, image "
            f"{image['width']}x{image['height']} px. Training clips it.",
        )
    low = np.clip([left, top], 0, image_wh)
    visible_wh = np.clip([left + width, top + height], 0, image_wh) - low
    width_px, height_px = at_input_size(visible_wh[None], image_wh[None], input_format)[0].tolist()
    if min(width_px, height_px) < MIN_SIDE_PX and not annotation.get("iscrowd", 0):
        tiles, input_hw = input_format.tiles, input_format.size_hw
        remedy = "data.tiles" if tiles is None else f"tiles smaller than {tiles.size} px"
        yield (
            "small_box",
            f"is {width_px:.1f}x{height_px:.1f} px at the training size of "
            f"{input_hw[1]}x{input_hw[0]}. Train at a larger size, or with {remedy}.",
        )


def _image_issues(listed: _Listed, path: Path, fact: ImageFacts) -> Iterator[Issue]:
    """Yield issues of an image file; `find_problems` reports a missing one."""
    raw, image = listed
    name, where = image["file_name"], raw.annotations_path.name
    if fact.header_problem:
        if path.is_file():
            yield Issue(rule="corrupt_image", split=raw.name, file=name, message=fact.header_problem)
        return
    if fact.size_problem:
        yield Issue(rule="large_image", split=raw.name, file=name, message=fact.size_problem)
    if fact.pages > 1:
        problem = f"image {name!r} has {fact.pages} pages or frames; only the first is used."
        yield _issue(raw, "several_pages", name, problem)
    if fact.content_problem:
        yield _issue(raw, "truncated_image", name, fact.content_problem)
    listed_hw = (image["height"], image["width"])
    if fact.size_hw is not None and fact.size_hw != listed_hw:
        message = describe_size_difference(where, name, listed_hw, fact.size_hw)
        yield Issue(rule="size_differs", split=raw.name, file=name, message=message)
    elif fact.orientation != UPRIGHT:
        problem = (
            f"image {name!r} is rotated by its EXIF data (orientation {fact.orientation}). Training turns it "
            f"upright: its boxes must have been drawn on the upright view."
        )
        yield _issue(raw, "exif_rotation", name, problem)


def _duplicate_issue(listed: Sequence[_Listed], duplicate: Duplicate) -> Issue:
    (raw, image), (other, earlier) = listed[duplicate.index], listed[duplicate.earlier]
    is_across = raw.name != other.name
    rule = f"{'' if duplicate.is_exact else 'near_'}duplicate_{'across' if is_across else 'within'}"
    same = "bytes as" if duplicate.is_exact else "content as"
    advice = "Keep it in only one split" if is_across else "Remove one of them"
    problem = (
        f"image {image['file_name']!r} ({raw.name}) has the same {same} {earlier['file_name']!r} "
        f"({other.name}). {advice}."
    )
    return _issue(raw, rule, image["file_name"], problem)


def _class_issues(raws: Mapping[str, RawSplit], summaries: Mapping[str, SplitSummary]) -> Iterator[Issue]:
    """Yield issues of classes that a split lacks, or that the training split does not list."""
    counts = {name: summaries[name].boxes_by_class for name, raw in raws.items() if raw.images}
    known = counts.get("train")
    for name in dict.fromkeys(name for by_class in counts.values() for name in by_class):
        for split, by_class in counts.items():
            file = raws[split].annotations_path.name
            if known is not None and name not in known:
                if name in by_class:
                    problem = (
                        f"class {name!r} of split {split} is not in train, which has {', '.join(known)}. "
                        f"Classes are matched by name: rename it, remove it, or train with it."
                    )
                    yield _issue(raws[split], "class_not_trained", file, problem)
            elif not by_class.get(name):
                others = ", ".join(f"{boxes.get(name, 0)} in {other}" for other, boxes in counts.items())
                verb = "learned" if split == "train" else "evaluated"
                problem = f"class {name!r} has no box in {split}, so it cannot be {verb} ({others})."
                yield _issue(raws[split], "class_without_boxes", file, problem)


def _group_overlaps(listed: Sequence[_Listed], groups: Sequence[str]) -> Iterator[Issue]:
    """Yield the groups that a split shares with an earlier one, each once."""
    first_of: dict[str, tuple[str, str]] = {}
    reported = set()
    for (raw, image), group in zip(listed, groups, strict=True):
        name = image["file_name"]
        owner, example = first_of.setdefault(group, (raw.name, name))
        if owner != raw.name and (raw.name, group) not in reported:
            reported.add((raw.name, group))
            problem = (
                f"group {group!r} is in split {owner} (such as {example!r}) and in {raw.name} (such as "
                f"{name!r}). Split again with deim data split."
            )
            yield _issue(raw, "group_across", name, problem)


def _unlisted(raws: Mapping[str, RawSplit]) -> Iterator[Issue]:
    """Yield the image files in the image folders that no split lists."""
    users: dict[Path, list[str]] = {}
    listed = set()
    for raw in raws.values():
        users.setdefault(raw.image_dir, []).append(raw.name)
        # Images that cannot be read are only known by an issue.
        names = [*(image["file_name"] for image in raw.images), *(issue.file for issue in raw.issues)]
        listed |= {os.path.normpath(raw.image_dir / name) for name in names}
    for folder, splits in users.items():
        for name in list_images(folder):
            if os.path.normpath(folder / name) not in listed:
                shown = ", ".join(splits)
                message = (
                    f"{folder}: image {name!r} is in no split ({shown}). List it, even without boxes, or "
                    f"remove it."
                )
                yield Issue(rule="unlisted_image", split=shown, file=name, message=message)
