"""Maps of where the text of a class fires in an image, beside the scores of the detector.

They show queries, not the encoder's cells. The cells are as wide as the queries, so that the head would
compare them with the text as well, but its projection was trained on what the decoder makes of queries: of a
cell it gives a number that nothing was ever asked of. Of a query it gives the very cosine that moves the
logits, and the query has a box to draw it in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deim.boxes import clip_boxes, clip_to_window, cxcywh_to_xyxy, to_original_pixels
from deim.structures import Placement
from multimodal.wrapper import TextFusedDetector


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextMap:
    """What text and detector say of every query of one image; on the CPU."""

    orig_size_hw: tuple[int, int]
    """Size of the original image, in pixels."""
    boxes_cxcywh: Tensor
    """(Q, 4) float32, fractions of the network input that each comes from, as the detector gave them."""
    boxes_xyxy: Tensor
    """(Q, 4) float32, pixels of the original image, clipped to it."""
    cosines: Tensor
    """(Q, C) float32 in [-1, 1]: of the query with the text of each class."""
    detector_scores: Tensor
    """(Q, C) float32 in [0, 1]: the frozen detector's own."""
    fused_scores: Tensor
    """(Q, C) float32 in [0, 1]: after the fusion."""


@torch.no_grad()
def compute_text_map(model: TextFusedDetector, image_input: Tensor, placement: Placement) -> TextMap:
    """Compare the queries of one image with the text of every class.

    Args:
        model: The fused detector, on any device.
        image_input: (1, C, H, W) float, normalized, on the same device; H and W multiples of 32.
        placement: Where the input lies in the original image.

    Raises:
        ValueError: If `image_input` is not of one image, or its height or width is not a multiple of 32.
    """
    if image_input.ndim != 4 or image_input.shape[0] != 1:
        raise ValueError(f"image_input: got {tuple(image_input.shape)}. It must be (1, C, H, W), one image.")
    found = model.find(image_input)
    output = model(found)
    boxes_cxcywh = found.pred_boxes[0].float().cpu()
    boxes_xyxy = to_original_pixels(cxcywh_to_xyxy(boxes_cxcywh), placement)
    if placement.tile_xyxy is not None:
        boxes_xyxy = clip_to_window(boxes_xyxy, placement.tile_xyxy)
    return TextMap(
        orig_size_hw=placement.orig_size_hw,
        boxes_cxcywh=boxes_cxcywh,
        boxes_xyxy=clip_boxes(boxes_xyxy, placement.orig_size_hw),
        cosines=model.head.cosines(found.query_features)[0].cpu(),
        detector_scores=output["detector_logits"][0].float().sigmoid().cpu(),
        fused_scores=output["pred_logits"][0].float().sigmoid().cpu(),
    )


def join_text_maps(maps: Sequence[TextMap]) -> TextMap:
    """One map of all queries of the tiles of an image.

    Args:
        maps: Of each tile, at least one.
    """
    names = ("boxes_cxcywh", "boxes_xyxy", "cosines", "detector_scores", "fused_scores")
    tensors = {name: torch.cat([getattr(one, name) for one in maps]) for name in names}
    return TextMap(orig_size_hw=maps[0].orig_size_hw, **tensors)


def compute_heat(boxes_xyxy: Tensor, values: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Spread the values of queries over their boxes: every pixel takes the highest of those that cover it.

    Edges are rounded to whole pixels; a box thinner than a pixel keeps one, a box without area covers none.

    Args:
        boxes_xyxy: (Q, 4) float, in pixels, clipped to `size_hw`. Q may be 0.
        values: (Q,) float, finite.
        size_hw: Height and width of the map, in pixels.

    Returns:
        (*size_hw) float32; 0 where no box is.
    """
    heat = torch.full(size_hw, -math.inf)
    low, high = boxes_xyxy[:, :2].round(), boxes_xyxy[:, 2:].round()
    middle = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).floor()
    is_thin = high <= low
    low, high = torch.where(is_thin, middle, low), torch.where(is_thin, middle + 1, high)
    corners = torch.cat([low, high], dim=1).long().tolist()
    has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1).tolist()
    # The highest is painted last.
    for query in values.argsort().tolist():
        if has_area[query]:
            left, top, right, bottom = corners[query]
            heat[top:bottom, left:right] = values[query]
    return heat.masked_fill(heat == -math.inf, 0.0)
