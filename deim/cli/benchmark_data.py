"""Time the loading of synthetic images of 1650x1350 pixels in this process, with and without caches.

The table before the JSON line gives images per second of processor time on one thread.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deim.config.catalog import find_config
from deim.config.loader import load_config
from deim.config.schema import Config
from deim.data.augment.pipeline import AugmentEpochs
from deim.data.augment.transform import Sample
from deim.data.batch import collate
from deim.data.dataset import DetectionDataset
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.images.load import read_input
from deim.data.loader import build_sampler, build_train_loader
from deim.data.synthetic.make import LabeledImage, render_image, write_annotations

IMAGE_HW = (1350, 1650)
JPEG_QUALITY = 90
CACHES = {"all": (0, 0), "all, memory cache": (2**20, 0), "all, disk cache": (0, 2**20)}
"""Size of the memory cache and of the disk cache in MiB."""

LoadStep = Callable[[list[tuple[int, int]]], object]
"""Loads a batch of items (epoch, index)."""


def measure(args: Namespace) -> dict[str, float | str]:
    """Time the stages, and all of loading with each cache, in turns."""
    num_loaded = args.steps * args.batch
    with tempfile.TemporaryDirectory(prefix="benchmark_data.") as scratch:
        root = Path(scratch)
        config = load_config(
            find_config(args.config),
            [f"image_size={args.size}", f"data.root={root}", f"data.disk_cache_dir={root / 'cache'}"],
        )
        split = make_images(root, args.images)
        loaders: dict[str, LoadStep] = {}
        for name, (memory_mb, disk_mb) in CACHES.items():
            data = replace(config.data, cache_mb=memory_mb, disk_cache_mb=disk_mb)
            # Never more epochs than loaded images, so that colors change in all of them.
            dataset = _build_dataset(replace(config, data=data), split, num_epochs=num_loaded)
            for index in range(len(split) if memory_mb or disk_mb else 0):
                dataset.read((0, index))
            loaders[name] = dataset.load_items
        loaders = {**make_stages(dataset), **loaders}
        seconds = time_in_turns(loaders, args.steps, args.batch, num_images=len(split))
    speeds = {name: num_loaded / value for name, value in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name:24} {speed:8.1f} images/s")
    return {
        **{
            f"{name.replace(',', '').replace(' ', '_')}_images_per_s": round(speed, 2)
            for name, speed in speeds.items()
        },
        "what": (
            f"data {IMAGE_HW[1]}x{IMAGE_HW[0]} JPEG to {args.size}px, {args.images} images, batch "
            f"{args.batch}, {args.steps} steps, torch {torch.__version__}"
        ),
    }


def make_images(root: Path, num_images: int) -> CocoSplit:
    """Write synthetic JPEG images with defects to `root`: `images/` and `train.json`."""
    (root / "images").mkdir()
    images = []
    for index in range(num_images):
        pixels, boxes = render_image(np.random.default_rng([0, index]), IMAGE_HW, "defective")
        image = LabeledImage(file_name=f"{index:05d}.jpg", size_hw=IMAGE_HW, boxes=boxes)
        Image.fromarray(pixels).save(root / "images" / image.file_name, quality=JPEG_QUALITY)
        images.append(image)
    write_annotations(root / "train.json", images)
    return read_coco(root / "train.json", root / "images")


def time_in_turns(
    loaders: Mapping[str, LoadStep], steps: int, batch_size: int, *, num_images: int
) -> dict[str, float]:
    """Return the processor seconds of each loader for the same batches, one after the other in each step."""
    seconds = dict.fromkeys(loaders, 0.0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in range(-1, steps):  # the first step warms up
            numbers = range(step % steps * batch_size, (step % steps + 1) * batch_size)
            items = [divmod(number, num_images) for number in numbers]
            for name, load in loaders.items():
                started = time.process_time()
                load(items)
                seconds[name] += (time.process_time() - started) * (step >= 0)
    finally:
        torch.set_num_threads(num_threads)
    return seconds


def make_stages(dataset: DetectionDataset) -> dict[str, LoadStep]:
    """Return the stages of loading without a cache, each of which continues with the result of the last."""
    form, pipeline = dataset.input_format, dataset.pipeline
    assert pipeline is not None
    images: list[Tensor] = []

    def decode(items: list[tuple[int, int]]) -> None:
        images[:] = [read_input(dataset.split.image_path(index), form)[0] for _, index in items]

    def augment(items: list[tuple[int, int]]) -> None:
        for place, (epoch, index) in enumerate(items):
            rng = np.random.default_rng([dataset.seed, epoch, index])
            labels = torch.zeros(0, dtype=torch.int64)
            sample = Sample(image=images[place], boxes_xyxy=torch.zeros(0, 4), labels=labels)
            images[place] = pipeline.change(sample, epoch=epoch, rng=rng).image

    def finish(items: list[tuple[int, int]]) -> object:  # noqa: ARG001
        return collate(images, [], form)

    return {"decode and resize": decode, "augment": augment, "normalize and collate": finish}


def _build_dataset(config: Config, split: CocoSplit, *, num_epochs: int) -> DetectionDataset:
    sampler = build_sampler(
        config.data, split, seed=config.seed, batch_size=1, image_size_hw=config.image_size_hw
    )
    return build_train_loader(
        sampler,
        split,
        data=config.data,
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        seed=config.seed,
        epochs=AugmentEpochs(start=0, mix_end=0, stop=num_epochs),
    ).dataset
