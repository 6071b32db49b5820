"""The detector of phase 2, frozen, with the fusion head on top."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from deim.model.detector import Detector
from deim.structures import ModelOutput, Target
from multimodal.fusion_head import FusionHead, TextEvidence


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorFindings:
    """All that the fusion needs of the frozen detector, without gradient; it may stand for images."""

    query_features: Tensor
    """(B, Q, D) float: what the last class head reads."""
    pred_logits: Tensor
    """(B, Q, C) float, before the sigmoid."""
    pred_boxes: Tensor
    """(B, Q, 4) float, cxcywh."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "DetectorFindings":
        """Copy to a device."""
        return DetectorFindings(
            **{
                part.name: getattr(self, part.name).to(device, non_blocking=non_blocking)
                for part in fields(self)
            }
        )


class FusedOutput(ModelOutput):
    """Fused logits in `pred_logits`, the detector's own `pred_boxes`, and what the loss needs beside them.

    Whoever reads predictions finds C classes; the background is not among them.
    """

    detector_logits: Tensor
    """(B, Q, C) float, before the sigmoid: the detector's own."""
    evidence: TextEvidence
    """What the text says of every query."""


class Fusing(Protocol):
    """What moves class logits by the features of their queries, such as a `FusionHead`."""

    @property
    def num_classes(self) -> int:
        """C."""

    def evidence(self, queries: Tensor) -> TextEvidence:
        """What is known of queries (B, Q, D)."""

    def fuse(self, logits: Tensor, evidence: TextEvidence) -> Tensor:
        """Move logits (B, Q, C) by the evidence for the same queries; gives (B, Q, C+1) float32."""


def fuse_findings(found: DetectorFindings, head: Fusing, class_head_delta: nn.Linear | None) -> FusedOutput:
    """Fuse what the frozen detector found.

    Args:
        found: Of a batch.
        head: Moves the logits.
        class_head_delta: Adds to the detector's logits first; None for no change.
    """
    evidence = head.evidence(found.query_features)
    logits = found.pred_logits
    if class_head_delta is not None:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float() + class_head_delta(found.query_features.float())
    # Contiguous, because the sigmoid of a view rounds otherwise than that of the detector's own tensor.
    fused = head.fuse(logits, evidence)[..., : head.num_classes].contiguous()
    return {
        "pred_logits": fused,
        "pred_boxes": found.pred_boxes,
        "detector_logits": found.pred_logits,
        "evidence": evidence,
    }


def new_class_head_delta(query_dim: int, num_classes: int) -> nn.Linear:
    """A change of the class head that changes nothing yet."""
    change = nn.Linear(query_dim, num_classes)
    nn.init.zeros_(change.weight)
    nn.init.zeros_(change.bias)
    return change


class TextFusedDetector(nn.Module):
    """A frozen detector whose class logits are fused with text.

    The detector stays in evaluation mode whatever `train` is told, makes no denoising queries, and no
    gradient enters it. Before the first step the output equals its own exactly; boxes always do.

    Its last class head may be trained too. What changes is then not the head itself but a linear layer whose
    logits are added to its own and which starts at 0: the same function, learned by the same steps, while
    the detector's weights, and with them the matches and all that is cached of it, stay as they are.

    Args:
        detector: The trained detector; it is frozen in place.
        head: The fusion head.
        train_class_head: Add the change of the last class head.

    Raises:
        ValueError: If the numbers of classes, or the widths of the queries, differ.
    """

    def __init__(self, detector: Detector, head: FusionHead, *, train_class_head: bool = False) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.head = head
        if head.num_classes != detector.num_classes:
            raise ValueError(
                f"head: got text of {head.num_classes} classes for a detector of {detector.num_classes}. "
                f"Each class needs its text. Build the text bank with the detector's classes, in their order."
            )
        width = query_dim(detector)
        if head.query_dim != width:
            raise ValueError(
                f"head: got query_dim {head.query_dim} for a detector whose queries have {width}. Both must "
                f"be equal. Build the head with the detector's hidden_dim."
            )
        self.class_head_delta = (
            new_class_head_delta(width, detector.num_classes) if train_class_head else None
        )

    @property
    def num_classes(self) -> int:
        """C, the classes that are told apart."""
        return self.detector.num_classes

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head; the detector stays in evaluation mode."""
        super().train(mode)
        self.detector.eval()
        return self

    def forward(
        self,
        images: Tensor | DetectorFindings,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
        *,
        max_boxes: int | None = None,  # noqa: ARG002
    ) -> FusedOutput:
        """Detect objects.

        Args:
            images: (B, C, H, W) float, normalized; H and W multiples of 32. Or what `find` gave for them.
            targets: Not used; a detector in training takes them for denoising queries, which a frozen one
                does not make.
            max_boxes: Not used, for the same reason.

        Returns:
            The same in training and in evaluation mode.

        Raises:
            ValueError: If the height or the width is not a multiple of 32.
        """
        found = images if isinstance(images, DetectorFindings) else self.find(images)
        return fuse_findings(found, self.head, self.class_head_delta)

    def find(self, images: Tensor) -> DetectorFindings:
        """Run the frozen detector alone.

        Args:
            images: (B, C, H, W) float, normalized; H and W multiples of 32.

        Raises:
            ValueError: If the height or the width is not a multiple of 32.
        """
        # Other code may have set single layers to training, such as batch norm.
        if any(module.training for module in self.detector.modules()):
            self.detector.eval()
        with torch.no_grad():
            output = self.detector(images, with_queries=True)
        return DetectorFindings(
            query_features=output["query_features"],
            pred_logits=output["pred_logits"],
            pred_boxes=output["pred_boxes"],
        )


def query_dim(detector: Detector) -> int:
    """Width of what the detector's last class head reads."""
    head = detector.decoder.dec_score_head[-1]
    assert isinstance(head, nn.Linear)
    return head.in_features
