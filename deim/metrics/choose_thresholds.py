"""Choosing operating points: the lowest score at which a detection of each class is kept, for a stated goal.

They are chosen on one split, the validation split, and hold for every other. A threshold lies midway between
the lowest score that it keeps and the highest that it drops, so that rounding decides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.operating_points import (
    BestF1Goal,
    ClassThreshold,
    FalseBoxesGoal,
    Goal,
    NmsRule,
    OperatingPoints,
    RecallGoal,
    apply_nms,
    describe_goal,
)
from deim.language import ENGLISH
from deim.metrics.assignment import Overlaps, compute_overlaps
from deim.metrics.average_precision import average_precisions
from deim.metrics.coco import IOU_50_ROW
from deim.metrics.image_level import count_images, threshold_for_escapes

ROUNDING = 1e-9
"""Tolerance of goals, in boxes."""
MIN_AP50 = 0.01
"""mAP50 below which a detector has learned nothing that a threshold could be chosen for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """True positives, false positives and false negatives at IoU 0.5.

    Precision is None without detections, recall and F1 without ground truth.
    """

    num_boxes: int
    """Ground-truth boxes, crowd regions not counted."""
    num_detections: int
    """Kept detections, without those in crowd regions."""
    tp: int
    """Detections that hit a box of their class."""
    fp: int
    """Detections that hit no box of their class."""
    fn: int
    """Boxes that no detection hits."""
    precision: float | None
    recall: float | None
    f1: float | None


def choose_operating_points(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    goal: Goal,
    rules: Sequence[NmsRule],
    split_name: str,
    annotations_sha256: str,
    default_threshold: float,
    max_escape_rate: float,
) -> OperatingPoints:
    """Choose the thresholds of all classes and the NMS rule.

    The best NMS rule is the one with which most classes reach the goal, then the one that comes nearest to
    it, then the one with the highest mean F1 of the classes; of equals the first. Thresholds are chosen among
    the detections that the rule leaves. Since NMS is applied after them later, rules across classes may then
    leave others: whether the goal is reached is judged by the detections that are kept in the end.

    If the split has no boxes, or mAP50 is below `MIN_AP50`, all thresholds stay the default, with the first
    rule and no threshold for the limit of escapes.

    Args:
        ground_truth: The split to choose on.
        detections: Its raw detections.
        goal: Goal of each class's threshold.
        rules: At least one, the mildest first.
        split_name: For the record, as `annotations_sha256`.
        annotations_sha256: Hash of the split's annotation file.
        default_threshold: Threshold where nothing can be chosen.
        max_escape_rate: Limit for the threshold that all classes share, see `OperatingPoints`.
    """
    overlaps = compute_overlaps(ground_truth, detections)
    normal = ground_truth.normal_class
    default = OperatingPoints(
        goal=describe_goal(goal),
        chosen_on=split_name,
        annotations_sha256=annotations_sha256,
        num_images=ground_truth.num_images,
        nms=rules[0],
        classes=tuple(
            ClassThreshold(name=name, threshold=default_threshold, origin="default", note=None)
            for name in ground_truth.class_names
        ),
        normal_class=None if normal is None else ground_truth.class_names[normal],
        max_escape_rate=max_escape_rate,
        escape_threshold=None,
        lowest_escape_rate=count_images(overlaps).escape_rate,
        default_reason=_why_default(overlaps, split_name, default_threshold),
    )
    if default.default_reason is not None:
        return default
    best: OperatingPoints | None = None
    best_rank = (-1, -1.0, -1.0)
    for rule in rules:
        remaining = overlaps.take(apply_nms(detections, rule))
        classes = _choose_classes(remaining, goal, default_threshold)
        points = replace(
            default,
            nms=rule,
            classes=classes,
            escape_threshold=threshold_for_escapes(remaining, max_rate=max_escape_rate),
            lowest_escape_rate=count_images(remaining).escape_rate,
        )
        counts = count_classes(overlaps.take(points.keep(detections)))
        classes = tuple(
            _with_note(point, entry, goal, ground_truth.num_images)
            for point, entry in zip(points.classes, counts, strict=True)
        )
        nearness = 0.0
        if isinstance(goal, RecallGoal):
            recalls = [entry.recall for entry in counts if entry.recall is not None]
            nearness = sum(min(recall, goal.at_least) for recall in recalls)
        rank = (sum(point.note is None for point in classes), nearness, mean_f1(counts))
        if rank > best_rank:
            best, best_rank = replace(points, classes=classes), rank
    assert best is not None
    return best


def _why_default(overlaps: Overlaps, split_name: str, default_threshold: float) -> str | None:
    """Say why no threshold can be chosen, and what to do; None if thresholds can be chosen."""
    if not overlaps.ground_truth.boxes_per_class.any():
        return ENGLISH.text(
            "All score thresholds stay at the default, {default:g}: {split} has no boxes to choose them on.",
            default=default_threshold,
            split=split_name,
        )
    ap50 = float(np.nanmean(average_precisions(overlaps)[IOU_50_ROW]))
    if ap50 >= MIN_AP50:
        return None
    return ENGLISH.text(
        "The detector has learned nothing: mAP50 on {split} is {ap50:.4g}, less than {least:g}. All score "
        "thresholds stay at the default, {default:g}. Train for more epochs, or start from trained weights "
        "with model.init_from.",
        split=split_name,
        ap50=ap50,
        least=MIN_AP50,
        default=default_threshold,
    )


