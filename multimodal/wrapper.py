"""A frozen detector with the fusion head on top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from deim.model.detector import Detector
from deim.structures import ModelOutput, Target
from multimodal.fusion_head import FusionHead, TextScores, zero_linear


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorOutputs:
    """Outputs of the frozen detector that the fusion needs, without gradient. They may stand for images."""

    query_features: Tensor
    """(B, Q, D) float, input of the last class head."""
    pred_logits: Tensor
    """(B, Q, C) float, before the sigmoid."""
    pred_boxes: Tensor
    """(B, Q, 4) float, cxcywh."""

    def apply(self, change: Callable[[Tensor], Tensor]) -> "DetectorOutputs":
        """Change each tensor."""
        return DetectorOutputs(**{name: change(getattr(self, name)) for name in OUTPUT_NAMES})

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "DetectorOutputs":
        """Copy to a device."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))


OUTPUT_NAMES = tuple(field.name for field in fields(DetectorOutputs))


class FusedOutput(ModelOutput):
    """Fused logits in `pred_logits`, the detector's `pred_boxes`, and what the loss needs beside them."""

    detector_logits: Tensor
    """(B, Q, C) float, before the sigmoid, from the frozen detector."""
    text_scores: TextScores


class Head(Protocol):
    """Scores queries, and says how far the scores move their logits, as a `FusionHead` does."""

    gate: nn.Parameter
    bias: nn.Parameter

    def compare(self, queries: Tensor) -> TextScores:
        """Compute the scores of queries (B, Q, D)."""


def fuse_outputs(outputs: DetectorOutputs, head: Head, class_head_delta: nn.Linear | None) -> FusedOutput:
    """Fuse the outputs of the frozen detector, in float32; `class_head_delta` adds to its logits first."""
    scores = head.compare(outputs.query_features)
    with torch.autocast(outputs.pred_logits.device.type, enabled=False):
        logits = outputs.pred_logits.float()
        if class_head_delta is not None:
            logits = logits + class_head_delta(outputs.query_features.float())
        lead = scores.class_logits - scores.background_logits[..., None]
        fused = logits + torch.tanh(head.gate) * (lead + head.bias)
    return {
        "pred_logits": fused,
        "pred_boxes": outputs.pred_boxes,
        "detector_logits": outputs.pred_logits,
        "text_scores": scores,
    }


class TextFusedDetector(nn.Module):
    """A frozen detector whose class logits are fused with text.

    The detector always stays in evaluation mode, makes no denoising queries, and gets no gradient. Before the
    first step the output equals the detector's exactly; boxes always do.

    Training the last class head adds the logits of a linear layer that starts at 0. This is the same function
    as training the head itself, but the weights of the detector, and with them the matches and the cached
    outputs, do not change.

    Args:
        detector: The trained detector; it is frozen in place.
        head: The fusion head, of the same classes and width of queries.
        train_class_head: Train the last class head too.
    """

    def __init__(self, detector: Detector, head: FusionHead, *, train_class_head: bool = False) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.head = head
        width = query_dim(detector)
        assert (head.num_classes, head.query_dim) == (detector.num_classes, width)
        self.class_head_delta = zero_linear(width, detector.num_classes) if train_class_head else None

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head; the detector stays in evaluation mode."""
        super().train(mode)
        self.detector.eval()
        return self

    def forward(
        self,
        images: Tensor | DetectorOutputs,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
        *,
        max_boxes: int | None = None,  # noqa: ARG002
    ) -> FusedOutput:
        """Detect objects, in the same way in training and in evaluation mode.

        `images` are (B, channels, H, W) float, normalized, or the outputs of `run_detector` for them;
        `targets` and `max_boxes` are not used, because a frozen detector makes no denoising queries.
        """
        outputs = images if isinstance(images, DetectorOutputs) else self.run_detector(images)
        return fuse_outputs(outputs, self.head, self.class_head_delta)

    def run_detector(self, images: Tensor) -> DetectorOutputs:
        """Run the frozen detector alone on images (B, channels, H, W); H and W are multiples of 32."""
        # Other code may have set single layers to training, such as batch norm.
        if any(module.training for module in self.detector.modules()):
            self.detector.eval()
        with torch.no_grad():
            output = self.detector(images, with_queries=True)
        return DetectorOutputs(**{name: output[name] for name in OUTPUT_NAMES})


def query_dim(detector: Detector) -> int:
    """Return the width of the input of the detector's last class head."""
    head = detector.decoder.dec_score_head[-1]
    assert isinstance(head, nn.Linear)
    return head.in_features
