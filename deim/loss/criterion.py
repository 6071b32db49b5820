"""The training loss: every supervised output against the true boxes.

Source:
    DEIMv2 (arXiv:2509.20787) with the terms of DEIM and D-FINE; see `terms.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deim.boxes import cxcywh_to_xyxy, generalized_iou, iou
from deim.config.checks import below, check, not_positive
from deim.loss.matcher import HungarianMatcher, MatcherOptions, PackedTargets, Pairs, pack_targets
from deim.loss.terms import (
    Teacher,
    decoupled_distillation_loss,
    fine_grained_localization_loss,
    matchability_aware_loss,
    soften,
)
from deim.loss.union_matching import vote_union
from deim.model.decoder.distribution import boxes_to_bins
from deim.structures import DenoisingMeta, LayerOutput, ModelOutput, Target


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOptions:
    """Weights and exponents of the loss terms."""

    mal: float = 1.0
    """Weight of the matchability-aware classification loss."""
    bbox: float = 5.0
    """Weight of the L1 box loss."""
    giou: float = 2.0
    """Weight of the generalized IoU loss."""
    fgl: float = 0.15
    """Weight of the fine-grained localization loss on edge distributions."""
    ddf: float = 1.5
    """Weight of the distillation of the last layer's edge distributions into earlier layers."""
    mal_gamma: float = 1.5
    """Exponent of the classification target and of the negatives' weight."""
    ddf_temperature: float = 5.0
    """Temperature of the distillation, above 0."""
    union_ties: Literal["first", "reference"] = "first"
    """Which box a query gets when two have equal votes: the first, or whatever the reference's sort gives."""
    matcher: MatcherOptions = field(default_factory=MatcherOptions)

    def __post_init__(self) -> None:
        weights = below(
            0,
            mal=self.mal,
            bbox=self.bbox,
            giou=self.giou,
            fgl=self.fgl,
            ddf=self.ddf,
            mal_gamma=self.mal_gamma,
        )
        check([*weights, *not_positive(ddf_temperature=self.ddf_temperature)])


