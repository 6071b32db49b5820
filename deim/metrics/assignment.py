"""Which detection hits which ground-truth box: COCO's rule, and the overlaps that it is decided on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deim.boxes import coco_overlap
from deim.inference.detection_table import FoundBoxes, SplitResults

IOU_50 = 0.5
COCO_IOU_THRESHOLDS = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
MIN_IOU = 0.1
"""The least overlap that any analysis asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlaps:
    """Pairs of a detection and a ground-truth box of the same image, of any class. P counts them."""

    found: NDArray[np.int64]
    """(P,) position of the detection, ascending."""
    truth: NDArray[np.int64]
    """(P,) position of the ground-truth box, ascending for each detection."""
    iou: NDArray[np.float64]
    """(P,) in [0, 1]; with a crowd region, the share of the detection that lies in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The outcome of COCO's assignment at T IoU thresholds for D detections."""

    iou_thresholds: tuple[float, ...]
    """T thresholds in [0, 1]."""
    truth: NDArray[np.int64]
    """(T, D) position of the ground-truth box that the detection hits; -1 where it hits none."""
    is_ignored: NDArray[np.bool_]
    """(T, D) true where the detection lies in a crowd region of its class: neither right nor wrong."""

    @property
    def is_hit(self) -> NDArray[np.bool_]:
        """(T, D) true where the detection hits a box that is not a crowd region."""
        return self.truth >= 0

    @property
    def is_false(self) -> NDArray[np.bool_]:
        """(T, D) true where the detection hits nothing and is not ignored."""
        return ~self.is_hit & ~self.is_ignored


def compute_overlaps(results: SplitResults, *, min_iou: float = MIN_IOU) -> Overlaps:
    """Overlaps of detections with the ground truth of their images, classes disregarded.

    Args:
        results: The split.
        min_iou: Smaller overlaps are left out, in (0, 1].
    """
    borders = np.arange(results.num_images + 1)
    first_found = np.searchsorted(results.found.image, borders)
    first_truth = np.searchsorted(results.truth.image, borders)
    parts = []
    for image in range(results.num_images):
        founds = slice(first_found[image], first_found[image + 1])
        truths = slice(first_truth[image], first_truth[image + 1])
        if founds.start == founds.stop or truths.start == truths.stop:
            continue
        iou = coco_overlap(
            torch.from_numpy(results.found.boxes_xywh[founds]),
            torch.from_numpy(results.truth.boxes_xywh[truths]),
            is_crowd=torch.from_numpy(results.truth.is_crowd[truths]),
        ).numpy()
        rows, columns = np.nonzero(iou >= min_iou)
        parts.append((rows + founds.start, columns + truths.start, iou[rows, columns]))
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return Overlaps(found=nothing, truth=nothing, iou=np.zeros(0))
    found, truth, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Overlaps(found=found, truth=truth, iou=iou)


def assign(
    results: SplitResults, overlaps: Overlaps, *, iou_thresholds: Sequence[float] = (IOU_50,)
) -> Assignment:
    """Assign detections to ground-truth boxes of their class by COCO's rule.

    In the order of falling score, each detection takes the free box of its class that it overlaps most, if by
    at least the threshold; of boxes overlapped alike the last. One that gets none may lie in a crowd region.
    A lower score never changes what a higher one hits, so a threshold on scores may be applied afterwards.

    Args:
        results: The split.
        overlaps: Of `results`; those of at least the lowest threshold are needed.
        iou_thresholds: T thresholds in (0, 1].

    Source:
        The evaluation code of COCO (Lin et al., 2014), with all areas and without a limit of detections.
    """
    limits = np.minimum(np.array(iou_thresholds), 1 - 1e-10)
    num_found = len(results.found)
    hit = np.full((len(limits), num_found), -1, dtype=np.int64)
    is_ignored = np.zeros((len(limits), num_found), dtype=np.bool_)
    is_taken = np.zeros((len(limits), len(results.truth)), dtype=np.bool_)
    relevant = (results.found.label[overlaps.found] == results.truth.label[overlaps.truth]) & (
        overlaps.iou >= limits.min()
    )
    found, truth, iou = overlaps.found[relevant], overlaps.truth[relevant], overlaps.iou[relevant]
    owners, starts, counts = np.unique(found, return_index=True, return_counts=True)
    for owner, start, stop in zip(owners, starts, starts + counts, strict=True):
        candidates = truth[start:stop]
        overlap = iou[start:stop]
        is_crowd = results.truth.is_crowd[candidates]
        reaches = overlap >= limits[:, None]
        is_free = reaches & ~is_crowd & ~is_taken[:, candidates]
        # Reversed, so that of equal overlaps the last one counts.
        best = len(candidates) - 1 - np.argmax(np.where(is_free, overlap, -1.0)[:, ::-1], axis=1)
        has_hit = is_free.any(axis=1)
        hit[has_hit, owner] = candidates[best[has_hit]]
        is_taken[has_hit, candidates[best[has_hit]]] = True
        is_ignored[:, owner] = ~has_hit & (reaches & is_crowd).any(axis=1)
    return Assignment(
        iou_thresholds=tuple(float(limit) for limit in iou_thresholds), truth=hit, is_ignored=is_ignored
    )


def iou_with(boxes_xywh: NDArray[np.float64], box_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes with one box.

    Args:
        boxes_xywh: (N, 4) or (4,), pixels.
        box_xywh: (4,), pixels.

    Returns:
        (N,) in [0, 1].
    """
    overlap = coco_overlap(
        torch.from_numpy(boxes_xywh.reshape(-1, 4)),
        torch.from_numpy(box_xywh.reshape(1, 4)),
        is_crowd=torch.zeros(1, dtype=torch.bool),
    )
    found: NDArray[np.float64] = overlap[:, 0].numpy()
    return found


def rank_in_class(found: FoundBoxes) -> NDArray[np.int64]:
    """(D,) how many detections of the same image and class come before each detection.

    Args:
        found: Detections of a split.
    """
    num_classes = int(found.label.max(initial=0)) + 1
    group = found.image * num_classes + found.label
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order], side="left")
    ranks = np.empty(len(found), dtype=np.int64)
    ranks[order] = np.arange(len(found)) - starts
    return ranks
