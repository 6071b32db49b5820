"""What the frozen detector finds in each training image, found once and read from files afterwards.

    batch of (view, image) → all there? → read them
                           → else images → detector → write them

A cache folder belongs to one combination of detector, data, input format, augmentation and precision: its
name is their hash, so that a change of any of them leads to another folder. Numbers are stored as the
detector gave them, not rounded.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from deim.data.collate import Batch, collate
from deim.data.dataset import DetectionDataset, InputFormat
from deim.data.formats.coco import CocoSplit
from deim.data.loader import iterate, load_batches
from deim.engine.memory import VALIDATION_ADVICE, explain_out_of_memory
from deim.engine.step import Precision, autocast
from deim.errors import DataError
from deim.model.weights import UNREADABLE
from deim.structures import Placement, Target
from multimodal.encoders.hashed import hash_tensors
from multimodal.wrapper import DetectorFindings, TextFusedDetector

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever what a file holds changes its meaning."""

FINDINGS = tuple(part.name for part in fields(DetectorFindings))

View = tuple[int, int]
"""Number of the augmented view, and index of the image, or tile, in its dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FindingsBatch:
    """What the detector found in the images of a step, with their targets; see `engine.step.StepBatch`."""

    images: DetectorFindings
    """Stands for the images."""
    targets: list[Target]
    """Ground truth, an image each."""

    def to(self, device: torch.device) -> "FindingsBatch":
        """Copy findings, boxes and labels to a device."""
        targets: list[Target] = [
            {**target, "boxes": target["boxes"].to(device), "labels": target["labels"].to(device)}
            for target in self.targets
        ]
        return FindingsBatch(images=self.images.to(device), targets=targets)

    def split(self, size: int) -> "list[FindingsBatch]":
        """Micro-batches of at most `size` images, as equal as can be."""
        parts = -(-len(self.targets) // size)
        tensors = {name: getattr(self.images, name).tensor_split(parts) for name in FINDINGS}
        batches, start = [], 0
        for number in range(parts):
            found = DetectorFindings(**{name: pieces[number] for name, pieces in tensors.items()})
            end = start + len(found.pred_boxes)
            batches.append(FindingsBatch(images=found, targets=self.targets[start:end]))
            start = end
        return batches


class FindingsStore:
    """Findings of single images in files of their own, so that a kill leaves only whole ones.

    Args:
        folder: Of these findings alone; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, view: View) -> Path:
        """Where the findings of an image are."""
        number, index = view
        return self.folder / f"view{number}" / f"{index:07d}.safetensors"

    def has(self, view: View) -> bool:
        """Whether the findings of an image are there."""
        return self.path(view).is_file()

    def write(self, view: View, tensors: Mapping[str, Tensor]) -> None:
        """Write the findings of one image; a reader sees none or all of them.

        Raises:
            DataError: If they cannot be written.
        """
        path = self.path(view)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(dict(tensors), temporary)
            temporary.replace(path)
        except (OSError, *UNREADABLE) as error:
            raise DataError(
                f"{path}: what the detector found cannot be stored ({error}). Free some space, name another "
                f"folder with task.cache_dir, or go without by task.cache=false."
            ) from None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self, view: View) -> dict[str, Tensor] | None:
        """The findings of one image; None if they are not there, or damaged."""
        try:
            return load(self.path(view).read_bytes())
        except UNREADABLE:
            return None


