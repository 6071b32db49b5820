"""Numbers of whole images: a part is stopped or passes, whatever the boxes on it.

An image is defective if it has a ground-truth box of a defect class, and good if it has none; boxes of the
normal class are no defects. Images whose only defects are crowd regions, where no hit can be told, are left
out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import SplitResults
from deim.metrics.assignment import IOU_50, Overlaps

MAX_CURVE_POINTS = 200


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
    false_boxes_per_good_image: float | None
    """Detections of defect classes on good images / num_good; None without good images."""
    num_left_out: int
    """Images whose only defects are crowd regions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EscapeCurve:
    """Escapes against overkill as a threshold, the same for all classes, falls. K counts its points."""

    thresholds: tuple[float, ...]
    """K scores, falling; the first keeps nothing."""
    escape_rate: tuple[float | None, ...]
    """K shares of the defective images; None without any."""
    overkill_rate: tuple[float | None, ...]
    """K shares of the good images; None without any."""
    false_boxes_per_good_image: tuple[float | None, ...]
    """K means; None without good images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Images:
    """(I,) masks of a split's images."""

    defective: NDArray[np.bool_]
    good: NDArray[np.bool_]


def count_images(results: SplitResults, overlaps: Overlaps) -> ImageLevel:
    """Count escapes and overkill.

    Args:
        results: A split with the detections that count.
        overlaps: Of these, of IoU 0.5 and more at least.
    """
    images = _sort_images(results)
    is_defect = results.is_defect(results.found.label)
    boxes = np.bincount(results.found.image[is_defect], minlength=results.num_images)
    hits = np.bincount(results.found.image[_hitting(results, overlaps)], minlength=results.num_images)
    num_defective, num_good = int(images.defective.sum()), int(images.good.sum())
    num_escaped = int((images.defective & (hits == 0)).sum())
    num_unmarked = int((images.defective & (boxes == 0)).sum())
    num_overkilled = int((images.good & (boxes > 0)).sum())
    return ImageLevel(
        num_defective=num_defective,
        num_escaped=num_escaped,
        escape_rate=_share(num_escaped, num_defective),
        num_unmarked=num_unmarked,
        unmarked_rate=_share(num_unmarked, num_defective),
        num_good=num_good,
        num_overkilled=num_overkilled,
        overkill_rate=_share(num_overkilled, num_good),
        false_boxes_per_good_image=_share(int(boxes[images.good].sum()), num_good),
        num_left_out=results.num_images - num_defective - num_good,
    )


def trace_escapes(results: SplitResults, overlaps: Overlaps) -> EscapeCurve:
    """Follow escapes and overkill over all thresholds; of more than 200 points, 200 spread evenly are kept.

    Args:
        results: A split with its raw detections.
        overlaps: Of these, of IoU 0.5 and more at least.
    """
    images = _sort_images(results)
    is_defect = results.is_defect(results.found.label)
    on_good = images.good[results.found.image] & is_defect
    hit_scores = _best_scores(results, _hitting(results, overlaps))[images.defective]
    good_scores = _best_scores(results, np.flatnonzero(on_good))[images.good]
    false_scores = results.found.scores[on_good]
    levels = np.unique(np.concatenate([hit_scores, good_scores, false_scores]))
    levels = levels[levels >= 0][::-1]
    nothing = np.nextafter(levels[:1], np.inf) if len(levels) else np.ones(1)
    thresholds = np.concatenate([nothing, (levels + np.append(levels[1:], 0.0)[: len(levels)]) / 2])
    chosen = np.unique(np.linspace(0, len(thresholds) - 1, MAX_CURVE_POINTS).round().astype(np.int64))
    thresholds = thresholds[chosen]
    return EscapeCurve(
        thresholds=tuple(thresholds.tolist()),
        escape_rate=_shares_below(hit_scores, thresholds),
        overkill_rate=_complements(_shares_below(good_scores, thresholds)),
        false_boxes_per_good_image=tuple(
            _share(int(number), len(good_scores)) for number in _counts_from(false_scores, thresholds)
        ),
    )


def threshold_for_escapes(results: SplitResults, overlaps: Overlaps, max_rate: float) -> float | None:
    """The highest threshold, the same for all classes, at which few enough defective images escape.

    Args:
        results: A split with its raw detections.
        overlaps: Of these, of IoU 0.5 and more at least.
        max_rate: Limit of the escape rate, in [0, 1].

    Returns:
        The threshold, midway to the next lower score; None without defective images, or if even with all
        detections more of them escape.
    """
    images = _sort_images(results)
    scores = np.sort(_best_scores(results, _hitting(results, overlaps))[images.defective])
    may_escape = int(np.floor(max_rate * len(scores) + 1e-9))
    if len(scores) and may_escape >= len(scores):
        return float(np.nextafter(results.found.scores.max(initial=0.0), np.inf))
    if not len(scores) or scores[may_escape] < 0:
        return None
    lowest = float(scores[may_escape])
    return (lowest + float(results.found.scores[results.found.scores < lowest].max(initial=0.0))) / 2


def _sort_images(results: SplitResults) -> _Images:
    truth = results.truth
    is_defect = results.is_defect(truth.label)
    has_crowd, has_defect = (
        np.bincount(truth.image[is_defect & kind], minlength=results.num_images) > 0
        for kind in (truth.is_crowd, ~truth.is_crowd)
    )
    return _Images(defective=has_defect, good=~has_defect & ~has_crowd)


def _hitting(results: SplitResults, overlaps: Overlaps) -> NDArray[np.int64]:
    """Positions of the detections of a defect class on a defect of any class."""
    is_hit = (
        (overlaps.iou >= IOU_50)
        & ~results.truth.is_crowd[overlaps.truth]
        & results.is_defect(results.truth.label[overlaps.truth])
        & results.is_defect(results.found.label[overlaps.found])
    )
    return np.unique(overlaps.found[is_hit])


def _best_scores(results: SplitResults, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(I,) highest score of the detections at some positions; -1 for images with none of them."""
    best = np.full(results.num_images, -1.0)
    np.maximum.at(best, results.found.image[positions], results.found.scores[positions])
    return best


def _share(number: int, whole: int) -> float | None:
    return number / whole if whole else None


def _shares_below(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> tuple[float | None, ...]:
    numbers = np.searchsorted(np.sort(scores), thresholds, side="left")
    return tuple(_share(int(number), len(scores)) for number in numbers)


def _complements(shares: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(None if share is None else 1 - share for share in shares)


def _counts_from(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many scores reach each threshold."""
    counts: NDArray[np.int64] = len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")
    return counts
