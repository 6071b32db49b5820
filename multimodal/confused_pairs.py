"""Which classes the frozen detector takes for each other on the training images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from deim.engine.checkpoints import TrainedDetector
from deim.engine.distributed import DistributedContext
from deim.structures import Target
from multimodal.feature_cache import FindingsBatch
from multimodal.loss import FusionCriterion
from multimodal.text_bank import class_cosines, text_bank_from_dict
from multimodal.wrapper import DetectorFindings


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """Two classes, the first of which is often taken for the second."""

    label: int
    """Class index of the boxes."""
    predicted_as: int
    """Class index that the detector gives them."""
    share: float
    """Of the first class's boxes, in [0, 1]."""


def count_confusions(
    batches: Iterable[FindingsBatch],
    criterion: FusionCriterion,
    *,
    num_classes: int,
    distributed: DistributedContext,
) -> Tensor:
    """Count the boxes of each class by the class that their matched query scores highest.

    Args:
        batches: Of this process.
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
        truth, given = _matched_classes(batch.images, batch.targets, criterion)
        counts.index_put_((truth, given), torch.ones_like(truth), accumulate=True)
    return distributed.sum(counts)


def confused_pairs(counts: Tensor, *, share: float) -> list[ConfusedPair]:
    """The pairs of classes that are confused in more than a share of the boxes, the most confused first.

    Args:
        counts: (C, C), from `count_confusions`.
        share: In [0, 1].
    """
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    found = [
        ConfusedPair(label=label, predicted_as=other, share=float(shares[label, other]))
        for label, other in (shares > share).nonzero().tolist()
    ]
    return sorted(found, key=lambda pair: -pair.share)


def _matched_classes(
    found: DetectorFindings, targets: list[Target], criterion: FusionCriterion
) -> tuple[Tensor, Tensor]:
    matched = criterion.match_findings(found, targets)
    matching = matched.matching
    truth = matched.packed.labels[matching.target_idx]
    given = found.pred_logits[matching.index].argmax(dim=-1)
    return truth.cpu(), given.cpu()


def tracked_pair(trained: TrainedDetector) -> tuple[int, ...]:
    """The two classes whose confusion is to be watched.

    Args:
        trained: Of phase 2.

    Returns:
        Class indices: of the pair that the detector confused most when the fusion was trained, the true class
        first; without such a pair, of the two whose texts are nearest. A detector of one class has only that.
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
