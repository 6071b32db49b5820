"""Assignment of queries to true boxes: for each output, and by vote for all outputs.

Source:
    DETR (arXiv:2005.12872), section 3.1; focal cost as in Deformable DETR (arXiv:2010.04159); the late,
    IoU-weighted cost of DEIMv2 (arXiv:2509.20787).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, generalized_iou, iou
from deim.config.checks import below, check, not_fraction, not_positive
from deim.errors import NonFiniteError
from deim.structures import LayerOutput, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class MatcherOptions:
    """Costs of the Hungarian assignment of queries to boxes."""

    cost_class: float = 2.0
    """Weight of the focal classification cost."""
    cost_bbox: float = 5.0
    """Weight of the L1 distance of normalized cxcywh boxes."""
    cost_giou: float = 2.0
    """Weight of the negative generalized IoU."""
    alpha: float = 0.25
    """Balance of the focal cost, in [0, 1]."""
    gamma: float = 2.0
    """Exponent of the focal cost."""
    iou_order: float = 4.0
    """Exponent of the IoU in the cost that is used from `schedule.matcher_change_epoch` on."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, cost_class=self.cost_class, cost_bbox=self.cost_bbox, cost_giou=self.cost_giou),
                *below(0, gamma=self.gamma),
                *not_fraction(alpha=self.alpha),
                *not_positive(iou_order=self.iou_order),
            ]
        )


PROBABILITY_FLOOR = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTargets:
    """The boxes of a batch, one after another. T counts the boxes of all images."""

    boxes_cxcywh: Tensor
    """(T, 4) float32."""
    boxes_xyxy: Tensor
    """(T, 4) float32."""
    labels: Tensor
    """(T,) int64."""
    image_idx: Tensor
    """(T,) int64, position of each box's image in the batch."""
    counts: tuple[int, ...]
    """Boxes of each image."""

    @property
    def offsets(self) -> list[int]:
        """Position of each image's first box, and the number of all boxes at the end."""
        return [0, *np.cumsum(self.counts, dtype=int).tolist()]


def pack_targets(targets: Sequence[Target], *, device: torch.device) -> PackedTargets:
    """Join the boxes of a batch on the device of the loss."""
    counts = tuple(len(target["labels"]) for target in targets)
    boxes = torch.cat([target["boxes"].float().view(-1, 4) for target in targets]).to(device)
    return PackedTargets(
        boxes_cxcywh=boxes,
        boxes_xyxy=cxcywh_to_xyxy(boxes),
        labels=torch.cat([target["labels"].view(-1) for target in targets]).to(device),
        image_idx=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device),
        counts=counts,
    )


Pairs = NDArray[np.int64]
"""(3, M) int64: image, query and target index of each pair; targets are numbered through the batch."""


class HungarianMatcher:
    """Finds for every output the cheapest one-to-one assignment of queries to boxes.

    Args:
        options: Weights and exponents of the costs.
        late_epoch: First epoch (0-based) in which the late cost, -p · IoU^iou_order, replaces the others.
    """

    def __init__(self, options: MatcherOptions, *, late_epoch: int) -> None:
        self.options = options
        self.late_epoch = late_epoch

    @torch.no_grad()
    def match(self, outputs: Sequence[LayerOutput], targets: PackedTargets, *, epoch: int) -> list[Pairs]:
        """Match every output; all costs are computed together and copied to the host once.

        Args:
            outputs: Outputs of the same B and Q, in float32.
            targets: The boxes of the batch.
            epoch: 0-based.

        Returns:
            The pairs of each output, image by image, targets ascending within an image.

        Raises:
            NonFiniteError: If a cost is NaN or infinite.
        """
        if not len(targets.labels):
            return [np.zeros((3, 0), dtype=np.int64) for _ in outputs]
        costs = self._costs(outputs, targets, epoch).cpu().numpy()
        if not np.isfinite(costs).all():
            raise NonFiniteError("matcher: the network's scores or boxes are NaN or infinite.")
        return [self._assign(cost, targets) for cost in costs]

    def _costs(self, outputs: Sequence[LayerOutput], targets: PackedTargets, epoch: int) -> Tensor:
        """(O, T, Q) float32: cost of each query in the image of a box, for each output."""
        image, label, options = targets.image_idx, targets.labels, self.options
        probabilities = torch.stack([out["pred_logits"][image, :, label] for out in outputs]).sigmoid()
        boxes = torch.stack([out["pred_boxes"][image] for out in outputs])
        boxes_xyxy, true_xyxy = cxcywh_to_xyxy(boxes), targets.boxes_xyxy[:, None]
        if epoch >= self.late_epoch:
            return -probabilities * iou(boxes_xyxy, true_xyxy) ** options.iou_order
        miss = 1 - probabilities
        positive = options.alpha * miss**options.gamma * -(probabilities + PROBABILITY_FLOOR).log()
        negative = (1 - options.alpha) * probabilities**options.gamma * -(miss + PROBABILITY_FLOOR).log()
        distance = (boxes - targets.boxes_cxcywh[:, None]).abs().sum(dim=-1)
        return (
            options.cost_class * (positive - negative)
            + options.cost_bbox * distance
            - options.cost_giou * generalized_iou(boxes_xyxy, true_xyxy)
        )

    @staticmethod
    def _assign(cost: NDArray[np.float32], targets: PackedTargets) -> Pairs:
        pairs = []
        for image, (start, count) in enumerate(zip(targets.offsets, targets.counts, strict=False)):
            target_idx, query_idx = linear_sum_assignment(cost[start : start + count])
            image_idx = np.full(len(query_idx), image)
            pairs.append(np.stack([image_idx, query_idx, target_idx + start]))
        return np.concatenate(pairs, axis=1).astype(np.int64)


def vote_union(matchings: Sequence[Pairs], *, ties: Literal["first", "reference"] = "first") -> Pairs:
    """Join the matchings of all outputs so that each query has at most one box.

    A query that the outputs match differently gets the box that most of them chose. One box may have several
    queries.

    Args:
        matchings: Pairs of each output, over the same batch.
        ties: With equal votes, `first` takes the box that comes first in the batch. `reference`, for
            comparisons, takes what the official code takes: the order of a sort that is not stable above 16
            pairs an image and may change with the version of torch.

    Returns:
        The chosen pairs, by image, then query.

    Source:
        Global optimal matching of D-FINE (arXiv:2410.13842), section 4.2.
    """
    pairs, votes = np.unique(np.concatenate(matchings, axis=1), axis=1, return_counts=True)
    image, query, _ = pairs
    rank = _reference_rank(image, votes) if ties == "reference" else -votes
    ordered = pairs[:, np.lexsort((rank, query, image))]
    is_first = np.ones(ordered.shape[1], dtype=bool)
    is_first[1:] = (ordered[:2, 1:] != ordered[:2, :-1]).any(axis=0)
    return ordered[:, is_first]


def _reference_rank(image: NDArray[np.int64], votes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each pair in torch's default sort of its image's votes, highest first."""
    rank = np.empty_like(votes)
    for index in np.unique(image):
        places = np.flatnonzero(image == index)
        order = torch.argsort(torch.from_numpy(votes[places]), descending=True).numpy()
        rank[places[order]] = np.arange(len(places))
    return rank