def _with_note(point: ClassThreshold, counts: Counts, goal: Goal, num_images: int) -> ClassThreshold:
    """Add a note if the detections that are kept in the end do not reach the goal."""
    if point.note is not None or point.origin != "its own boxes":
        return point
    match goal:
        case RecallGoal() if counts.tp < goal.at_least * counts.num_boxes - ROUNDING:
            recall = counts.tp / counts.num_boxes
            return replace(point, note=ENGLISH.text("with NMS, recall is {recall:.3f}", recall=recall))
        case FalseBoxesGoal() if counts.fp > goal.at_most_per_image * num_images + ROUNDING:
            note = ENGLISH.text(
                "with NMS, {rate:.3g} false boxes an image remain", rate=counts.fp / num_images
            )
            return replace(point, note=note)
    return point


def _choose_classes(overlaps: Overlaps, goal: Goal, default_threshold: float) -> tuple[ClassThreshold, ...]:
    num_boxes = overlaps.ground_truth.boxes_per_class
    can_choose = (num_boxes > 0) & (np.bincount(overlaps.detections.label, minlength=len(num_boxes)) > 0)
    pooled = _choose_threshold(overlaps, num_boxes > 0, goal) if can_choose.any() else None
    classes = []
    for label, name in enumerate(overlaps.ground_truth.class_names):
        lack = ENGLISH.text("never predicted to choose on")
        if not num_boxes[label]:
            lack = ENGLISH.text("no ground-truth box of this class to choose on")
        entry = ClassThreshold(name=name, threshold=default_threshold, origin="default", note=lack)
        if can_choose[label]:
            threshold, note = _choose_threshold(overlaps, np.arange(len(num_boxes)) == label, goal)
            entry = replace(entry, threshold=threshold, origin="its own boxes", note=note)
        elif pooled is not None:
            entry = replace(entry, threshold=pooled[0], origin="all classes together")
        classes.append(entry)
    return tuple(classes)


def _choose_threshold(
    overlaps: Overlaps, is_chosen: NDArray[np.bool_], goal: Goal
) -> tuple[float, str | None]:
    """Choose a threshold for the classes of a (C,) mask together, and say why the goal is not reached, if so.

    Best F1: the threshold with the highest F1, of equals the highest. Recall: the highest threshold that
    reaches it. False boxes: the lowest threshold within the limit.
    """
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    num_boxes, num_images = int(ground_truth.boxes_per_class[is_chosen].sum()), ground_truth.num_images
    rows = np.flatnonzero(is_chosen[detections.label])
    rows = rows[np.argsort(-detections.score[rows], kind="stable")]
    negated, counts = np.unique(-detections.score[rows], return_counts=True)
    levels, ends = -negated, np.cumsum(counts) - 1
    tp, fp = (
        np.cumsum(mask[0, rows])[ends] for mask in (overlaps.assignment.is_tp, overlaps.assignment.is_fp)
    )
    match goal:
        case BestF1Goal():
            # 2 · TP / (detections + boxes) is F1, without a division by zero.
            f1 = 2 * tp / (tp + fp + num_boxes)
            chosen = int(np.argmax(f1))
            note = None if tp[chosen] else ENGLISH.text("no detection is correct at any threshold")
            return _between(levels, chosen), note
        case RecallGoal():
            reached = np.flatnonzero(tp >= goal.at_least * num_boxes - ROUNDING)
            if len(reached):
                return _between(levels, int(reached[0])), None
            # Nothing below the last hit helps.
            note = ENGLISH.text(
                "recall {recall:g} is out of reach, the highest is {highest:.3f}",
                recall=goal.at_least,
                highest=tp[-1] / num_boxes,
            )
            return _between(levels, int(np.argmax(tp))), note
        case FalseBoxesGoal():
            allowed = np.flatnonzero(fp <= goal.at_most_per_image * num_images + ROUNDING)
            if len(allowed):
                return _between(levels, int(allowed[-1])), None
            note = ENGLISH.text(
                "even the highest scores are false in more than {limit:g} boxes an image",
                limit=goal.at_most_per_image,
            )
            return math.nextafter(float(levels[0]), math.inf), note


def _between(levels: NDArray[np.float64], chosen: int) -> float:
    """Midway from a score to the next lower one, or to 0."""
    below = levels[chosen + 1] if chosen + 1 < len(levels) else 0.0
    middle = float((levels[chosen] + below) / 2)
    return middle if middle > below else float(levels[chosen])


def count_classes(overlaps: Overlaps) -> tuple[Counts, ...]:
    """Count true and false positives and false negatives of kept detections, by class index."""
    ground_truth, detections, assignment = overlaps.ground_truth, overlaps.detections, overlaps.assignment
    num_classes = ground_truth.num_classes
    tp, fp = (
        np.bincount(detections.label[mask], minlength=num_classes).tolist()
        for mask in (assignment.is_tp[0], assignment.is_fp[0])
    )
    boxes = ground_truth.boxes_per_class.tolist()
    return tuple(_to_counts(*numbers) for numbers in zip(tp, fp, boxes, strict=True))


def count_all(classes: Sequence[Counts]) -> Counts:
    """Add the counts of all classes up."""
    return _to_counts(
        tp=sum(counts.tp for counts in classes),
        fp=sum(counts.fp for counts in classes),
        num_boxes=sum(counts.num_boxes for counts in classes),
    )


def _to_counts(tp: int, fp: int, num_boxes: int) -> Counts:
    return Counts(
        num_boxes=num_boxes,
        num_detections=tp + fp,
        tp=tp,
        fp=fp,
        fn=num_boxes - tp,
        precision=tp / (tp + fp) if tp + fp else None,
        recall=tp / num_boxes if num_boxes else None,
        f1=2 * tp / (tp + fp + num_boxes) if num_boxes else None,
    )


def mean_f1(classes: Sequence[Counts]) -> float:
    """Average F1 over the classes that have ground truth; 0 if none has."""
    scores = [counts.f1 for counts in classes if counts.f1 is not None]
    return sum(scores) / len(scores) if scores else 0.0
