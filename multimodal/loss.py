"""The loss of a text fusion: classification by the fused logits, and terms that keep the text meaningful.

Boxes do not change, so they have no loss. Queries are matched with true boxes by the output of the frozen
detector: the text cannot choose its examples, and the matches are the same in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deim.boxes import cxcywh_to_xyxy, iou
from deim.config.checks import below, check
from deim.loss.criterion import LossCounts, Matching
from deim.loss.matcher import HungarianMatcher, PackedTargets, pack_targets
from deim.loss.terms import matchability_aware_loss
from deim.structures import LayerOutput, Target
from multimodal.wrapper import FusedOutput

MARGIN = 1.0
"""Logits by which the text of the true class should exceed the text of a confused class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionLossOptions:
    """Weights of the loss terms; boxes have none."""

    mal: float = 1.0
    """Weight of the matchability-aware classification loss on the fused logits."""
    contrastive: float = 0.5
    """Weight of the cross-entropy over the text of the classes and of the background."""
    margin: float = 0.25
    """Weight of the margin between the text of classes that the detector confuses."""
    anchor: float = 0.1
    """Weight of the distance of the adapted text from the original text."""

    def __post_init__(self) -> None:
        check(below(0, mal=self.mal, contrastive=self.contrastive, margin=self.margin, anchor=self.anchor))


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundQueries:
    """The N unmatched queries of a batch that serve as examples of background."""

    image_idx: Tensor
    """(N,) int64."""
    query_idx: Tensor
    """(N,) int64."""
    weight: Tensor
    """(N,) float32: 1 / number of background queries in the same image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionMatched:
    """The class or background that each chosen query of a batch is an example of."""

    packed: PackedTargets
    matching: Matching
    quality: Tensor
    """(M,) float32 in [0, 1]: IoU of the matched pairs."""
    background: BackgroundQueries

    @property
    def counts(self) -> LossCounts:
        """Counts of this batch alone."""
        boxes = len(self.packed.labels)
        return LossCounts(images=len(self.packed.counts), boxes=boxes, pairs=len(self.matching))


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionCriterion:
    """Weighted loss terms of a batch: `loss_mal`, `loss_contrastive`, `loss_margin`, `loss_anchor`.

    See `deim.engine.step.BatchLoss`.
    """

    matcher: HungarianMatcher
    options: FusionLossOptions
    confused: Sequence[tuple[int, int]] = ()
    """Pairs of class indices that the frozen detector confuses, in any order."""
    mal_gamma: float = 1.5
    """Exponent of the classification loss."""
    background_per_match: int = 3
    """Background queries for each matched one; an image without boxes gets as many as one with a box."""
    max_background_iou: float = 0.5
    """Queries with a higher IoU with a true box are not background: they see what a matched query sees."""

    @torch.no_grad()
    def match(self, outputs: FusedOutput, targets: Sequence[Target], *, epoch: int) -> FusionMatched:
        """Assign boxes to queries by the output of the frozen detector, and choose background queries.

        The epoch (0-based) decides the matching cost.

        Raises:
            NonFiniteError: If the costs are NaN or infinite.
        """
        logits, boxes = outputs["detector_logits"].float(), outputs["pred_boxes"].float()
        device = logits.device
        with torch.autocast(device.type, enabled=False):
            packed = pack_targets(targets, device=device)
            output = LayerOutput(pred_logits=logits, pred_boxes=boxes)
            pairs = self.matcher.match([output], packed, epoch=epoch)[0]
            image_idx, query_idx, target_idx = torch.from_numpy(pairs).to(device)
            matching = Matching(image_idx=image_idx, query_idx=query_idx, target_idx=target_idx)
            boxes_xyxy = cxcywh_to_xyxy(boxes)
            return FusionMatched(
                packed=packed,
                matching=matching,
                quality=iou(boxes_xyxy[matching.index], packed.boxes_xyxy[target_idx]),
                background=self._background(logits, boxes_xyxy, matching, packed),
            )

    def terms(self, outputs: FusedOutput, matched: FusionMatched, counts: LossCounts) -> dict[str, Tensor]:
        """Compute the loss terms of outputs and of what `match` says of them.

        `counts` are `matched.counts`, or their sum over all micro-batches of a step.

        Returns:
            Weighted terms, () float32 each. Those of a micro-batch are its share of the whole batch's terms;
            terms without an example are 0.
        """
        scores, matching = outputs["text_scores"], matched.matching
        classes = matched.packed.labels[matching.target_idx]
        with torch.autocast(classes.device.type, enabled=False):
            mal = matchability_aware_loss(
                outputs["pred_logits"], (*matching.index, classes), matched.quality, gamma=self.mal_gamma
            )
            contrastive = self._contrastive(outputs, matched, classes, counts)
            margin = self._margin(scores.class_logits[matching.index], classes)
            share = len(matched.packed.counts) / max(counts.images, 1)
            distance = (1 - (scores.class_text * scores.plain_text).sum(dim=-1)).mean()
            return {
                "loss_mal": self.options.mal * mal / max(counts.boxes, 1),
                "loss_contrastive": self.options.contrastive * contrastive,
                "loss_margin": self.options.margin * margin / max(counts.pairs, 1),
                "loss_anchor": self.options.anchor * distance * share,
            }

    def _background(
        self, logits: Tensor, boxes_xyxy: Tensor, matching: Matching, packed: PackedTargets
    ) -> BackgroundQueries:
        """Choose the unmatched queries with the highest scores in each image, away from true boxes."""
        num_images, num_queries = logits.shape[:2]
        overlaps = iou(boxes_xyxy[packed.image_idx], packed.boxes_xyxy[:, None]) > self.max_background_iou
        excluded = torch.zeros(num_images, num_queries, device=logits.device)
        excluded.index_add_(0, packed.image_idx, overlaps.float())
        excluded[matching.index] = 1.0
        lowest = torch.finfo(logits.dtype).min
        scores = logits.max(dim=-1).values.clamp(min=lowest).masked_fill(excluded > 0, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        most = self.background_per_match * torch.tensor(packed.counts, device=logits.device).clamp(min=1)
        numbers = torch.minimum(most, (excluded == 0).sum(dim=1))
        chosen = torch.arange(num_queries, device=logits.device) < numbers[:, None]
        image_idx, place = chosen.nonzero(as_tuple=True)
        return BackgroundQueries(
            image_idx=image_idx, query_idx=order[image_idx, place], weight=1 / numbers[image_idx].float()
        )

    def _contrastive(
        self, outputs: FusedOutput, matched: FusionMatched, classes: Tensor, counts: LossCounts
    ) -> Tensor:
        """Cross-entropy over the text of the classes and of the background.

        The mean over matched queries, and the mean over images of the mean over their background queries,
        weighted as if every matched query had all its background queries.
        """
        scores, background = outputs["text_scores"], matched.background
        logits = torch.cat([scores.class_logits, scores.background_logits[..., None]], dim=-1)
        log_share = logits.log_softmax(dim=-1)
        objects = -log_share[(*matched.matching.index, classes)].sum() / max(counts.pairs, 1)
        surface = -(log_share[background.image_idx, background.query_idx, -1] * background.weight).sum()
        ratio = self.background_per_match
        return (objects + ratio * surface / max(counts.images, 1)) / (1 + ratio)

    def _margin(self, class_logits: Tensor, classes: Tensor) -> Tensor:
        """Sum over matched queries of the mean softplus by which rivals (M, C) come within the margin."""
        lead = class_logits.gather(1, classes[:, None]) - class_logits
        confused = torch.zeros(class_logits.shape[1], class_logits.shape[1])
        for first, second in self.confused:
            confused[first, second] = confused[second, first] = 1.0
        rivals = confused.to(classes.device)[classes]
        shortfall = F.softplus(MARGIN - lead) * rivals
        return (shortfall.sum(dim=1) / rivals.sum(dim=1).clamp(min=1)).sum()
