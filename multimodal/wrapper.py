"""The detector of phase 1, frozen, with the fusion head on top."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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
    quality_correction: Tensor
    """(B, Q, 1) float: pred_logits less the last class head's logits; only its training needs it."""


class FusedOutput(ModelOutput):
    """Fused logits in `pred_logits`, the detector's own `pred_boxes`, and what the loss needs beside them.

    Whoever reads predictions finds C classes; the background is not among them.
    """

    detector_logits: Tensor
    """(B, Q, C) float, before the sigmoid: the detector's own, without gradient."""
    evidence: TextEvidence
    """What the text says of every query."""


class TextFusedDetector(nn.Module):
    """A frozen detector whose class logits are fused with text.

    The detector stays in evaluation mode whatever `train` is told, makes no denoising queries, and no
    gradient enters it. Before the first step the output equals its own exactly; boxes always do.

    Args:
        detector: The trained detector; it is frozen in place.
        head: The fusion head.

    Raises:
        ValueError: If the numbers of classes, or the widths of the queries, differ.
    """

    def __init__(self, detector: Detector, head: FusionHead) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False).eval()
        self.head = head
        if head.num_classes != detector.num_classes:
            raise ValueError(
                f"head: got text of {head.num_classes} classes for a detector of {detector.num_classes}. "
                f"Each class needs its text. Build the text bank with the detector's classes, in their order."
            )
        if head.query_dim != self.class_head.in_features:
            raise ValueError(
                f"head: got query_dim {head.query_dim} for a detector whose queries have "
                f"{self.class_head.in_features}. Both must be equal. Build the head with the detector's "
                f"hidden_dim."
            )

    @property
    def num_classes(self) -> int:
        """C, the classes that are told apart."""
        return self.detector.num_classes

    @property
    def class_head(self) -> nn.Linear:
        """The detector's last class head."""
        head = self.detector.decoder.dec_score_head[-1]
        assert isinstance(head, nn.Linear)
        return head

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the head; the detector stays in evaluation mode."""
        super().train(mode)
        self.detector.eval()
        return self

    def unfreeze_class_head(self) -> None:
        """Let the detector's last class head be trained too; its boxes do not depend on it.

        Call it before the model is copied for averaging or spread over processes: both look once, at their
        start, which parameters are trained.
        """
        self.class_head.requires_grad_(True)

    def forward(
        self,
        images: Tensor | DetectorFindings,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
        *,
        max_boxes: int | None = None,  # noqa: ARG002
    ) -> FusedOutput:
        """Detect objects.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of 32. Or what `find` gave for them.
            targets: Not used; a detector in training takes them for denoising queries, which a frozen one
                does not make.
            max_boxes: Not used, for the same reason.

        Returns:
            The same in training and in evaluation mode.

        Raises:
            ValueError: If the height or the width is not a multiple of 32.
        """
        found = images if isinstance(images, DetectorFindings) else self.find(images)
        evidence = self.head.evidence(found.query_features)
        logits = found.pred_logits
        if self.class_head.weight.requires_grad:
            logits = self.class_head(found.query_features.float()) + found.quality_correction
        # Contiguous, because the sigmoid of a view rounds otherwise than that of the detector's own tensor.
        fused = self.head.fuse(logits, evidence)[..., : self.num_classes].contiguous()
        return {
            "pred_logits": fused,
            "pred_boxes": found.pred_boxes,
            "detector_logits": logits.detach(),
            "evidence": evidence,
        }

    def find(self, images: Tensor) -> DetectorFindings:
        """Run the frozen detector alone.

        Args:
            images: (B, 3, H, W) float, normalised; H and W multiples of 32.

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
            quality_correction=output["quality_correction"],
        )