Term = Literal["mal", "bbox", "giou", "fgl", "ddf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Matching:
    """Pairs of queries and true boxes on the device of the loss."""

    image_idx: Tensor
    """(M,) int64."""
    query_idx: Tensor
    """(M,) int64."""
    target_idx: Tensor
    """(M,) int64, counting through the batch."""

    def __len__(self) -> int:
        return self.query_idx.shape[0]

    @property
    def index(self) -> tuple[Tensor, Tensor]:
        """Index of the matched queries in a (B, Q, …) tensor."""
        return self.image_idx, self.query_idx


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCounts:
    """Numbers that the terms are averaged over.

    Summed over the micro-batches and processes of a step, they make the terms of the micro-batches add up to
    the terms of the whole batch.
    """

    images: int
    boxes: int
    """True boxes."""
    pairs: int
    """Pairs of the union of all outputs' matchings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """The matching of a batch."""

    packed: PackedTargets
    by_output: list[Matching]
    """The matching of each supervised output: last layer, earlier layers, first box head, encoder."""
    union: Matching
    """One matching for all outputs, used for boxes."""

    @property
    def counts(self) -> LossCounts:
        """Counts of this batch alone."""
        packed = self.packed
        return LossCounts(images=len(packed.counts), boxes=len(packed.labels), pairs=len(self.union))


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeTargets:
    """Where the true edges of matched pairs fall among the bins."""

    left: Tensor
    """(M, 4) int64."""
    weight_right: Tensor
    """(M, 4) float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """The last layer of a stream of queries as the teacher of the earlier layers."""

    teacher: Teacher
    balance: tuple[int, int]
    """Matched and unmatched object queries, whose square roots balance the two groups."""
    sizes: tuple[int, int]
    """Matched and unmatched queries of the stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Supervision:
    """One output and how it is supervised."""

    suffix: str
    """Ending of the names of its terms."""
    output: LayerOutput
    """In float32."""
    class_matching: Matching
    class_normalizer: float
    box_matching: Matching
    box_normalizer: float
    edges: EdgeTargets | None = None
    """Only for refining layers."""
    distillation: Distillation | None = None
    """Only for refining layers except the last."""


class Criterion(nn.Module):
    """Weighted loss terms of a batch.

    The names are the same for every batch of a model: `loss_mal`, `loss_bbox`, `loss_giou`, `loss_fgl` of the
    last layer; with `_aux_i` (and `loss_ddf_aux_i`), `_pre`, `_enc_0`, `_dn_i`, `_dn_pre` for the others.
    Terms that do not apply to a batch are 0.

    Args:
        options: Weights and exponents of the terms.
        matcher_change_epoch: First epoch (0-based) with the late matching cost.
    """

    def __init__(self, options: LossOptions, *, matcher_change_epoch: int) -> None:
        super().__init__()
        self.options = options
        self.matcher = HungarianMatcher(options.matcher, late_epoch=matcher_change_epoch)

    def forward(
        self, outputs: ModelOutput, targets: Sequence[Target], *, epoch: int = 0
    ) -> dict[str, Tensor]:
        """Compute the loss terms; their plain sum is the loss.

        Args:
            outputs: Output of the detector in training mode.
            targets: The targets that were passed to it.
            epoch: 0-based; decides the matching cost.

        Returns:
            Weighted terms, () float32 each.

        Raises:
            NonFiniteError: If the matching costs are NaN or infinite. Without boxes nothing is matched, and
                NaN outputs give NaN terms.
            ValueError: If the outputs come from evaluation mode.
        """
        matched = self.match(outputs, targets, epoch=epoch)
        return self.terms(outputs, matched, matched.counts)

    def match(self, outputs: ModelOutput, targets: Sequence[Target], *, epoch: int) -> Matched:
        """Assign boxes to the queries of every supervised output; see `forward` for arguments and errors."""
        if "aux_outputs" not in outputs:
            raise ValueError("outputs: no supervised outputs. Call model.train() before the forward pass.")
        device = outputs["pred_logits"].device
        with torch.autocast(device_type=device.type, enabled=False):
            packed = pack_targets(targets, device=device)
            pairs = self.matcher.match(_object_outputs(outputs), packed, epoch=epoch)
            *by_output, union = _matchings([*pairs, vote_union(pairs, ties=self.options.union_ties)], device)
        return Matched(packed=packed, by_output=by_output, union=union)

    def terms(self, outputs: ModelOutput, matched: Matched, counts: LossCounts) -> dict[str, Tensor]:
        """Compute the loss terms of a matched batch.

        Args:
            outputs: The outputs that were matched.
            matched: From `match`.
            counts: Numbers to average over: `matched.counts`, or the sum over all micro-batches of a step.

        Returns:
            Weighted terms, () float32 each. Those of a micro-batch are its share of the whole batch's terms.
        """
        device = outputs["pred_logits"].device
        with torch.autocast(device_type=device.type, enabled=False):
            supervisions = [
                *self._object_queries(outputs, matched, counts),
                *self._denoising_queries(outputs, matched, counts),
            ]
            terms: dict[str, Tensor] = {}
            for supervision in supervisions:
                terms |= self._terms(supervision, matched.packed)
        if "dn_outputs" not in outputs:
            terms |= _absent_denoising_terms(len(outputs["aux_outputs"]), terms["loss_mal"])
        return terms

    def _object_queries(
        self, outputs: ModelOutput, matched: Matched, counts: LossCounts
    ) -> list[Supervision]:
        """The last layer first, then the earlier layers, the first layer's box head and the encoder."""
        last, *others = _object_outputs(outputs)
        num_aux = len(outputs["aux_outputs"])
        suffixes = ["", *(f"_aux_{i}" for i in range(num_aux)), "_pre", "_enc_0"]
        final = Supervision(
            suffix="",
            output=last,
            class_matching=matched.by_output[0],
            class_normalizer=max(counts.boxes, 1),
            box_matching=matched.union,
            box_normalizer=max(counts.pairs, 1),
            edges=_edge_targets(last, matched.union, matched.packed, outputs),
        )
        balance = _balance(last, counts)
        teaching = replace(final, distillation=self._distill(final, outputs, balance, balance))
        without = replace(final, edges=None)
        templates = [final, *[teaching] * num_aux, without, without]
        return [
            replace(template, suffix=suffix, output=output, class_matching=matching)
            for template, suffix, output, matching in zip(
                templates, suffixes, [last, *others], matched.by_output, strict=True
            )
        ]

    def _denoising_queries(
        self, outputs: ModelOutput, matched: Matched, counts: LossCounts
    ) -> list[Supervision]:
        """Every decoder layer and the first layer's box head; their matching is known from the start."""
        if "dn_outputs" not in outputs:
            return []
        meta = outputs["dn_meta"]
        *earlier, last = [_float32(layer) for layer in outputs["dn_outputs"]]
        matching = _denoising_matching(meta, matched.packed)
        normalizer = max(counts.boxes, 1) * meta.num_groups
        final = Supervision(
            suffix=f"_dn_{len(earlier)}",
            output=last,
            class_matching=matching,
            class_normalizer=normalizer,
            box_matching=matching,
            box_normalizer=normalizer,
            edges=_edge_targets(last, matching, matched.packed, outputs),
        )
        num_matched = counts.boxes * meta.num_groups
        sizes = (num_matched, counts.images * meta.num_queries - num_matched)
        # Denoising queries are balanced by the counts of the object queries, as in the reference.
        distillation = self._distill(final, outputs, _balance(outputs, counts), sizes)
        return [
            *(
                replace(final, suffix=f"_dn_{i}", output=layer, distillation=distillation)
                for i, layer in enumerate(earlier)
            ),
            final,
            replace(final, suffix="_dn_pre", output=_float32(outputs["dn_pre_outputs"]), edges=None),
        ]

    def _distill(
        self, final: Supervision, outputs: ModelOutput, balance: tuple[int, int], sizes: tuple[int, int]
    ) -> Distillation:
        corners = final.output["pred_corners"].detach()
        num_bins = outputs["bin_values"].shape[0]
        teacher = Teacher(
            log_probabilities=soften(corners, num_bins, self.options.ddf_temperature),
            confidence=final.output["pred_logits"].detach().max(dim=-1).values.sigmoid(),
        )
        return Distillation(teacher=teacher, balance=balance, sizes=sizes)

    def _terms(self, supervision: Supervision, packed: PackedTargets) -> dict[str, Tensor]:
        """All terms of one output, weighted and named."""
        output, matching = supervision.output, supervision.box_matching
        quality = _quality(output, supervision.class_matching, packed)
        classes = packed.labels[supervision.class_matching.target_idx]
        mal = matchability_aware_loss(
            output["pred_logits"],
            (*supervision.class_matching.index, classes),
            quality,
            gamma=self.options.mal_gamma,
        )
        boxes = output["pred_boxes"][matching.index]
        true_boxes = packed.boxes_cxcywh[matching.target_idx]
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), packed.boxes_xyxy[matching.target_idx])
        terms: dict[Term, Tensor] = {
            "mal": mal / supervision.class_normalizer,
            "bbox": (boxes - true_boxes).abs().sum() / supervision.box_normalizer,
            "giou": (1 - overlap).sum() / supervision.box_normalizer,
        }
        if supervision.edges is not None:
            terms |= self._edge_terms(supervision, supervision.edges, _quality(output, matching, packed))
        weighted = {name: getattr(self.options, name) * value for name, value in terms.items()}
        return {f"loss_{name}{supervision.suffix}": value for name, value in weighted.items()}

    def _edge_terms(
        self, supervision: Supervision, edges: EdgeTargets, quality: Tensor
    ) -> dict[Term, Tensor]:
        corners, matching = supervision.output["pred_corners"], supervision.box_matching
        num_bins = corners.shape[-1] // 4
        fgl = fine_grained_localization_loss(
            corners[matching.index].unflatten(-1, (4, num_bins)), edges.left, edges.weight_right, quality
        )
        terms: dict[Term, Tensor] = {"fgl": fgl / supervision.box_normalizer}
        if supervision.distillation is not None:
            terms["ddf"] = decoupled_distillation_loss(
                soften(corners, num_bins, self.options.ddf_temperature),
                supervision.distillation.teacher,
                matching.index,
                quality,
                temperature=self.options.ddf_temperature,
                balance=supervision.distillation.balance,
                sizes=supervision.distillation.sizes,
            )
        return terms


