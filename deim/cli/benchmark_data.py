"""Time the loading of images of 1650x1350 pixels in this process, beside torchvision's transforms.

The images are synthetic. The table before the JSON line gives images per second of processor time on one
thread.
"""

import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from deim.config.catalog import find_config
from deim.config.loader import load_config
from deim.data.loader import build_augmentation, build_train_dataset, input_format
from deim.data.speed import Batches, Way, make_photographs, plain_ways, stages_of, time_in_turns, whole_way

IMAGE_HW = (1350, 1650)
CACHES = {"ours": "", "ours, memory cache": "cache_mb", "ours, disk cache": "disk_cache_mb"}
"""The option that sets the size of each cache."""


def measure(args: Namespace) -> dict[str, float | str]:
    """Time the stages, the whole work with each cache, and the plain pipelines, in turns."""
    with tempfile.TemporaryDirectory(prefix="benchmark_data.") as scratch:
        root = Path(scratch)
        config = load_config(
            find_config(args.config),
            [f"image_size={args.size}", f"data.root={root}", f"data.disk_cache_dir={root / 'cache'}"],
        )
        split = make_photographs(root, args.images, size_hw=IMAGE_HW)
        num_loaded = args.steps * args.batch
        # The number of epochs never exceeds the number of loaded images: colors change in all of them.
        augmentation = build_augmentation(config.augment, start_epoch=0, stop_epoch=num_loaded)
        batches = Batches(len(split), args.batch)
        stages: dict[str, Way] = {}
        ours: dict[str, Way] = {}
        for name, option in CACHES.items():
            # The cache has room for all images and, on disk, for their records.
            room = {option: len(split) * (3 * args.size**2 + 2**13) // 2**20 + 1} if option else {}
            data = replace(config.data, **{"cache_mb": 0, "disk_cache_mb": 0, **room})
            dataset = build_train_dataset(replace(config, data=data), split, augmentation=augmentation)
            for index in range(len(split) if option else 0):
                dataset.read((0, index))
            stages = stages or stages_of(dataset, batches)
            ours[name] = whole_way(dataset, batches)
        plain = plain_ways(split, batches, input_format=input_format(config), augmentation=augmentation)
        seconds = time_in_turns({**stages, **ours, **plain}, steps=args.steps)
    speeds = {name: num_loaded / value for name, value in seconds.items()}
    for name, speed in speeds.items():
        ratio = f"{speed / speeds['plain']:7.2f} times plain" if name not in stages else ""
        print(f"{name:24} {speed:8.1f} images/s {ratio}")
    keys = {name: name.replace(",", "").replace(" ", "_") for name in speeds}
    return {
        **{f"{keys[name]}_images_per_s": round(speed, 2) for name, speed in speeds.items()},
        **{
            f"{keys[name]}_to_{keys[other]}": round(speeds[name] / speeds[other], 2)
            for name in ours
            for other in plain
        },
        "what": (
            f"data {IMAGE_HW[1]}x{IMAGE_HW[0]} JPEG to {args.size}px, {args.images} images, batch "
            f"{args.batch}, {args.steps} steps, torch {torch.__version__}"
        ),
    }
