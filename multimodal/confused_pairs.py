"""Classes that the frozen detector confuses on the training images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from deim.engine.distributed import DistributedContext
from deim.engine.trained_detector import TrainedDetector
from multimodal.feature_cache import DetectorOutputBatch
from multimodal.loss import FusionCriterion
from multimodal.text_bank import class_cosines, text_bank_from_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """Two classes, of which the detector often predicts the second for the first."""

    label: int
    """Class index of the boxes."""
    predicted_as: int
    """Class index that the detector predicts for them."""
    share: float
    """Share of the first class's boxes, in [0, 1]."""


def count_confusions(
    batches: Iterable[DetectorOutputBatch],
    criterion: FusionCriterion,
    *,
    num_classes: int,
    distributed: DistributedContext,
) -> Tensor:
    """Count the boxes of each class by the class that their matched query scores highest.

    Args:
        batches: Detector outputs of this process.
        criterion: Matches queries with boxes.
        num_classes: C.
        distributed: Processes that share the images.

    Returns:
        (C, C) int64, rows by true class.

    Raises:
        NonFiniteError: If a score or a box is NaN or infinite.
    """
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for batch in batches:
        matched = criterion.match_detector_outputs(batch.images, batch.targets)
        truth = matched.packed.labels[matched.matching.target_idx].cpu()
        predicted = batch.images.pred_logits[matched.matching.index].argmax(dim=-1).cpu()
        counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
    return distributed.sum(counts)


def confused_pairs(counts: Tensor, *, share: float) -> list[ConfusedPair]:
    """List the pairs that are confused in more than a share of the boxes, most confused first.

    Args:
        counts: (C, C), from `count_confusions`.
        share: Share of a class's boxes, in [0, 1].
    """
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    pairs = [
        ConfusedPair(label=label, predicted_as=other, share=float(shares[label, other]))
        for label, other in (shares > share).nonzero().tolist()
    ]
    return sorted(pairs, key=lambda pair: -pair.share)


def tracked_pair(trained: TrainedDetector) -> tuple[int, ...]:
    """Choose the two classes whose confusion a report tracks.

    Args:
        trained: A text fusion.

    Returns:
        Class indices of the pair that the detector confused most when the fusion was trained, the true class
        first; without such a pair, of the two classes with the most similar texts. One index if there is
        only one class.
    """
    confused = trained.task_state["confused"]
    if confused:
        most = max(confused, key=lambda pair: pair["share"])
        return most["label"], most["predicted_as"]
    num_classes = len(trained.class_names)
    if num_classes <= 2:
        return tuple(range(num_classes))
    bank = text_bank_from_dict(trained.task_state["text_bank"], where=str(trained.path))
    # Above the diagonal each pair stands once.
    first, second = torch.triu_indices(num_classes, num_classes, offset=1)
    nearest = int(class_cosines(bank).centered[first, second].argmax())
    return int(first[nearest]), int(second[nearest])
