"""Classes that the frozen detector confuses on the training images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from deim.engine.context import RunContext
from deim.engine.log import progress_bar
from deim.engine.task import TaskLoader
from deim.loss.matcher import HungarianMatcher, pack_targets
from deim.structures import LayerOutput
from multimodal.feature_cache import run_detector_in_chunks
from multimodal.text_bank import TextBank, class_cosines
from multimodal.wrapper import DetectorOutputs, TextFusedDetector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """Two classes, of which the detector often predicts the second for the first."""

    label: int
    """Class index of the boxes."""
    predicted_as: int
    """Class index that the detector predicts for them."""
    share: float
    """Share of the first class's boxes, in [0, 1]."""


def find_confused_pairs(
    context: RunContext, model: TextFusedDetector, loader: TaskLoader, *, min_share: float
) -> tuple[ConfusedPair, ...]:
    """Find the classes that the detector confuses on the training images, and log the most frequent pair.

    A box counts for the class that its matched query scores highest.

    Raises:
        NonFiniteError: If a score or a box of the detector is NaN or infinite.
    """
    config, names = context.config, context.splits.train.class_names
    matcher = HungarianMatcher(config.loss.matcher, late_epoch=config.epochs)
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    loader.set_epoch(0)
    is_main = context.distributed.is_main
    with progress_bar("outputs of the detector", total=len(loader), is_shown=is_main) as advance:
        for batch in loader:
            outputs = batch.images
            if not isinstance(outputs, DetectorOutputs):
                images = outputs.to(context.device)
                outputs = run_detector_in_chunks(
                    model, images, config.data.eval_batch_size, context.precision
                )
            logits, boxes = outputs.pred_logits.float(), outputs.pred_boxes.float()
            packed = pack_targets(batch.targets, device=logits.device)
            output = LayerOutput(pred_logits=logits, pred_boxes=boxes)
            image_idx, query_idx, target_idx = torch.from_numpy(matcher.match([output], packed, epoch=0)[0])
            truth = packed.labels.cpu()[target_idx]
            predicted = logits.argmax(dim=-1).cpu()[image_idx, query_idx]
            counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
            advance("")
    pairs = confused_pairs(context.distributed.sum(counts), min_share=min_share)
    message = f"pairs of classes confused in more than {min_share:.0%} of the boxes: {len(pairs)}"
    if pairs:
        first = pairs[0]
        message += f", most often {names[first.label]} as {names[first.predicted_as]} ({first.share:.0%})"
    logger.info("detector: %s", message)
    return pairs


def confused_pairs(counts: Tensor, *, min_share: float) -> tuple[ConfusedPair, ...]:
    """List the pairs that are confused in more than a share of the boxes, most confused first.

    Args:
        counts: (C, C) boxes, rows by true class, columns by predicted class.
        min_share: Share of a class's boxes, in [0, 1].
    """
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    pairs = [
        ConfusedPair(label=label, predicted_as=other, share=float(shares[label, other]))
        for label, other in (shares > min_share).nonzero().tolist()
    ]
    return tuple(sorted(pairs, key=lambda pair: -pair.share))


def tracked_pair(confused: Sequence[ConfusedPair], bank: TextBank) -> tuple[int, ...]:
    """Choose the two classes whose confusion a report tracks.

    Returns:
        Class indices of the pair that the detector confuses most, the true class first; without such a pair,
        of the two classes with the most similar texts. One index if there is only one class.
    """
    if confused:
        most = max(confused, key=lambda pair: pair.share)
        return most.label, most.predicted_as
    if len(bank.class_names) == 1:
        return (0,)
    centered = class_cosines(bank).centered
    return max(combinations(range(len(centered)), 2), key=lambda pair: float(centered[pair]))
