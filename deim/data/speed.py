"""How fast one process loads images, by stages, beside the plain pipeline of torchvision's transforms."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from deim.data.augment.pipeline import Augmentation
from deim.data.collate import Batch, collate, normalize_batch
from deim.data.dataset import DetectionDataset, InputFormat
from deim.data.formats.coco import CocoSplit, read_coco
from deim.data.synthetic.make import LabelledImage, render_image, write_annotations
from deim.data.transforms import Sample, read_input
from deim.errors import DataError
from deim.structures import Target

Way = Callable[[int], object]
"""Loads the batch of a step, which is numbered from 0."""

JPEG_QUALITY: Final = 90
WARMUP_STEPS: Final = 1


def make_photographs(root: Path, num_images: int, *, size_hw: tuple[int, int]) -> CocoSplit:
    """Write photographs of one size with defects: `images/` and `train.json`.

    Args:
        root: Folder that exists.
        num_images: At least 1.
        size_hw: In pixels.
    """
    (root / "images").mkdir()
    images = []
    for index in range(num_images):
        pixels, boxes = render_image(np.random.default_rng([0, index]), size_hw, "defective")
        made = LabelledImage(file_name=f"{index:05d}.jpg", size_hw=size_hw, jpeg=b"", boxes=boxes)
        Image.fromarray(pixels).save(root / "images" / made.file_name, quality=JPEG_QUALITY)
        images.append(made)
    write_annotations(root / "train.json", images)
    return read_coco(root / "train.json", root / "images")


def time_in_turns(ways: Mapping[str, Way], *, steps: int) -> dict[str, float]:
    """Time several ways to load the same batches, one after the other in each step, with one thread.

    Args:
        ways: By name.
        steps: Batches to load, at least 1; some more come first that do not count.

    Returns:
        Seconds of the processor of each way, for all steps; other work on the machine counts less in them.
    """
    seconds = dict.fromkeys(ways, 0.0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in range(-WARMUP_STEPS, steps):
            for name, way in ways.items():
                started = time.process_time()
                way(step % steps)
                if step >= 0:
                    seconds[name] += time.process_time() - started
    finally:
        torch.set_num_threads(num_threads)
    return seconds


class Batches:
    """Which images of a split a step loads, in the order of the file, again and again.

    Args:
        num_images: Of the split.
        batch_size: Images of a batch.
    """

    def __init__(self, num_images: int, batch_size: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size

    def items(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of each image; each time round is an epoch, with draws of its own."""
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [divmod(number, self.num_images) for number in numbers]


def whole_way(dataset: DetectionDataset, batches: Batches) -> Way:
    """What a loader's process does for a batch.

    Args:
        dataset: Of any cache.
        batches: Of its split.
    """
    return lambda step: collate(dataset.__getitems__(batches.items(step)))


def stages_of(dataset: DetectionDataset, batches: Batches) -> dict[str, Way]:
    """The stages of that work, each of which goes on with what the one before it has made.

    Args:
        dataset: Its caches are not used.
        batches: Of its split.
    """
    form, augmentation = dataset.input_format, dataset.augmentation
    fitted: list[Tensor] = []
    changed: list[Tensor] = []

    def decode(step: int) -> None:
        fitted[:] = [
            read_input(
                dataset.split.image_path(index),
                form.size_hw,
                resize=form.resize,
                pixels=form.pixels,
                reduced=form.reduced_decode,
            )[0]
            for _, index in batches.items(step)
        ]

    def augment(step: int) -> None:
        changed[:] = []
        for image, (epoch, index) in zip(fitted, batches.items(step), strict=True):
            sample = Sample(
                image=image,
                boxes_xyxy=torch.zeros(0, 4),
                labels=torch.zeros(0, dtype=torch.int64),
            )
            if augmentation is not None:
                rng = np.random.default_rng([dataset.seed, epoch, index])
                sample = augmentation(sample, epoch=epoch, rng=rng)
            changed.append(sample.image)

    def finish(step: int) -> Batch:  # noqa: ARG001
        targets: list[Target] = [
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in changed
        ]
        return normalize_batch(changed, targets, form)

    return {"decode and resize": decode, "augment": augment, "normalize and collate": finish}


def plain_ways(
    split: CocoSplit, batches: Batches, *, input_format: InputFormat, augmentation: Augmentation
) -> dict[str, Way]:
    """Plain pipelines of torchvision's transforms with the same operations and probabilities.

    Args:
        split: Photographs.
        batches: Of the split.
        input_format: Of photographs that are stretched.
        augmentation: Flips and colors alone.

    Returns:
        By name: colors on the whole image as a tensor, which is the usual order of detectors' recipes; the
        same on a Pillow image; and resizing first.

    Raises:
        DataError: If there is no plain pipeline with the same operations.
    """
    others = set(augmentation.names(augmentation.start_epoch)) - {"colors", "flips"}
    if others or input_format.resize != "stretch" or not input_format.pixels.is_rgb8:
        raise DataError(
            f"benchmark data: compares flips and colors of stretched photographs, got "
            f"{', '.join(sorted(others)) or 'another input'}. Take a config with "
            f"_base_/augment_conservative.yml, data.resize=stretch and RGB images of 8 bits."
        )
    to_tensor = v2.ToImage()
    colors = v2.RandomPhotometricDistort(p=augmentation.photometric)
    flips = [
        v2.RandomHorizontalFlip(p=augmentation.horizontal_flip),
        *([v2.RandomVerticalFlip(p=augmentation.vertical_flip)] if augmentation.vertical_flip else []),
    ]
    resize = v2.Resize(list(input_format.size_hw), antialias=True)
    finish = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=list(input_format.mean), std=list(input_format.std)),
        v2.SanitizeBoundingBoxes(),
    ]
    orders = {
        "plain": [to_tensor, colors, *flips, resize, *finish],
        "plain, Pillow images": [colors, *flips, resize, to_tensor, *finish],
        "plain, resized first": [to_tensor, resize, colors, *flips, *finish],
    }
    return {name: _plain_way(split, batches, v2.Compose(steps)) for name, steps in orders.items()}


def _plain_way(split: CocoSplit, batches: Batches, transform: Callable[..., Any]) -> Way:
    def load(index: int) -> tuple[Tensor, dict[str, Any]]:
        picture = Image.open(split.image_path(index)).convert("RGB")
        rows = slice(split.first_box[index], split.first_box[index + 1])
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(split.boxes_xywh[rows]).float(),
            format="XYWH",
            canvas_size=(picture.height, picture.width),
        )
        return transform(
            picture, {"boxes": boxes, "labels": torch.from_numpy(split.box_category_ids[rows].copy())}
        )

    def way(step: int) -> object:
        images, targets = zip(*(load(index) for _, index in batches.items(step)), strict=True)
        return torch.stack(images), list(targets)

    return way
