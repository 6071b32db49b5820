"""Operating points: the lowest score at which a detection of each class counts, chosen for a stated goal.

They are chosen on one split, the validation split, and hold for every other. A threshold lies in the middle
between the lowest score that it keeps and the highest that it drops, so that rounding decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import FoundBoxes, SplitResults
from deim.inference.nms import NmsRule, apply_nms
from deim.inference.thresholds import BestF1Goal, FalseBoxesGoal, Goal, RecallGoal
from deim.metrics.assignment import Assignment, assign, compute_overlaps
from deim.metrics.image_level import count_images, threshold_for_escapes

ROUNDING = 1e-9
"""Goals are reached up to this, in boxes."""
Origin = Literal["its own boxes", "all classes together", "default"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassThreshold:
    """The operating point of one class."""

    name: str
    """The class."""
    threshold: float
    """Detections of the class with at least this score are kept."""
    origin: Origin
    """What it was chosen on; a class without boxes takes the threshold of all classes together."""
    note: str | None
    """Why the goal was not reached, or why the threshold is not its own; None if there is nothing to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoints:
    """Everything that turns raw detections into those that count."""

    goal: str
    """What the thresholds were chosen for, in words."""
    chosen_on: str
    """Name of the split, such as `val`."""
    annotations_sha256: str
    """Hash of that split's annotation file."""
    num_images: int
    """Images of that split."""
    nms: NmsRule
    """NmsRule of duplicates among the detections above the thresholds."""
    classes: tuple[ClassThreshold, ...]
    """C thresholds, by class index."""
    normal_class: str | None
    """Class that marks a good surface; None if there is none."""
    max_escape_rate: float
    """Limit of the share of defective images without a hit, in [0, 1]."""
    escape_threshold: float | None
    """Highest threshold, the same for all classes and without nms, that holds the limit; None if none
    does."""
    lowest_escape_rate: float | None
    """Escape rate with all detections, whatever their score; None without defective images."""

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(C,) thresholds by class index."""
        return np.array([entry.threshold for entry in self.classes], dtype=np.float64)

    def keep(self, found: FoundBoxes) -> NDArray[np.int64]:
        """Positions of the detections that count: first the thresholds, then the nms.

        In this order a box that is not shown itself never hides another.

        Args:
            found: Raw detections of any images.
        """
        above = np.flatnonzero(found.scores >= self.thresholds[found.label])
        return above[apply_nms(found.take(above), self.nms)]

    def to_dict(self) -> dict[str, Any]:
        """As plain types, for checkpoints and reports."""
        return asdict(self) | {"classes": [asdict(entry) for entry in self.classes]}


def operating_points_from_dict(tree: Mapping[str, Any]) -> OperatingPoints:
    """Undo `OperatingPoints.to_dict`."""
    return OperatingPoints(
        **(
            dict(tree)
            | {
                "nms": NmsRule(**tree["nms"]),
                "classes": tuple(ClassThreshold(**entry) for entry in tree["classes"]),
            }
        )
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Right, false and missed boxes at a threshold, IoU 0.5."""

    num_truth: int
    """Ground-truth boxes, crowd regions not counted."""
    num_found: int
    """Detections that count, those in crowd regions left out."""
    num_right: int
    """Detections that hit a box of their class (true positives)."""
    num_false: int
    """Detections that hit none (false positives)."""
    num_missed: int
    """Boxes that are not hit (false negatives)."""
    precision: float | None
    """num_right / num_found; None if nothing was found."""
    recall: float | None
    """num_right / num_truth; None if there is no ground truth."""
    f1: float | None
    """Harmonic mean of both, 0 if nothing is right; None if there is no ground truth."""


def describe_goal(goal: Goal) -> str:
    """A goal in words."""
    match goal:
        case BestF1Goal():
            return "best F1"
        case RecallGoal():
            return f"recall at least {goal.at_least:g}"
        case FalseBoxesGoal():
            return f"at most {goal.at_most_per_image:g} false boxes of the class an image"


