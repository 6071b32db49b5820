"""Faster R-CNN with a feature pyramid over a network of timm; the heads are torchvision's.

Source:
    Ren et al. (arXiv:1506.01497); feature pyramid, Lin et al. (arXiv:1612.03144).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.model.backbone.timm import TimmNetwork, TimmOptions
from deim.structures import ModelOutput, Target

STRIDES: Final = (4, 8, 16, 32)
ASPECT_RATIOS: Final = (0.5, 1.0, 2.0)
MIN_SCORE: Final = 0.001
"""Lowest score of a detection; torchvision's 0.05 would cut the precision-recall curve."""
ABSENT_LOGIT: Final = -1e4
"""Logit whose score is 0 in float32, of the classes that a detection does not have."""
Losses = dict[str, Tensor]
"""Loss terms of a batch, means over its images, by their names in torchvision."""


class PyramidBackbone(TimmNetwork):
    """A network of timm and a feature pyramid with five maps, at strides 4 to 64."""

    def __init__(self, options: TimmOptions, *, out_channels: int, in_channels: int) -> None:
        super().__init__(options, in_channels=in_channels, strides=STRIDES)
        self.out_channels = out_channels
        self.pyramid = FeaturePyramidNetwork(
            self.body.feature_info.channels(), out_channels, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps (B, out_channels, H/s, W/s) of images (B, in_channels, H, W), by name."""
        maps = enumerate(self.extract_maps(images))
        return dict(self.pyramid(OrderedDict((str(number), features) for number, features in maps)))


class FasterRcnn(nn.Module):
    """Faster R-CNN that takes the inputs of `Detector` and, in evaluation mode, returns its outputs.

    Args:
        backbone: Network of timm.
        hidden_dim: Channels of the feature pyramid.
        num_classes: C.
        channels: Number of image channels.
        max_detections: Q, the number of detections of an image after NMS of each class.
        anchor_sides: Side of the square anchors of each of the five maps, in pixels of the network input.
    """

    def __init__(
        self,
        backbone: TimmOptions,
        *,
        hidden_dim: int,
        num_classes: int,
        channels: int,
        max_detections: int,
        anchor_sides: Sequence[int],
    ) -> None:
        super().__init__()
        self.num_classes, self.max_detections = num_classes, max_detections
        self.backbone = PyramidBackbone(backbone, out_channels=hidden_dim, in_channels=channels)
        heads = FasterRCNN(
            self.backbone,
            num_classes=num_classes + 1,
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in anchor_sides), (ASPECT_RATIOS,) * len(anchor_sides)
            ),
            box_score_thresh=MIN_SCORE,
            box_detections_per_img=max_detections,
        )
        self.rpn, self.roi_heads = heads.rpn, heads.roi_heads

    @property
    def large_parts(self) -> tuple[PyramidBackbone]:
        """The part that is compiled, and whose activations may be recomputed."""
        return (self.backbone,)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,
        *,
        max_boxes: int | None = None,  # noqa: ARG002  of interest to denoising only
    ) -> ModelOutput | Losses:
        """Detect objects or, in training mode, compute the losses.

        Args:
            images: (B, channels, H, W) float, normalized.
            targets: Ground truth of each image, for training.
            max_boxes: Not used.

        Returns:
            `pred_logits` (B, Q, C) and `pred_boxes` (B, Q, 4), a detection in each row and rows with score 0
            after the last; in training mode the four losses by name.
        """
        size_hw = images.shape[-2:]
        listed = ImageList(images, [(size_hw[0], size_hw[1])] * len(images))
        features = self.backbone(images)
        truth = None if targets is None or not self.training else [_to_pixels(t, size_hw) for t in targets]
        proposals, proposal_losses = self.rpn(listed, features, truth)
        detected, losses = self.roi_heads(features, proposals, listed.image_sizes, truth)
        return {**proposal_losses, **losses} if self.training else self._pack(detected, images)

    def _pack(self, detected: Sequence[dict[str, Tensor]], images: Tensor) -> ModelOutput:
        height, width = images.shape[-2:]
        shape = (len(images), self.max_detections)
        logits = images.new_full((*shape, self.num_classes), ABSENT_LOGIT, dtype=torch.float32)
        boxes = images.new_zeros((*shape, 4), dtype=torch.float32)
        scale = boxes.new_tensor([width, height, width, height])
        for row, item in enumerate(detected):
            number = torch.arange(len(item["scores"]), device=images.device)
            logits[row, number, item["labels"] - 1] = torch.logit(item["scores"].float(), eps=1e-6)
            boxes[row, number] = xyxy_to_cxcywh(item["boxes"].float() / scale)
        return {"pred_logits": logits, "pred_boxes": boxes}


def _to_pixels(target: Target, size_hw: Sequence[int]) -> dict[str, Tensor]:
    """Return a target as torchvision has it: boxes in pixels of the input, labels from 1."""
    scale = target["boxes"].new_tensor([size_hw[1], size_hw[0], size_hw[1], size_hw[0]])
    return {"boxes": cxcywh_to_xyxy(target["boxes"]) * scale, "labels": target["labels"] + 1}
