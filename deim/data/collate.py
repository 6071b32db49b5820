"""From samples to a batch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deim.structures import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs of one step with their targets."""

    images: Tensor
    """(B, 3, H, W) float32, normalised."""
    targets: list[Target]
    """Ground truth, an image each."""

    def to(self, device: torch.device) -> "Batch":
        """Copy images, boxes and labels to a device."""
        targets: list[Target] = [
            {
                **target,
                "boxes": target["boxes"].to(device, non_blocking=True),
                "labels": target["labels"].to(device, non_blocking=True),
            }
            for target in self.targets
        ]
        return Batch(images=self.images.to(device, non_blocking=True), targets=targets)

    def split(self, size: int) -> "list[Batch]":
        """Micro-batches of at most `size` images, as equal as can be."""
        parts = -(-len(self.targets) // size)
        images = self.images.tensor_split(parts)
        starts = [0, *itertools.accumulate(len(part) for part in images)]
        return [
            Batch(images=part, targets=self.targets[start : start + len(part)])
            for part, start in zip(images, starts, strict=False)
        ]

    def pin_memory(self) -> "Batch":
        """Move the images to page-locked memory; the loader calls this for CUDA."""
        return Batch(images=self.images.pin_memory(), targets=self.targets)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Stack samples of one size.

    Args:
        samples: Inputs (3, H, W) with their targets.
    """
    images, targets = zip(*samples, strict=True)
    return Batch(images=torch.stack(images), targets=list(targets))
