"""Which detection hits which ground-truth box: COCO's rule, and the overlaps that it is decided on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from deim.boxes import coco_overlap
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.coco import MAX_DETECTIONS

IOU_50 = 0.5
COCO_IOU_THRESHOLDS = tuple(float(threshold) for threshold in np.linspace(0.5, 0.95, 10))
MIN_IOU = 0.1
"""Lowest overlap that any analysis needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Result of COCO's assignment of D detections at T IoU thresholds."""

    truth: NDArray[np.int32]
    """(T, D) position of the ground-truth box that the detection hits; -1 where it hits none."""
    is_ignored: NDArray[np.bool_]
    """(T, D) true where the detection lies in a crowd region of its class and counts neither as TP nor FP."""

    @property
    def is_tp(self) -> NDArray[np.bool_]:
        """(T, D) true where the detection hits a box that is not a crowd region."""
        return self.truth >= 0

    @property
    def is_fp(self) -> NDArray[np.bool_]:
        """(T, D) true where the detection hits nothing and is not ignored."""
        return ~self.is_tp & ~self.is_ignored


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Detections of a split, its ground truth, and the P pairs of both that overlap by IoU 0.1 or more."""

    ground_truth: GroundTruthTable
    detections: DetectionTable
    detection: NDArray[np.int64]
    """(P,) position of the detection, ascending."""
    truth: NDArray[np.int64]
    """(P,) position of a box of the same image, of any class; ascending for each detection."""
    iou: NDArray[np.float64]
    """(P,) in [0, 1]; with a crowd region, the share of the detection that lies in it."""
    max_detections: int = MAX_DETECTIONS
    """Detections of an image and a class that AP counts."""

    @cached_property
    def is_same_class(self) -> NDArray[np.bool_]:
        """(P,) true where both are of one class."""
        return self.detections.label[self.detection] == self.ground_truth.label[self.truth]

    @cached_property
    def assignment(self) -> Assignment:
        """Assignment at IoU 0.5."""
        return assign(self, (IOU_50,))

    @cached_property
    def coco_assignment(self) -> Assignment:
        """Assignment at the ten IoU thresholds of COCO."""
        return assign(self, COCO_IOU_THRESHOLDS)

    @cached_property
    def ranking(self) -> NDArray[np.int64]:
        """Positions of the detections that AP counts, in the order in which COCO ranks them.

        The order is that of falling score, and of ascending image id for equal scores.
        """
        image_ids = np.array(self.ground_truth.image_ids, dtype=np.int64)
        order = np.lexsort((image_ids[self.detections.image], -self.detections.score))
        return order[rank_in_class(self.detections)[order] < self.max_detections]

    @cached_property
    def is_hit(self) -> NDArray[np.bool_]:
        """(G,) true for boxes that a detection hits at IoU 0.5."""
        return np.isin(np.arange(len(self.ground_truth)), self.assignment.truth[0])

    def take(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Overlaps":
        """Return some of the detections, by a (D,) mask or ascending positions, with their pairs."""
        rows = np.flatnonzero(kept) if kept.dtype == np.bool_ else kept
        if len(rows) == len(self.detections):
            return self
        position = np.full(len(self.detections), -1, dtype=np.int64)
        position[rows] = np.arange(len(rows))
        moved = position[self.detection]
        stays = moved >= 0
        return Overlaps(
            ground_truth=self.ground_truth,
            detections=self.detections.take(rows),
            detection=moved[stays],
            truth=self.truth[stays],
            iou=self.iou[stays],
            max_detections=self.max_detections,
        )


def compute_overlaps(
    ground_truth: GroundTruthTable, detections: DetectionTable, *, max_detections: int = MAX_DETECTIONS
) -> Overlaps:
    """Compute the overlaps of detections with the ground truth of their images; see `Overlaps`."""
    borders = np.arange(ground_truth.num_images + 1)
    first_detection = np.searchsorted(detections.image, borders)
    first_truth = np.searchsorted(ground_truth.image, borders)
    has_both = (np.diff(first_detection) > 0) & (np.diff(first_truth) > 0)
    boxes, truth = torch.from_numpy(detections.boxes_xywh), torch.from_numpy(ground_truth.boxes_xywh)
    is_crowd = torch.from_numpy(ground_truth.is_crowd)
    columns = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))]
    for image in np.flatnonzero(has_both).tolist():
        rows = slice(first_detection[image], first_detection[image + 1])
        truths = slice(first_truth[image], first_truth[image + 1])
        iou = coco_overlap(boxes[rows], truth[truths], is_crowd=is_crowd[truths]).numpy()
        row, column = np.nonzero(iou >= MIN_IOU)
        columns.append((row + rows.start, column + truths.start, iou[row, column]))
    detection, truth_position, values = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Overlaps(
        ground_truth=ground_truth,
        detections=detections,
        detection=detection,
        truth=truth_position,
        iou=values,
        max_detections=max_detections,
    )


def assign(overlaps: Overlaps, iou_thresholds: Sequence[float]) -> Assignment:
    """Assign detections to ground-truth boxes of their class by COCO's rule.

    In the order of falling score, each detection takes the free box of its class that it overlaps most, if
    the overlap reaches the threshold; of equal overlaps the last box. A detection that gets none may lie in a
    crowd region. A lower score never changes what a higher one hits, so a threshold on scores may be applied
    afterwards.

    Args:
        overlaps: Detections and boxes of a split.
        iou_thresholds: T thresholds in [0.1, 1].

    Source:
        The evaluation code of COCO (Lin et al., 2014), with all areas and without a limit of detections.
    """
    ground_truth, detections = overlaps.ground_truth, overlaps.detections
    limits = np.minimum(np.array(iou_thresholds), 1 - 1e-10)
    truth = np.full((len(limits), len(detections)), -1, dtype=np.int32)
    is_ignored = np.zeros((len(limits), len(detections)), dtype=np.bool_)
    is_taken = np.zeros((len(limits), len(ground_truth)), dtype=np.bool_)
    pairs = np.flatnonzero(overlaps.is_same_class & (overlaps.iou >= limits.min()))
    # Images and classes are independent: first the best detection of each takes its box, then the second…
    paired, pair_of = np.unique(overlaps.detection[pairs], return_inverse=True)
    rank = rank_in_class(detections.take(paired))[pair_of]
    pairs = pairs[np.argsort(rank, kind="stable")]
    rounds = np.split(pairs, np.cumsum(np.bincount(rank))[:-1]) if len(pairs) else []
    for pairs_of_round in rounds:
        candidates, iou = overlaps.truth[pairs_of_round], overlaps.iou[pairs_of_round]
        owners, starts, counts = np.unique(
            overlaps.detection[pairs_of_round], return_index=True, return_counts=True
        )
        is_crowd = ground_truth.is_crowd[candidates]
        reaches = iou >= limits[:, None]
        value = np.where(reaches & ~is_crowd & ~is_taken[:, candidates], iou, -1.0)
        best = np.maximum.reduceat(value, starts, axis=1)
        is_best = (value == np.repeat(best, counts, axis=1)) & (value >= 0)
        last = np.maximum.reduceat(np.where(is_best, np.arange(len(candidates)), -1), starts, axis=1)
        level, column = np.nonzero(last >= 0)
        hit = candidates[last[level, column]]
        truth[level, owners[column]] = hit
        is_taken[level, hit] = True
        is_ignored[:, owners] = (last < 0) & np.logical_or.reduceat(reaches & is_crowd, starts, axis=1)
    return Assignment(truth=truth, is_ignored=is_ignored)


def iou_with(boxes_xywh: NDArray[np.float64], box_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the IoU (N,) in [0, 1] of boxes (N, 4), or of one box (4,), with one box (4,), in pixels."""
    overlap = coco_overlap(
        torch.from_numpy(boxes_xywh.reshape(-1, 4)),
        torch.from_numpy(box_xywh.reshape(1, 4)),
        is_crowd=torch.zeros(1, dtype=torch.bool),
    )
    iou: NDArray[np.float64] = overlap[:, 0].numpy()
    return iou


def rank_in_class(detections: DetectionTable) -> NDArray[np.int64]:
    """Count (D,) the detections of the same image and class that come before each detection."""
    num_classes = int(detections.label.max(initial=0)) + 1
    group = detections.image * num_classes + detections.label
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order], side="left")
    ranks = np.empty(len(detections), dtype=np.int64)
    ranks[order] = np.arange(len(detections)) - starts
    return ranks