def choose_operating_points(
    results: SplitResults,
    *,
    goal: Goal,
    rules: Sequence[NmsRule],
    split_name: str,
    annotations_sha256: str,
    default_threshold: float,
    max_escape_rate: float,
) -> OperatingPoints:
    """Choose the thresholds of all classes and the nms of duplicates.

    Of several rules of nms the one wins with which most classes reach the goal, then the one that
    comes nearest to it, then the one with the highest mean F1 of the classes; of equals the first. Thresholds
    are chosen among the detections that the rule leaves. As it is applied after them later, rules across
    classes may then leave others: whether the goal is reached is judged by what counts in the end.

    Args:
        results: Raw detections of the split to choose on.
        goal: What each class's threshold shall reach.
        rules: At least one, the gentlest first.
        split_name: Name of the split, to be remembered.
        annotations_sha256: Hash of its annotation file, to be remembered.
        default_threshold: For splits without any box, on which nothing can be chosen.
        max_escape_rate: Limit for the threshold that all classes share, see `OperatingPoints`.
    """
    if not rules:
        raise ValueError("choose_operating_points: no rule of nms was given. Give at least one.")
    raw_overlaps = compute_overlaps(results)
    escape_threshold = threshold_for_escapes(results, raw_overlaps, max_escape_rate)
    lowest_escape_rate = count_images(results, raw_overlaps).escape_rate
    best: OperatingPoints | None = None
    best_rank = (-1, -1.0, -1.0)
    for rule in rules:
        remaining = results.with_found(apply_nms(results.found, rule))
        assignment = assign(remaining, compute_overlaps(remaining))
        points = OperatingPoints(
            goal=describe_goal(goal),
            chosen_on=split_name,
            annotations_sha256=annotations_sha256,
            num_images=results.num_images,
            nms=rule,
            classes=_choose_classes(remaining, assignment, goal, default_threshold),
            normal_class=None if results.normal_class is None else results.class_names[results.normal_class],
            max_escape_rate=max_escape_rate,
            escape_threshold=escape_threshold,
            lowest_escape_rate=lowest_escape_rate,
        )
        shipped = results.with_found(points.keep(results.found))
        counts = count_classes(shipped, assign(shipped, compute_overlaps(shipped)))
        classes = tuple(
            _judged(point, entry, goal, results.num_images)
            for point, entry in zip(points.classes, counts, strict=True)
        )
        rank = (sum(point.note is None for point in classes), _nearness(counts, goal), mean_f1(counts))
        if rank > best_rank:
            best, best_rank = replace(points, classes=classes), rank
    assert best is not None
    return best


def _nearness(counts: Sequence[Counts], goal: Goal) -> float:
    """How near the classes come to a recall, in [0, 1] each; 0 for other goals."""
    if not isinstance(goal, RecallGoal):
        return 0.0
    return sum(min(entry.recall, goal.at_least) for entry in counts if entry.recall is not None)


def _judged(point: ClassThreshold, counts: Counts, goal: Goal, num_images: int) -> ClassThreshold:
    """The same threshold, with a note if what counts in the end does not reach the goal."""
    if point.note is not None or point.origin != "its own boxes":
        return point
    note = None
    match goal:
        case RecallGoal() if counts.num_right < goal.at_least * counts.num_truth - ROUNDING:
            note = f"with the nms of duplicates, recall is {counts.num_right / counts.num_truth:.3f}"
        case FalseBoxesGoal() if counts.num_false > goal.at_most_per_image * num_images + ROUNDING:
            note = (
                f"with the nms of duplicates, {counts.num_false / num_images:.3g} false boxes an image remain"
            )
    return replace(point, note=note)


def _choose_classes(
    results: SplitResults, assignment: Assignment, goal: Goal, default_threshold: float
) -> tuple[ClassThreshold, ...]:
    num_truth = np.bincount(results.truth.label[~results.truth.is_crowd], minlength=results.num_classes)
    is_found = np.bincount(results.found.label, minlength=results.num_classes) > 0
    has_own = (num_truth > 0) & is_found
    pooled = _choose(results, assignment, num_truth > 0, goal) if has_own.any() else None
    chosen = []
    for label, name in enumerate(results.class_names):
        lacks = "never predicted" if num_truth[label] else "no ground-truth box of this class"
        if has_own[label]:
            threshold, note = _choose(results, assignment, np.arange(results.num_classes) == label, goal)
            entry = ClassThreshold(name=name, threshold=threshold, origin="its own boxes", note=note)
        elif pooled is not None:
            entry = ClassThreshold(
                name=name, threshold=pooled[0], origin="all classes together", note=f"{lacks} to choose on"
            )
        else:
            entry = ClassThreshold(
                name=name, threshold=default_threshold, origin="default", note=f"{lacks} to choose on"
            )
        chosen.append(entry)
    return tuple(chosen)


