"""Numbers of whole images: a part is stopped or passes, whatever the boxes on it.

An image is defective if it has a ground-truth box of a defect class, and good if it has none; boxes of the
normal class are no defects. Images whose only defects are crowd regions are ignored, since a hit cannot be
decided there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import GroundTruthTable
from deim.metrics.assignment import IOU_50, Overlaps


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLevel:
    """What happens to whole images."""

    num_defective: int
    """Images with a defect."""
    num_escaped: int
    """Defective images without a hit: no detection of a defect class overlaps a defect by IoU 0.5 or more."""
    escape_rate: float | None
    """num_escaped / num_defective; None without defective images."""
    num_unmarked: int
    """Defective images without any detection of a defect class: the part would pass."""
    unmarked_rate: float | None
    """num_unmarked / num_defective; None without defective images."""
    num_good: int
    """Images without a defect."""
    num_overkilled: int
    """Good images with a detection of a defect class: the part would be stopped for nothing."""
    overkill_rate: float | None
    """num_overkilled / num_good; None without good images."""
    fp_per_good_image: float | None
    """Detections of defect classes on good images / num_good; None without good images."""
    num_ignored: int
    """Images whose only defects are crowd regions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EscapeCurve:
    """Escapes against overkill as one threshold for all classes falls, at the K points where one changes."""

    thresholds: tuple[float, ...]
    """K scores, falling; the first keeps nothing."""
    escape_rate: tuple[float | None, ...]
    """K shares of the defective images; None without any."""
    overkill_rate: tuple[float | None, ...]
    """K shares of the good images; None without any."""
    fp_per_good_image: tuple[float | None, ...]
    """K means; None without good images."""


def count_images(overlaps: Overlaps) -> ImageLevel:
    """Count escapes and overkill of kept detections."""
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    num_images = ground_truth.num_images
    is_defective, is_good = _sort_images(ground_truth)
    is_defect = ground_truth.is_defect(detections.label)
    boxes = np.bincount(detections.image[is_defect], minlength=num_images)
    hits = np.bincount(detections.image[_hitting(overlaps)], minlength=num_images)
    num_defective, num_good = int(is_defective.sum()), int(is_good.sum())
    num_escaped = int((is_defective & (hits == 0)).sum())
    num_unmarked = int((is_defective & (boxes == 0)).sum())
    num_overkilled = int((is_good & (boxes > 0)).sum())
    return ImageLevel(
        num_defective=num_defective,
        num_escaped=num_escaped,
        escape_rate=_share(num_escaped, num_defective),
        num_unmarked=num_unmarked,
        unmarked_rate=_share(num_unmarked, num_defective),
        num_good=num_good,
        num_overkilled=num_overkilled,
        overkill_rate=_share(num_overkilled, num_good),
        fp_per_good_image=_share(int(boxes[is_good].sum()), num_good),
        num_ignored=num_images - num_defective - num_good,
    )


def trace_escapes(overlaps: Overlaps) -> EscapeCurve:
    """Follow escapes and overkill of some detections over all thresholds.

    Every threshold gives the escapes and the overkill of one of the points. There are at most two more points
    than images: the first keeps nothing and the last everything.
    """
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    is_defective, is_good = _sort_images(ground_truth)
    is_defect = ground_truth.is_defect(detections.label)
    on_good = is_good[detections.image] & is_defect
    hit_scores = _best_scores(overlaps, _hitting(overlaps))[is_defective]
    good_scores = _best_scores(overlaps, np.flatnonzero(on_good))[is_good]
    fp_scores = detections.score[on_good]
    levels = np.unique(np.concatenate([hit_scores, good_scores, fp_scores]))
    levels = levels[levels >= 0][::-1]
    nothing = np.nextafter(levels[:1], np.inf) if len(levels) else np.ones(1)
    thresholds = np.concatenate([nothing, (levels + np.append(levels[1:], 0.0)[: len(levels)]) / 2])
    escaped, overkilled, num_fp = (
        np.searchsorted(np.sort(scores), thresholds) for scores in (hit_scores, good_scores, fp_scores)
    )
    is_new = np.append(True, (np.diff([escaped, overkilled]) != 0).any(axis=0))
    is_new[-1] = True
    overkilled, num_fp = len(good_scores) - overkilled, len(fp_scores) - num_fp
    return EscapeCurve(
        thresholds=tuple(thresholds[is_new].tolist()),
        escape_rate=_shares(escaped[is_new], len(hit_scores)),
        overkill_rate=_shares(overkilled[is_new], len(good_scores)),
        fp_per_good_image=_shares(num_fp[is_new], len(good_scores)),
    )


def threshold_for_escapes(overlaps: Overlaps, *, max_rate: float) -> float | None:
    """Find the highest threshold for all classes with which at most a share of the defective images escapes.

    Args:
        overlaps: Detections of any score.
        max_rate: The share, in [0, 1].

    Returns:
        The threshold, midway to the next lower score. None without defective images, or if more of them
        escape even with all these detections.
    """
    detections = overlaps.detections
    is_defective, _ = _sort_images(overlaps.ground_truth)
    scores = np.sort(_best_scores(overlaps, _hitting(overlaps))[is_defective])
    may_escape = int(np.floor(max_rate * len(scores) + 1e-9))
    if len(scores) and may_escape >= len(scores):
        return float(np.nextafter(detections.score.max(initial=0.0), np.inf))
    if not len(scores) or scores[may_escape] < 0:
        return None
    lowest = float(scores[may_escape])
    return (lowest + float(detections.score[detections.score < lowest].max(initial=0.0))) / 2


def _sort_images(ground_truth: GroundTruthTable) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(I,) masks of the defective and of the good images."""
    is_defect = ground_truth.is_defect(ground_truth.label)
    has_crowd, has_defect = (
        np.bincount(ground_truth.image[is_defect & mask], minlength=ground_truth.num_images) > 0
        for mask in (ground_truth.is_crowd, ~ground_truth.is_crowd)
    )
    return has_defect, ~has_defect & ~has_crowd


def _hitting(overlaps: Overlaps) -> NDArray[np.int64]:
    """Positions of the detections of a defect class on a defect of any class."""
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    is_hit = (
        (overlaps.iou >= IOU_50)
        & ~ground_truth.is_crowd[overlaps.truth]
        & ground_truth.is_defect(ground_truth.label[overlaps.truth])
        & ground_truth.is_defect(detections.label[overlaps.detection])
    )
    return np.unique(overlaps.detection[is_hit])


def _best_scores(overlaps: Overlaps, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(I,) highest score of the detections at some positions; -1 for images with none of them."""
    best = np.full(overlaps.ground_truth.num_images, -1.0)
    np.maximum.at(best, overlaps.detections.image[positions], overlaps.detections.score[positions])
    return best


def _share(number: int, whole: int) -> float | None:
    return number / whole if whole else None


def _shares(numbers: NDArray[np.int64], whole: int) -> tuple[float | None, ...]:
    return tuple(_share(number, whole) for number in numbers.tolist())
