"""From the raw output of the detector to detections in the original image."""

from collections.abc import Sequence

import torch

from deim.boxes import cxcywh_to_xyxy, to_original_pixels
from deim.structures import Detections, ModelOutput, Placement


def are_finite(output: ModelOutput) -> list[bool]:
    """Tell for each image of a batch whether its scores and boxes hold neither NaN nor infinity."""
    logits, boxes = output["pred_logits"], output["pred_boxes"]
    is_finite = torch.cat([logits.flatten(1), boxes.flatten(1)], dim=1).isfinite().all(dim=1)
    return list(is_finite.tolist())


def select_detections(
    output: ModelOutput, placements: Sequence[Placement], *, max_detections: int = 300
) -> list[Detections]:
    """Select the best scores over all queries and classes; a query may appear with several labels.

    Boxes are not clipped, and neither NMS nor a threshold is applied.

    Args:
        output: `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4) cxcywh in [0, 1] are read.
        placements: Where each network input lies in its original image.
        max_detections: Number of detections to keep per image.

    Returns:
        The detections of each image with a score above 0, best first, boxes in pixels of the original.
    """
    scores = output["pred_logits"].float().sigmoid()
    num_classes = scores.shape[-1]
    kept = min(max_detections, scores.shape[1] * num_classes)
    best, index = scores.flatten(1).topk(kept, dim=1)
    labels = index % num_classes
    query = torch.div(index, num_classes, rounding_mode="floor")
    boxes = cxcywh_to_xyxy(output["pred_boxes"].float())
    boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    return [
        Detections(
            boxes_xyxy=to_original_pixels(boxes[i], placement),
            scores=best[i],
            labels=labels[i],
            queries=query[i],
        ).take(best[i] > 0)
        for i, placement in enumerate(placements)
    ]