def _choose(
    results: SplitResults, assignment: Assignment, of_class: NDArray[np.bool_], goal: Goal
) -> tuple[float, str | None]:
    """Threshold of the classes that a (C,) mask names, taken as one, and what there is to say of it."""
    own = of_class[results.found.label]
    truth = of_class[results.truth.label] & ~results.truth.is_crowd
    return choose_threshold(
        results.found.scores[own],
        is_right=assignment.is_hit[0, own],
        is_false=assignment.is_false[0, own],
        num_truth=int(truth.sum()),
        num_images=results.num_images,
        goal=goal,
    )


def choose_threshold(
    scores: NDArray[np.float64],
    *,
    is_right: NDArray[np.bool_],
    is_false: NDArray[np.bool_],
    num_truth: int,
    num_images: int,
    goal: Goal,
) -> tuple[float, str | None]:
    """Choose the score from which detections of one class count.

    Best F1: the threshold with the highest F1, of equals the highest. Recall: the highest threshold that
    reaches it. False boxes: the lowest threshold that keeps to the limit.

    Args:
        scores: (D,) in any order, at least one.
        is_right: (D,) hits a ground-truth box.
        is_false: (D,) hits none; neither right nor false for detections in crowd regions.
        num_truth: Ground-truth boxes of the class, at least 1.
        num_images: Images of the split, at least 1.
        goal: What to reach.

    Returns:
        The threshold, and why the goal is not reached; None if it is.
    """
    order = np.argsort(-scores, kind="stable")
    negated, counts = np.unique(-scores, return_counts=True)
    levels, ends = -negated, np.cumsum(counts) - 1
    right, false = np.cumsum(is_right[order])[ends], np.cumsum(is_false[order])[ends]
    match goal:
        case BestF1Goal():
            # 2 · right / (found + truth) is F1, without a division by zero.
            f1 = 2 * right / (right + false + num_truth)
            chosen = int(np.argmax(f1))
            note = None if right[chosen] else "no detection is right at any threshold"
            return _between(levels, chosen), note
        case RecallGoal():
            reached = np.flatnonzero(right >= goal.at_least * num_truth - ROUNDING)
            if len(reached):
                return _between(levels, int(reached[0])), None
            # Nothing below the last hit helps.
            chosen = int(np.argmax(right))
            return (
                _between(levels, chosen),
                f"recall {goal.at_least:g} is out of reach, the highest is {right[-1] / num_truth:.3f}",
            )
        case FalseBoxesGoal():
            allowed = np.flatnonzero(false <= goal.at_most_per_image * num_images + ROUNDING)
            if len(allowed):
                return _between(levels, int(allowed[-1])), None
            highest = float(levels[0])
            return (
                math.nextafter(highest, math.inf),
                f"even the highest scores are false in more than {goal.at_most_per_image:g} boxes an image",
            )


def _between(levels: NDArray[np.float64], chosen: int) -> float:
    """Midway from a score to the next lower one, or to 0."""
    below = levels[chosen + 1] if chosen + 1 < len(levels) else 0.0
    middle = float((levels[chosen] + below) / 2)
    return middle if middle > below else float(levels[chosen])


def count_classes(results: SplitResults, assignment: Assignment) -> tuple[Counts, ...]:
    """Counts of each class, for the detections that count.

    Args:
        results: A split with the detections that `OperatingPoints.keep` kept.
        assignment: Of these, at IoU 0.5.

    Returns:
        C counts, by class index.
    """
    return tuple(
        _count(results, assignment, np.arange(results.num_classes) == label)
        for label in range(results.num_classes)
    )


def count_all(results: SplitResults, assignment: Assignment) -> Counts:
    """Counts of all classes together; arguments as for `count_classes`."""
    return _count(results, assignment, np.ones(results.num_classes, dtype=np.bool_))


def _count(results: SplitResults, assignment: Assignment, of_class: NDArray[np.bool_]) -> Counts:
    own = of_class[results.found.label]
    num_right, num_false = (int(mask[0, own].sum()) for mask in (assignment.is_hit, assignment.is_false))
    num_truth = int((of_class[results.truth.label] & ~results.truth.is_crowd).sum())
    num_found = num_right + num_false
    return Counts(
        num_truth=num_truth,
        num_found=num_found,
        num_right=num_right,
        num_false=num_false,
        num_missed=num_truth - num_right,
        precision=num_right / num_found if num_found else None,
        recall=num_right / num_truth if num_truth else None,
        f1=2 * num_right / (num_found + num_truth) if num_truth else None,
    )


def mean_f1(counts: Sequence[Counts]) -> float:
    """Mean F1 of the classes that have ground truth; 0 if none has.

    Args:
        counts: One of each class.
    """
    scores = [entry.f1 for entry in counts if entry.f1 is not None]
    return sum(scores) / len(scores) if scores else 0.0
