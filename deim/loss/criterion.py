"""The training loss: every supervised output against the true boxes.

Source:
    DEIMv2 (arXiv:2509.20787) with the terms of DEIM and D-FINE; see `terms.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deim.boxes import cxcywh_to_xyxy, generalized_iou, iou
from deim.config.checks import below, check, not_positive
from deim.loss.matcher import HungarianMatcher, MatcherOptions, PackedTargets, Pairs, pack_targets, vote_union
from deim.loss.terms import (
    Teacher,
    decoupled_distillation_loss,
    fine_grained_localization_loss,
    matchability_aware_loss,
    soften,
)
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
        check(
            [
                *below(0, mal=self.mal, bbox=self.bbox, giou=self.giou, fgl=self.fgl, ddf=self.ddf),
                *below(0, mal_gamma=self.mal_gamma),
                *not_positive(ddf_temperature=self.ddf_temperature),
            ]
        )


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
class _Stream:
    """The outputs of the object queries or of the denoising queries, and how they are supervised."""

    outputs: Mapping[str, LayerOutput]
    """In float32, by the ending of the names of their terms. Those of decoder layers have distributions."""
    last: str
    """Ending of the last layer, which teaches the earlier ones."""
    class_matchings: Sequence[Matching]
    """One for each output."""
    class_normalizer: float
    box_matching: Matching
    box_normalizer: float
    balance: tuple[int, int]
    """Matched and unmatched object queries of the step."""
    sizes: tuple[int, int]
    """Matched and unmatched queries of this stream in the step."""


class Criterion(nn.Module):
    """Weighted loss terms of a batch.

    The names are the same for every batch of a model: `loss_mal`, `loss_bbox`, `loss_giou`, `loss_fgl` of the
    last layer; with `_aux_i` (and `loss_ddf_aux_i`), `_pre`, `_enc_0`, `_dn_i`, `_dn_pre` for the others.
    Terms that do not apply to a batch are 0.

    Args:
        options: Weights and exponents of the terms.
        matcher_change_epoch: First epoch (0-based) with the late matching cost.
    """

    def __init__(self, options: LossOptions, *, matcher_change_epoch: int = 80) -> None:
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
            terms = self._stream_terms(_object_stream(outputs, matched, counts), matched.packed, outputs)
            if "dn_outputs" in outputs:
                stream = _denoising_stream(outputs, matched.packed, counts)
                return terms | self._stream_terms(stream, matched.packed, outputs)
        return terms | _absent_denoising_terms(len(outputs["aux_outputs"]), terms["loss_mal"])

    @torch.no_grad()
    def sum_last_layer(
        self, outputs: LayerOutput, targets: Sequence[Target], *, epoch: int = 0
    ) -> tuple[float, int]:
        """Compute the terms of classes and boxes of the last layer alone, as a validation can.

        Args:
            outputs: Output of the detector in any mode.
            targets: Ground truth of the batch.
            epoch: 0-based; decides the matching cost.

        Returns:
            The sum of `loss_mal`, `loss_bbox` and `loss_giou` over the boxes of the batch, and their number:
            over all batches, sum / max(number, 1) is the mean that training logs for a batch.

        Raises:
            NonFiniteError: If the matching costs are NaN or infinite.
        """
        output, device = _float32(outputs), outputs["pred_logits"].device
        packed = pack_targets(targets, device=device)
        (matching,) = _matchings(self.matcher.match([output], packed, epoch=epoch), device)
        stream = _Stream(
            outputs={"": output},
            last="",
            class_matchings=[matching],
            class_normalizer=1,
            box_matching=matching,
            box_normalizer=1,
            balance=(0, 0),
            sizes=(0, 0),
        )
        terms = self._output_terms(output, matching, stream, packed)
        return sum(getattr(self.options, name) * float(value) for name, value in terms.items()), len(matching)

    def _stream_terms(
        self, stream: _Stream, packed: PackedTargets, outputs: ModelOutput
    ) -> dict[str, Tensor]:
        """All terms of a stream, weighted and named."""
        last, matching = stream.outputs[stream.last], stream.box_matching
        # The layers share their reference boxes, and so the bins of the true edges.
        edges = boxes_to_bins(
            last["ref_points"][matching.index],
            packed.boxes_xyxy[matching.target_idx],
            outputs["bin_values"],
            outputs["reg_scale"],
        )
        teacher = Teacher(
            log_probabilities=soften(last["pred_corners"].detach(), self.options.ddf_temperature),
            confidence=last["pred_logits"].detach().max(dim=-1).values.sigmoid(),
            balance=stream.balance,
            sizes=stream.sizes,
        )
        weighted = {}
        for (suffix, output), class_matching in zip(
            stream.outputs.items(), stream.class_matchings, strict=True
        ):
            terms = self._output_terms(output, class_matching, stream, packed)
            if "pred_corners" in output:
                quality = _quality(output, matching, packed)
                corners = output["pred_corners"][matching.index].unflatten(-1, (4, -1))
                fgl = fine_grained_localization_loss(corners, *edges, quality)
                terms["fgl"] = fgl / stream.box_normalizer
                if suffix != stream.last:
                    terms["ddf"] = decoupled_distillation_loss(
                        output["pred_corners"],
                        teacher,
                        matching.index,
                        quality,
                        temperature=self.options.ddf_temperature,
                    )
            for name, value in terms.items():
                weighted[f"loss_{name}{suffix}"] = getattr(self.options, name) * value
        return weighted

    def _output_terms(
        self, output: LayerOutput, class_matching: Matching, stream: _Stream, packed: PackedTargets
    ) -> dict[str, Tensor]:
        """The terms that every output has: of the classes and of the boxes."""
        mal = matchability_aware_loss(
            output["pred_logits"],
            (*class_matching.index, packed.labels[class_matching.target_idx]),
            _quality(output, class_matching, packed),
            gamma=self.options.mal_gamma,
        )
        matching = stream.box_matching
        boxes = output["pred_boxes"][matching.index]
        overlap = generalized_iou(cxcywh_to_xyxy(boxes), packed.boxes_xyxy[matching.target_idx])
        distance = (boxes - packed.boxes_cxcywh[matching.target_idx]).abs().sum()
        return {
            "mal": mal / stream.class_normalizer,
            "bbox": distance / stream.box_normalizer,
            "giou": (1 - overlap).sum() / stream.box_normalizer,
        }


def _object_stream(outputs: ModelOutput, matched: Matched, counts: LossCounts) -> _Stream:
    suffixes = ["", *(f"_aux_{i}" for i in range(len(outputs["aux_outputs"]))), "_pre", "_enc_0"]
    balance = _balance(outputs, counts)
    return _Stream(
        outputs=dict(zip(suffixes, _object_outputs(outputs), strict=True)),
        last="",
        class_matchings=matched.by_output,
        class_normalizer=max(counts.boxes, 1),
        box_matching=matched.union,
        box_normalizer=max(counts.pairs, 1),
        balance=balance,
        sizes=balance,
    )


def _denoising_stream(outputs: ModelOutput, packed: PackedTargets, counts: LossCounts) -> _Stream:
    """Its matching is known from the start."""
    meta = outputs["dn_meta"]
    matching = _denoising_matching(meta, packed)
    heads = {f"_dn_{i}": layer for i, layer in enumerate(outputs["dn_outputs"])}
    last = f"_dn_{len(heads) - 1}"
    heads["_dn_pre"] = outputs["dn_pre_outputs"]
    num_matched, normalizer = counts.boxes * meta.num_groups, max(counts.boxes, 1) * meta.num_groups
    return _Stream(
        outputs={suffix: _float32(head) for suffix, head in heads.items()},
        last=last,
        class_matchings=[matching] * len(heads),
        class_normalizer=normalizer,
        box_matching=matching,
        box_normalizer=normalizer,
        balance=_balance(outputs, counts),  # by the object queries, as in the reference
        sizes=(num_matched, counts.images * meta.num_queries - num_matched),
    )


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


def _absent_denoising_terms(num_aux: int, like: Tensor) -> dict[str, Tensor]:
    """Zeros for the denoising terms of a batch without boxes, so that the names never change."""
    suffixes = [*(f"_dn_{i}" for i in range(num_aux + 1)), "_dn_pre"]
    names = [f"loss_{term}{suffix}" for suffix in suffixes for term in ("mal", "bbox", "giou")]
    names += [f"loss_fgl_dn_{i}" for i in range(num_aux + 1)]
    names += [f"loss_ddf_dn_{i}" for i in range(num_aux)]
    return dict.fromkeys(names, torch.zeros_like(like))