def _float32(output: LayerOutput) -> LayerOutput:
    """The tensors of one head, in float32: mixed precision must not reach the loss."""
    names = LayerOutput.__annotations__
    return {name: output[name].float() for name in names if name in output}  # type: ignore[return-value,literal-required]


def _matchings(pairs: Sequence[Pairs], device: torch.device) -> list[Matching]:
    """Copy all pairs to the device at once."""
    joined = torch.from_numpy(np.concatenate(pairs, axis=1)).to(device, non_blocking=True)
    pieces = joined.split([part.shape[1] for part in pairs], dim=1)
    return [Matching(image_idx=part[0], query_idx=part[1], target_idx=part[2]) for part in pieces]


def _denoising_matching(meta: DenoisingMeta, packed: PackedTargets) -> Matching:
    offsets = packed.offsets
    sizes = torch.tensor([len(query_idx) for query_idx in meta.query_idx])
    images = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return Matching(
        image_idx=images.to(packed.labels.device, non_blocking=True),
        query_idx=torch.cat(meta.query_idx),
        target_idx=torch.cat([index + start for index, start in zip(meta.target_idx, offsets, strict=False)]),
    )


def _object_outputs(outputs: ModelOutput) -> list[LayerOutput]:
    """The supervised outputs of the object queries: last layer, earlier layers, first box head, encoder."""
    heads = (outputs, *outputs["aux_outputs"], outputs["pre_outputs"], outputs["enc_outputs"])
    return [_float32(head) for head in heads]


