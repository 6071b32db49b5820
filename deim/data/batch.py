"""The batch: the inputs of a step with their targets."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms.v2 import functional as TF

from deim.data.images.input_format import InputFormat
from deim.data.images.resize import normalize
from deim.structures import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs of one step with their targets."""

    images: Tensor
    """(B, C, H, W) float32, normalized."""
    targets: list[Target]
    """Ground truth of each image."""

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
        """Return micro-batches of at most `size` images, of equal size as far as possible."""
        images = self.images.tensor_split(-(-len(self.targets) // size))
        starts = [0, *itertools.accumulate(len(part) for part in images)]
        return [
            Batch(images=part, targets=self.targets[start : start + len(part)])
            for part, start in zip(images, starts, strict=False)
        ]

    def share(self) -> None:
        """Move the images to shared memory, in a loading process.

        Left to torch, this fails in a thread, and the main process would wait for the batch forever.

        Raises:
            RuntimeError: If there is not enough shared memory.
        """
        if self.images.numel():
            self.images.share_memory_()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the tensors of the targets travel as bytes: shared, each of them would be an open file."""
        plain = [
            {key: value.numpy() if isinstance(value, Tensor) else value for key, value in target.items()}
            for target in self.targets
        ]
        return _restore_batch, (self.images, plain)

    def pin_memory(self) -> "Batch":
        """Move the images to page-locked memory; the loader calls this for CUDA."""
        return Batch(images=self.images.pin_memory(), targets=self.targets)


def _restore_batch(images: Tensor, plain: Sequence[Mapping[str, Any]]) -> Batch:
    """Undo `Batch.__reduce__`."""
    targets: list[Any] = [{key: _as_tensor(value) for key, value in row.items()} for row in plain]
    return Batch(images=images, targets=targets)


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def collate(images: Iterable[Tensor], targets: Iterable[Target], input_format: InputFormat) -> Batch:
    """Normalize images of one size, (C, H, W) uint8 or float32 in [0, 1], into a batch."""
    raw = list(images)
    inputs = torch.empty(len(raw), *raw[0].shape)
    if get_worker_info() is not None:
        inputs.share_memory_()  # shared while it is empty, it needs no copy on its way to the main process
    for image, place in zip(raw, inputs, strict=True):
        normalize(image, input_format, out=place)
    return Batch(images=inputs, targets=list(targets))


def resize_batch(
    images: Tensor, targets: Sequence[Target], size_hw: tuple[int, int]
) -> tuple[Tensor, list[Target]]:
    """Resize images (B, C, H, W), bilinear with antialiasing; areas are scaled, fractions stay."""
    height, width = images.shape[-2:]
    factor = size_hw[0] * size_hw[1] / (height * width)
    scaled: list[Target] = [{**target, "area": target["area"] * factor} for target in targets]
    return TF.resize(images, list(size_hw), antialias=True), scaled