class FindingsLoader:
    """Batches of what the detector found: read where it is stored, else found and stored.

    Args:
        model: Its detector finds what is not stored yet.
        dataset: Images and targets; asked for by (view, index).
        batches: Lists of (epoch, index), such as `EpochBatches`; copies of an image have the same view.
        store: Where findings are kept.
        num_views: Views of each image, of which an epoch has one, in turn.
        device: Where the detector computes.
        precision: Of the detector.
        images_at_once: Images that the detector gets at once, whatever the size of the batches.
        num_workers: Processes that load images.
    """

    def __init__(
        self,
        model: TextFusedDetector,
        dataset: DetectionDataset,
        batches: Any,
        *,
        store: FindingsStore,
        num_views: int,
        device: torch.device,
        precision: Precision,
        images_at_once: int,
        num_workers: int,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.batches = batches
        self.store = store
        self.num_views = num_views
        self.device = device
        self.precision = precision
        self.images_at_once = images_at_once
        self.num_workers = num_workers

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the first of its batches, of the next pass."""
        self.batches.epoch, self.batches.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[FindingsBatch]:
        """Yield the batches; those that come from files are on the CPU.

        Raises:
            DataError: If an image is damaged, or findings cannot be stored.
        """
        plan = [[(epoch % self.num_views, index) for epoch, index, *_ in batch] for batch in self.batches]
        is_there = [all(self.store.has(view) for view in views) for views in plan]
        absent = [views for views, there in zip(plan, is_there, strict=True) if not there]
        loaded = iterate(load_batches(self.dataset, absent, num_workers=self.num_workers))
        for views, there in zip(plan, is_there, strict=True):
            batch = self._read(views) if there else self._find(views, next(loaded))
            # A damaged file is found and written anew.
            yield batch or self._find(views, collate([self.dataset[view] for view in views]))

    def _find(self, views: Sequence[View], batch: Batch) -> FindingsBatch:
        found = find_in_parts(
            self.model, batch.images.to(self.device, non_blocking=True), self.images_at_once, self.precision
        )
        for row, (view, target) in enumerate(zip(views, batch.targets, strict=True)):
            tensors = {name: getattr(found, name)[row].cpu().contiguous() for name in FINDINGS}
            self.store.write(view, tensors | _target_tensors(target))
        return FindingsBatch(images=found, targets=batch.targets)

    def _read(self, views: Sequence[View]) -> FindingsBatch | None:
        rows = [self.store.read(view) for view in views]
        whole = [row for row in rows if row is not None]
        if len(whole) < len(rows):
            return None
        found = DetectorFindings(**{name: torch.stack([row[name] for row in whole]) for name in FINDINGS})
        targets = [_target(row, self.dataset, index) for row, (_, index) in zip(whole, views, strict=True)]
        return FindingsBatch(images=found, targets=targets)


def find_in_parts(
    model: TextFusedDetector, images: Tensor, images_at_once: int, precision: Precision
) -> DetectorFindings:
    """What the detector finds in a batch, a few images at a time.

    Args:
        model: Its detector finds.
        images: (B, C, H, W) float, normalized, on the device of the model.
        images_at_once: Images in memory at once.
        precision: Of the detector.

    Raises:
        TrainingError: If memory runs out.
    """
    with explain_out_of_memory("in what the detector finds", VALIDATION_ADVICE), autocast(precision):
        parts = [model.find(part) for part in images.split(images_at_once)]
    return DetectorFindings(**{name: torch.cat([getattr(part, name) for part in parts]) for name in FINDINGS})


def _target_tensors(target: Target) -> dict[str, Tensor]:
    place = target["placement"]
    numbers = [*place.orig_size_hw, *place.span_hw, *place.shift_yx]
    return {
        "boxes": target["boxes"].cpu().contiguous(),
        "labels": target["labels"].cpu(),
        "placement": torch.tensor(numbers, dtype=torch.float64),
    }


def _target(row: Mapping[str, Tensor], dataset: DetectionDataset, index: int) -> Target:
    split, image_index = dataset.split, dataset.image_index(index)
    height, width, span_h, span_w, shift_y, shift_x = row["placement"].tolist()
    return {
        "boxes": row["boxes"],
        "labels": row["labels"],
        "image_id": int(split.image_ids[image_index]),
        "file_name": split.file_names[image_index],
        "placement": Placement(
            orig_size_hw=(int(height), int(width)),
            span_hw=(span_h, span_w),
            shift_yx=(shift_y, shift_x),
            tile_xyxy=dataset.tiles.window(index),
        ),
    }


def open_store(
    folder: Path, dataset: DetectionDataset, model: TextFusedDetector, precision: Precision
) -> FindingsStore:
    """Open the store of one combination of detector, data and augmentation; its name follows from them.

    Args:
        folder: Of all stores.
        dataset: Images, annotations, input format and augmentation.
        model: Its detector.
        precision: Of the detector.

    Raises:
        DataError: If an image cannot be read.
    """
    key = {
        "format": FORMAT,
        "torch": torch.__version__,
        "detector": hash_tensors(model.detector.state_dict()),
        "precision": [precision.device_type, str(precision.dtype)],
        "annotations": dataset.split.fingerprint(),
        "images": _hash_images(dataset.split),
        "input": _input_key(dataset.input_format),
        "classes": dataset.class_index,
        "augmentation": None if dataset.augmentation is None else asdict(dataset.augmentation),
        "seed": None if dataset.augmentation is None else dataset.seed,
    }
    content = json.dumps(key, sort_keys=True)
    return FindingsStore(folder / hashlib.sha256(content.encode("utf-8")).hexdigest()[:16])


def _input_key(form: InputFormat) -> dict[str, object]:
    """The options of an input; what is off is left out, so that a store outlives options to come."""
    return {name: value for name, value in asdict(form).items() if value is not None}


def _hash_images(split: CocoSplit) -> str:
    """Of the content of all images: an edited one may keep its name and its length."""
    digest = hashlib.blake2b()
    for index in range(len(split)):
        path = split.image_path(index)
        try:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()