def _balance(output: LayerOutput, counts: LossCounts) -> tuple[int, int]:
    """Matched and unmatched object queries."""
    num_queries = output["pred_logits"].shape[1]
    return counts.pairs, counts.images * num_queries - counts.pairs


@torch.no_grad()
def _quality(output: LayerOutput, matching: Matching, packed: PackedTargets) -> Tensor:
    """(M,) IoU of matched pairs."""
    boxes_xyxy = cxcywh_to_xyxy(output["pred_boxes"][matching.index])
    return iou(boxes_xyxy, packed.boxes_xyxy[matching.target_idx])


def _edge_targets(
    output: LayerOutput, matching: Matching, packed: PackedTargets, outputs: ModelOutput
) -> EdgeTargets:
    """Edges of the matched boxes among the bins; the same for all layers, which share their references."""
    left, weight_right = boxes_to_bins(
        output["ref_points"][matching.index],
        packed.boxes_xyxy[matching.target_idx],
        outputs["bin_values"],
        outputs["reg_scale"],
    )
    return EdgeTargets(left=left, weight_right=weight_right)


def _absent_denoising_terms(num_aux: int, like: Tensor) -> dict[str, Tensor]:
    """Zeros for the denoising terms of a batch without boxes, so that the names never change."""
    suffixes = [*(f"_dn_{i}" for i in range(num_aux + 1)), "_dn_pre"]
    names = [f"loss_{term}{suffix}" for suffix in suffixes for term in ("mal", "bbox", "giou")]
    names += [f"loss_fgl_dn_{i}" for i in range(num_aux + 1)]
    names += [f"loss_ddf_dn_{i}" for i in range(num_aux)]
    return dict.fromkeys(names, torch.zeros_like(like))
