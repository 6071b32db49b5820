"""The decoder: from feature maps to class scores and boxes.

Queries start at the best encoder cells. The first layer predicts plain boxes; every layer then accumulates
the logits of edge distributions that refine these same boxes.

Source:
    D-FINE (arXiv:2410.13842), DEIM (arXiv:2412.04234) and DEIMv2 (arXiv:2509.20787), written from their
    equations. Attribute names follow the official weight files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deim.model.decoder.distribution import compute_bin_values, distances_to_boxes, expected_distances
from deim.model.decoder.layers import DecoderLayer, LocationQuality, Mlp, class_head
from deim.model.decoder.options import DecoderOptions
from deim.model.decoder.queries import (
    DenoisingQueries,
    build_denoising_queries,
    compute_anchors,
    gather_cells,
    inverse_sigmoid,
    select_top_cells,
)
from deim.structures import LayerOutput, ModelOutput, Target

POSITION_BOUND = 10.0
"""Largest position code of a query."""


class RefiningStack(nn.Module):
    """The decoder layers and the location-quality heads, in the place where official weights hold them."""

    def __init__(
        self, options: DecoderOptions, dim: int, *, up: nn.Parameter, reg_scale: nn.Parameter
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(options, dim) for _ in range(options.num_layers))
        self.lqe_layers = nn.ModuleList(LocationQuality() for _ in self.layers)
        self.up = up
        self.reg_scale = reg_scale


class Decoder(nn.Module):
    """Query selection, denoising, refinement and heads; maps and queries have `dim` channels."""

    def __init__(self, options: DecoderOptions, dim: int, *, num_classes: int) -> None:
        super().__init__()
        self.options = options
        self.num_classes = num_classes
        # Frozen and shared with the stack: the official weights hold both under two names.
        self.up = nn.Parameter(torch.tensor([options.up]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([float(options.reg_scale)]), requires_grad=False)
        self.decoder = RefiningStack(options, dim, up=self.up, reg_scale=self.reg_scale)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        self.enc_score_head = class_head(dim, num_classes)
        self.enc_bbox_head = Mlp(dim, dim, dim, 4, zero_last=True)
        self.query_pos_head = Mlp(4, dim, dim, dim)
        for layer in self.query_pos_head.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
        self.pre_bbox_head = Mlp(dim, dim, dim, 4, zero_last=True)
        self.dec_score_head = nn.ModuleList(class_head(dim, num_classes) for _ in range(options.num_layers))
        self.dec_bbox_head = nn.ModuleList(
            Mlp(dim, dim, dim, 4 * (options.reg_max + 1), zero_last=True) for _ in range(options.num_layers)
        )

    def forward(
        self,
        features: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        max_boxes: int | None = None,
        with_queries: bool = False,
    ) -> ModelOutput:
        """Predict from maps (B, dim, H/s, W/s) for s = 8, 16, 32; see `Detector.forward`."""
        if with_queries and self.training:
            raise ValueError("with_queries: the detector is in training mode. Call detector.eval() first.")
        content, ref_logits, enc_outputs = self._select_queries(features)
        denoising = build_denoising_queries(
            targets if self.training else None,
            self.num_classes,
            self.options,
            num_queries=content.shape[1],
            max_boxes=max_boxes,
        )
        if denoising is not None:
            noised = self.denoising_class_embed(denoising.labels).to(content.dtype)
            content = torch.cat([noised, content], dim=1)
            ref_logits = torch.cat([denoising.box_logits, ref_logits], dim=1)
        else:
            # Keeps the embedding in the graph, so that every parameter has a gradient in every step.
            content = content + 0 * self.denoising_class_embed.weight.sum().to(content.dtype)
        bin_values = compute_bin_values(self.options.reg_max, self.up, self.reg_scale)
        blocked = None if denoising is None else denoising.blocked
        layers, first, tokens = self._refine(content, ref_logits, features, blocked, bin_values)
        if self.training:
            return self._training_output(layers, first, enc_outputs, denoising, bin_values)
        last = layers[-1]
        output: ModelOutput = {"pred_logits": last["pred_logits"], "pred_boxes": last["pred_boxes"]}
        if with_queries:
            output["query_features"] = tokens
        return output

    def _select_queries(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, LayerOutput]:
        """Content (B, Q, D) and box logits (B, Q, 4) of the queries, detached, and the encoder's output."""
        memory = torch.cat([level.flatten(2) for level in features], dim=2).transpose(1, 2)
        sizes_hw = [(level.shape[2], level.shape[3]) for level in features]
        anchor_logits, valid = compute_anchors(sizes_hw, device=memory.device)
        memory = memory * valid
        logits = self.enc_score_head(memory)
        top = select_top_cells(logits, self.options.num_queries)
        content = gather_cells(memory, top)
        ref_logits = _in_float32(self.enc_bbox_head, content) + anchor_logits[top]
        enc_outputs: LayerOutput = {
            "pred_logits": gather_cells(logits, top),
            "pred_boxes": ref_logits.sigmoid(),
        }
        return content.detach(), ref_logits.detach(), enc_outputs

    def _refine(
        self,
        tokens: Tensor,
        ref_logits: Tensor,
        features: Sequence[Tensor],
        blocked: Tensor | None,
        bin_values: Tensor,
    ) -> tuple[list[LayerOutput], LayerOutput, Tensor]:
        """Run the layers; boxes are computed in float32 whatever the layers run in.

        Returns:
            The output of each layer, in evaluation mode of the last only; that of the first layer's box head;
            and (B, Q, D), the input of the last class head.
        """
        ref_boxes = ref_logits.sigmoid()
        features = [level.float() for level in features]
        positions = _in_float32(self.query_pos_head, ref_boxes).clamp(min=-POSITION_BOUND, max=POSITION_BOUND)
        last = len(self.decoder.layers) - 1
        previous = torch.zeros_like(tokens)
        corners = torch.zeros((), device=tokens.device)
        outputs: list[LayerOutput] = []
        for index, layer in enumerate(self.decoder.layers):
            tokens = layer(tokens, positions, ref_boxes, features, blocked)
            if index == 0:
                first_boxes = (_in_float32(self.pre_bbox_head, tokens) + inverse_sigmoid(ref_boxes)).sigmoid()
                anchor_boxes = first_boxes.detach()
                first: LayerOutput = {
                    "pred_logits": self.dec_score_head[0](tokens),
                    "pred_boxes": first_boxes,
                }
            corners = _in_float32(self.dec_bbox_head[index], tokens + previous.detach()) + corners
            boxes = distances_to_boxes(anchor_boxes, expected_distances(corners, bin_values), self.reg_scale)
            if self.training or index == last:
                logits = first["pred_logits"] if index == 0 else self.dec_score_head[index](tokens)
                outputs.append(
                    {
                        "pred_logits": logits + self.decoder.lqe_layers[index](corners),
                        "pred_boxes": boxes,
                        "pred_corners": corners,
                        "ref_points": anchor_boxes,
                    }
                )
            ref_boxes, previous = boxes.detach(), tokens
        return outputs, first, tokens

    def _training_output(
        self,
        layers: Sequence[LayerOutput],
        first: LayerOutput,
        enc_outputs: LayerOutput,
        denoising: DenoisingQueries | None,
        bin_values: Tensor,
    ) -> ModelOutput:
        split = 0 if denoising is None else denoising.meta.num_queries
        *aux_outputs, final = [_queries(layer, slice(split, None)) for layer in layers]
        output: ModelOutput = {
            "pred_logits": final["pred_logits"],
            "pred_boxes": final["pred_boxes"],
            "pred_corners": final["pred_corners"],
            "ref_points": final["ref_points"],
            "aux_outputs": aux_outputs,
            "pre_outputs": _queries(first, slice(split, None)),
            "enc_outputs": enc_outputs,
            "bin_values": bin_values,
            "reg_scale": self.reg_scale,
        }
        if denoising is not None:
            output["dn_outputs"] = [_queries(layer, slice(0, split)) for layer in layers]
            output["dn_pre_outputs"] = _queries(first, slice(0, split))
            output["dn_meta"] = denoising.meta
        return output


def _in_float32(head: nn.Module, tokens: Tensor) -> Tensor:
    """Run a small head without mixed precision: 8 bits of bfloat16 are 4 px of a 1024-px image."""
    with torch.autocast(tokens.device.type, enabled=False):
        return head(tokens.float())


def _queries(output: LayerOutput, part: slice) -> LayerOutput:
    """Take the queries of `part` from every tensor of the output."""
    return {name: tensor[:, part] for name, tensor in output.items()}  # type: ignore[return-value,index]
