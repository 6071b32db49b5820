"""The outputs of the frozen detector for each training image, computed once and then read from files.

A cache folder belongs to one combination of detector, data, input format, augmentation and precision: its
name is their hash, so that a change of any of them leads to another folder. Numbers are stored unrounded.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deim.data.batch import Batch
from deim.data.dataset import DetectionDataset
from deim.data.formats.split import CocoSplit
from deim.data.loader import BatchLoader
from deim.data.options import WORKER_TIMEOUT_S
from deim.data.sampling import BatchSource, FixedBatches
from deim.data.tensor_file import pack_tensors, unpack_tensors
from deim.engine.memory import VALIDATION_ADVICE, explain_out_of_memory
from deim.engine.step import Precision, autocast
from deim.errors import DataError
from deim.files import folder_bytes, write_bytes
from deim.model.weights import hash_tensors
from deim.model.weights_file import UNREADABLE
from deim.structures import Placement, Target
from multimodal.wrapper import OUTPUT_NAMES, DetectorOutputs, TextFusedDetector

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the content of a file changes its meaning."""

View = tuple[int, int]
"""Number of the augmented view, and index of the image, or tile, in its dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorOutputBatch:
    """Detector outputs and targets of a step; see `engine.step.StepBatch`."""

    images: DetectorOutputs
    """Stand for the images."""
    targets: list[Target]
    """Ground truth of each image."""

    def to(self, device: torch.device) -> "DetectorOutputBatch":
        """Copy outputs, boxes and labels to a device."""
        targets: list[Target] = [
            {**target, "boxes": target["boxes"].to(device), "labels": target["labels"].to(device)}
            for target in self.targets
        ]
        return DetectorOutputBatch(images=self.images.to(device), targets=targets)

    def split(self, size: int) -> "list[DetectorOutputBatch]":
        """Return micro-batches of at most `size` images, as equal as possible."""
        numbers = np.array_split(np.arange(len(self.targets)), -(-len(self.targets) // size))
        return [
            DetectorOutputBatch(
                images=self.images.apply(itemgetter(slice(part[0], part[-1] + 1))),
                targets=self.targets[part[0] : part[-1] + 1],
            )
            for part in numbers
        ]


@dataclass(frozen=True, slots=True)
class DetectorOutputStore:
    """Detector outputs in one file for each image."""

    folder: Path
    """Made when the first file is written."""

    def path(self, view: View) -> Path:
        """Return the file of an image."""
        return self.folder / f"view{view[0]}" / f"{view[1]:07d}.safetensors"

    def has(self, view: View) -> bool:
        """Tell whether the outputs of an image are stored."""
        return self.path(view).is_file()

    def write(self, view: View, tensors: Mapping[str, Tensor]) -> None:
        """Store the outputs of one image atomically.

        Raises:
            DataError: If they cannot be written.
        """
        path = self.path(view)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, pack_tensors(tensors))
        except FileNotFoundError:  # another run has removed the folder: the outputs are computed again
            return
        except OSError as error:
            raise DataError(
                f"{path}: the detector outputs cannot be stored ({error.strerror}). Free some space, name "
                f"another folder with cache_dir, or switch the cache off with cache=false."
            ) from None

    def read(self, view: View) -> dict[str, Tensor] | None:
        """Read the outputs of one image; None if they are missing or damaged."""
        try:
            return unpack_tensors(self.path(view).read_bytes())
        except UNREADABLE:
            return None


@dataclass(kw_only=True, slots=True, eq=False)
class DetectorOutputLoader:
    """Batches of detector outputs, read from the store or computed and stored."""

    model: TextFusedDetector
    """Its detector computes what is not stored yet."""
    dataset: DetectionDataset
    """Images and targets, by (view, index)."""
    sampler: BatchSource
    """Order of the images; copies of an image have the same view."""
    store: DetectorOutputStore
    num_views: int
    """Views of each image; epochs use them in turn."""
    device: torch.device
    precision: Precision
    """Precision of the detector."""
    images_at_once: int
    """Largest number of images in a pass of the detector, for any size of the batches."""
    num_workers: int
    """Processes that load images."""
    worker_timeout_s: float = WORKER_TIMEOUT_S
    """Longest wait for them."""
    epoch: int = 0
    first_batch: int = 0
    """First batch of the epoch that the next pass yields."""

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.sampler)

    def missing_bytes(self) -> int:
        """Return about how many bytes the store lacks, by the mean size of the files that it has."""
        views = [(view, index) for view in range(self.num_views) for index in range(len(self.dataset))]
        num_stored = sum(map(self.store.has, views))
        size = folder_bytes(self.store.folder) / max(1, num_stored)
        return round(size * (len(views) - num_stored))

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch (0-based), and the first of its batches, that the next pass yields."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[DetectorOutputBatch]:
        """Yield the batches; those that are read from files are on the CPU.

        Raises:
            DataError: If an image is damaged, or outputs cannot be stored.
        """
        plan = [
            [(item[0] % self.num_views, item[1]) for item in request.items[request.part]]
            for request in self.sampler.requests(self.epoch, first_batch=self.first_batch)
        ]
        stored = [all(self.store.has(view) for view in views) for views in plan]
        absent = [views for views, is_stored in zip(plan, stored, strict=True) if not is_stored]
        images = BatchLoader(
            self.dataset,
            FixedBatches(absent),
            num_workers=self.num_workers,
            timeout_s=self.worker_timeout_s,
        )
        loaded = iter(images)
        for views, is_stored in zip(plan, stored, strict=True):
            batch = self._read(views) if is_stored else self._compute(views, next(loaded))
            # A damaged file is computed and written again.
            yield batch or self._compute(views, self.dataset.load_items(views))

    def _compute(self, views: Sequence[View], batch: Batch) -> DetectorOutputBatch:
        images = batch.images.to(self.device, non_blocking=True)
        outputs = run_detector_in_chunks(self.model, images, self.images_at_once, self.precision)
        for row, (view, target) in enumerate(zip(views, batch.targets, strict=True)):
            tensors = {name: getattr(outputs, name)[row].cpu().contiguous() for name in OUTPUT_NAMES}
            self.store.write(view, tensors | _target_tensors(target))
        return DetectorOutputBatch(images=outputs, targets=batch.targets)

    def _read(self, views: Sequence[View]) -> DetectorOutputBatch | None:
        rows = [row for view in views if (row := self.store.read(view)) is not None]
        if len(rows) < len(views):
            return None
        outputs = DetectorOutputs(**{name: torch.stack([row[name] for row in rows]) for name in OUTPUT_NAMES})
        targets = [_target(row, self.dataset, index) for row, (_, index) in zip(rows, views, strict=True)]
        return DetectorOutputBatch(images=outputs, targets=targets)


def run_detector_in_chunks(
    model: TextFusedDetector, images: Tensor, images_at_once: int, precision: Precision
) -> DetectorOutputs:
    """Run the frozen detector on images (B, channels, H, W), at most `images_at_once` at a time.

    Raises:
        TrainingError: If memory runs out.
    """
    with explain_out_of_memory("in the frozen detector", VALIDATION_ADVICE), autocast(precision):
        chunks = [model.run_detector(chunk) for chunk in images.split(images_at_once)]
    return DetectorOutputs(
        **{name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in OUTPUT_NAMES}
    )


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
) -> DetectorOutputStore:
    """Open the store of one combination of detector, data and augmentation in the folder of all stores.

    Raises:
        DataError: If an image cannot be read.
    """
    pipeline = dataset.pipeline if dataset.pipeline is not None and dataset.pipeline.changes_images else None
    # Only options that are set, so that a store stays valid when options are added.
    input_options = {name: value for name, value in asdict(dataset.input_format).items() if value is not None}
    key = {
        "format": FORMAT,
        "torch": torch.__version__,
        "detector": hash_tensors(model.detector.state_dict()),
        "precision": [precision.device_type, str(precision.dtype)],
        "annotations": dataset.split.fingerprint(),
        "images": _hash_images(dataset.split),
        "input": input_options,
        "classes": dataset.class_index,
        "augmentation": None if pipeline is None else [asdict(pipeline.options), asdict(pipeline.epochs)],
        "seed": None if pipeline is None else dataset.seed,
    }
    content = json.dumps(key, sort_keys=True)
    return DetectorOutputStore(folder / hashlib.sha256(content.encode("utf-8")).hexdigest()[:16])


def _hash_images(split: CocoSplit) -> str:
    """Hash the content of all images: an edited image may keep its name and its length."""
    digest = hashlib.blake2b()
    for path in map(split.image_path, range(len(split))):
        try:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()
