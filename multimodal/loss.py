"""The loss of phase 2: classification by the fused logits, and what keeps the text meaningful.

Boxes do not change, so that they have no loss. Queries are matched with true boxes by the detector's own
output, so that the text cannot choose its own examples, and matches stay the same while the detector does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.boxes import cxcywh_to_xyxy, iou
from deim.loss.criterion import LossCounts, Matching
from deim.loss.matcher import HungarianMatcher, PackedTargets, pack_targets
from deim.loss.terms import matchability_aware_loss
from deim.structures import LayerOutput, Target
from multimodal.wrapper import DetectorFindings, FusedOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionLossWeights:
    """Weights of the terms, 0 or more each."""

    mal: float = 1.0
    """Of the matchability-aware classification loss on the fused logits."""
    contrastive: float = 0.5
    """Of the choice between the text of the classes and of the background."""
    margin: float = 0.25
    """Of the distance between classes that are confused."""
    anchor: float = 0.1
    """Of the nearness of the adapted text to the text itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundQueries:
    """The unmatched queries that are shown as background; N of them in the batch."""

    image_idx: Tensor
    """(N,) int64."""
    query_idx: Tensor
    """(N,) int64."""
    weight: Tensor
    """(N,) float32: one over the number of them in the same image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionMatched:
    """What each query of a batch is an example of."""

    packed: PackedTargets
    matching: Matching
    quality: Tensor
    """(M,) float32 in [0, 1]: IoU of the matched pairs."""
    background: BackgroundQueries

    @property
    def counts(self) -> LossCounts:
        """Of this batch alone."""
        packed = self.packed
        return LossCounts(images=len(packed.counts), boxes=len(packed.labels), pairs=len(self.matching))


class FusionCriterion(nn.Module):
    """Weighted loss terms of a batch: `loss_mal`, `loss_contrastive`, `loss_margin`, `loss_anchor`.

    Args:
        matcher: Assigns queries to boxes.
        weights: Weights of the terms.
        num_classes: C.
        confused: Pairs of class indices that the frozen detector confuses, the order within a pair does not
            matter.
        mal_gamma: Exponent of the classification loss.
        margin: Logits by which the text of the true class should lead that of a confused one.
        background_per_match: Background queries for every matched one; images without boxes have as many as
            those with one.
        max_background_iou: Queries that overlap a true box by more than this are no background, since they
            look at the same object as a matched query.

    Raises:
        ValueError: If a pair does not name two classes.
    """

    rivals: Tensor

    def __init__(
        self,
        matcher: HungarianMatcher,
        weights: FusionLossWeights,
        *,
        num_classes: int,
        confused: Sequence[tuple[int, int]] = (),
        mal_gamma: float = 1.5,
        margin: float = 1.0,
        background_per_match: int = 3,
        max_background_iou: float = 0.5,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = weights
        self.mal_gamma = mal_gamma
        self.margin = margin
        self.background_per_match = background_per_match
        self.max_background_iou = max_background_iou
        rivals = torch.zeros(num_classes, num_classes)
        for pair in confused:
            if len(set(pair)) != 2 or not all(0 <= label < num_classes for label in pair):
                raise ValueError(
                    f"confused: got the pair {pair}. It must be two different class indices from 0 to "
                    f"{num_classes - 1}. Take them from a confusion matrix of this detector."
                )
            one, other = pair
            rivals[one, other] = rivals[other, one] = 1.0
        self.register_buffer("rivals", rivals, persistent=False)

    def forward(
        self, outputs: FusedOutput, targets: Sequence[Target], *, epoch: int = 0
    ) -> dict[str, Tensor]:
        """Compute the loss terms; their plain sum is the loss.

        Args:
            outputs: What `TextFusedDetector` returned.
            targets: Ground truth, an image each.
            epoch: 0-based; decides the matching cost.

        Returns:
            Weighted terms, () float32 each.

        Raises:
            NonFiniteError: If the matching costs are NaN or infinite.
        """
        matched = self.match(outputs, targets, epoch=epoch)
        return self.terms(outputs, matched, matched.counts)

    def match(self, outputs: FusedOutput, targets: Sequence[Target], *, epoch: int) -> FusionMatched:
        """Assign boxes to queries by the detector's own output, and choose the background queries.

        Args:
            outputs: What `TextFusedDetector` returned.
            targets: Ground truth, an image each.
            epoch: 0-based; decides the matching cost. Matches stay the same as long as it does.

        Raises:
            NonFiniteError: If the costs are NaN or infinite.
        """
        return self._match(outputs["detector_logits"], outputs["pred_boxes"], targets, epoch=epoch)

    def match_findings(self, found: DetectorFindings, targets: Sequence[Target]) -> FusionMatched:
        """Do the same for what the detector found, with the cost of the first epoch.

        Args:
            found: Of a batch.
            targets: Ground truth, an image each.

        Raises:
            NonFiniteError: If the costs are NaN or infinite.
        """
        return self._match(found.pred_logits, found.pred_boxes, targets, epoch=0)

    @torch.no_grad()
    def _match(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], *, epoch: int
    ) -> FusionMatched:
        logits, boxes = logits.float(), boxes.float()
        device = logits.device
        with torch.autocast(device.type, enabled=False):
            packed = pack_targets(targets, device=device)
            own_output = LayerOutput(pred_logits=logits, pred_boxes=boxes)
            pairs = self.matcher.match([own_output], packed, epoch=epoch)[0]
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
        """Compute the loss terms of a matched batch.

        Args:
            outputs: What was matched.
            matched: From `match`.
            counts: What to average over: `matched.counts`, or the sum over all parts of a step.

        Returns:
            Weighted terms, () float32 each: of a part, its share of the whole batch's. Terms without an
            example in the batch are 0.
        """
        evidence, matching = outputs["evidence"], matched.matching
        classes = matched.packed.labels[matching.target_idx]
        with torch.autocast(classes.device.type, enabled=False):
            mal = matchability_aware_loss(
                outputs["pred_logits"], (*matching.index, classes), matched.quality, gamma=self.mal_gamma
            )
            share = len(matched.packed.counts) / max(counts.images, 1)
            away = (1 - (evidence.class_text * evidence.plain_text).sum(dim=-1)).mean()
            return {
                "loss_mal": self.weights.mal * mal / max(counts.boxes, 1),
                "loss_contrastive": self.weights.contrastive
                * self._contrastive(outputs, matched, classes, counts),
                "loss_margin": self.weights.margin
                * self._margin(evidence.class_logits[matching.index], classes)
                / max(counts.pairs, 1),
                "loss_anchor": self.weights.anchor * away * share,
            }

    def _background(
        self, logits: Tensor, boxes_xyxy: Tensor, matching: Matching, packed: PackedTargets
    ) -> BackgroundQueries:
        """The unmatched queries of each image that the detector is surest of, away from true boxes."""
        num_images, num_queries = logits.shape[:2]
        overlaps = iou(boxes_xyxy[packed.image_idx], packed.boxes_xyxy[:, None]) > self.max_background_iou
        excluded = torch.zeros(num_images, num_queries, device=logits.device)
        excluded.index_add_(0, packed.image_idx, overlaps.float())
        excluded[matching.index] = 1.0
        lowest = torch.finfo(logits.dtype).min
        scores = logits.max(dim=-1).values.clamp(min=lowest).masked_fill(excluded > 0, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        wanted = self.background_per_match * torch.tensor(packed.counts, device=logits.device).clamp(min=1)
        numbers = torch.minimum(wanted, (excluded == 0).sum(dim=1))
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
        joined as if every matched query had all its background queries.
        """
        evidence, background = outputs["evidence"], matched.background
        log_share = torch.cat(
            [evidence.class_logits, evidence.background_logits[..., None]], dim=-1
        ).log_softmax(dim=-1)
        objects = -log_share[(*matched.matching.index, classes)].sum() / max(counts.pairs, 1)
        surface = -(log_share[background.image_idx, background.query_idx, -1] * background.weight).sum()
        ratio = self.background_per_match
        return (objects + ratio * surface / max(counts.images, 1)) / (1 + ratio)

    def _margin(self, class_logits: Tensor, classes: Tensor) -> Tensor:
        """Sum over matched queries (M, C) of how far their class fails to lead its rivals, on average."""
        lead = class_logits.gather(1, classes[:, None]) - class_logits
        rivals = self.rivals.to(classes.device)[classes]
        shortfall = F.softplus(self.margin - lead) * rivals
        return (shortfall.sum(dim=1) / rivals.sum(dim=1).clamp(min=1)).sum()
