"""From samples to a batch, and the changes that a whole batch gets."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info
from torchvision.transforms.v2 import functional as TF

from deim.data.augment.pipeline import BatchChanges
from deim.data.dataset import (
    BATCH,
    BatchRequest,
    DetectionDataset,
    EpochBatches,
    InputFormat,
    Item,
    RawBatch,
)
from deim.data.transforms import normalize, to_unit
from deim.structures import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Inputs of one step with their targets."""

    images: Tensor
    """(B, C, H, W) float32, normalized."""
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


def collate(samples: RawBatch | Sequence[tuple[Tensor, Target]]) -> Batch:
    """Make a batch of images of one size.

    Args:
        samples: Images to be normalized, or inputs (C, H, W) with their targets.
    """
    if isinstance(samples, RawBatch):
        return normalize_batch(samples.images, samples.targets, samples.input_format)
    images, targets = zip(*samples, strict=True)
    return Batch(images=torch.stack(images), targets=list(targets))


def normalize_batch(images: Sequence[Tensor], targets: list[Target], input_format: InputFormat) -> Batch:
    """Normalize images of one size into the memory of a batch.

    In a process of a loader that is memory shared with the main process, which gets no copy of it then.

    Args:
        images: (C, H, W) each, uint8 or float32 in [0, 1].
        targets: An image each.
        input_format: Says how.
    """
    shape = (len(images), *images[0].shape)
    if get_worker_info() is None:
        inputs = torch.empty(shape)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape) * torch.float32.itemsize)
        inputs = torch.empty(0).set_(storage).view(shape)
    for image, place in zip(images, inputs, strict=True):
        normalize(image, input_format.mean, input_format.std, out=place)
    return Batch(images=inputs, targets=targets)


class BatchRequests(Sampler[BatchRequest]):
    """The batches of an epoch as requests, for `ChangedBatches`.

    Args:
        batches: The order of the images.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.batches.requests()


class ChangedBatches(Dataset[Batch]):
    """Batches whose images are blended with one another and get a size of their own.

    What is drawn depends on nothing but the seed, the epoch and the number of the batch. A batch that is
    blended is loaded whole by each process, which then keeps its part: however many processes share it, its
    images are the same.

    Args:
        dataset: The images.
        changes: What may happen to a batch.
        left_out: Class index of objects that are never copied, such as good surfaces; None for none.
    """

    def __init__(
        self, dataset: DetectionDataset, changes: BatchChanges, *, left_out: int | None = None
    ) -> None:
        self.dataset = dataset
        self.changes = changes
        self.left_out = left_out
        # Here and not when the first batch is made: processes that load share it.
        found = dataset.find_items_of_classes() if changes.copy_blend_balanced else {}
        self._items_of_classes = {label: items for label, items in found.items() if label != left_out}

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Load a batch.

        Raises:
            DataError: If an image is damaged.
        """
        rng = np.random.default_rng([self.dataset.seed, request.epoch, request.number, BATCH])
        size_hw = self.changes.draw_size(epoch=request.epoch, rng=rng)
        kind = self.changes.draw_mix(epoch=request.epoch, rng=rng)
        wanted = request.items if kind else request.items[request.own]
        images, targets = self._read(wanted)
        if kind:
            drawn = self.changes.draw_donors(kind, self._items_of_classes, rng=rng)
            donors = self._read_donors(request.epoch, drawn) if drawn else None
            images, targets = self.changes.mix(
                kind, to_unit(images), targets, donors=donors, left_out=self.left_out, rng=rng
            )
            images, targets = images[request.own], targets[request.own]
        if size_hw is not None:
            images, targets = resize_batch(images, targets, size_hw)
        return normalize_batch(images.unbind(), targets, self.dataset.input_format)

    def _read(self, items: Sequence[Item]) -> tuple[Tensor, list[Target]]:
        """Inputs (B, C, H, W), not yet normalized."""
        images, targets = zip(*(self.dataset.read(item) for item in items), strict=True)
        return torch.stack(images), list(targets)

    def _read_donors(self, epoch: int, drawn: Sequence[tuple[int, int]]) -> tuple[Tensor, list[Target]]:
        """Inputs (D, C, H, W) in [0, 1], with their objects of the drawn class alone."""
        images, targets = self._read([(epoch, index) for _, index in drawn])
        for (label, _), target in zip(drawn, targets, strict=True):
            is_drawn = target["labels"] == label
            for name in ("boxes", "labels", "area"):
                target[name] = target[name][is_drawn]
        return to_unit(images), targets


def resize_batch(
    images: Tensor, targets: Sequence[Target], size_hw: tuple[int, int]
) -> tuple[Tensor, list[Target]]:
    """Resize images, bilinear with antialiasing; areas follow, boxes are fractions and stay.

    Args:
        images: (B, C, H, W).
        targets: An image each, with `area`.
        size_hw: In pixels.
    """
    height, width = images.shape[-2:]
    factor = size_hw[0] * size_hw[1] / (height * width)
    scaled: list[Target] = [{**target, "area": target["area"] * factor} for target in targets]
    return TF.resize(images, list(size_hw), antialias=True), scaled
