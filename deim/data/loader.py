"""From configuration to datasets and loaders."""

import logging
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import features
from torch.utils.data import DataLoader

from deim.config.schema import Config
from deim.data.augment.industrial import IndustrialChanges, IndustrialOptions, require_albumentations
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import Augmentation, BatchChanges, compute_sizes
from deim.data.collate import Batch, BatchRequests, ChangedBatches, collate
from deim.data.dataset import DetectionDataset, EpochBatches, InputFormat
from deim.data.formats.coco import CocoSplit
from deim.data.image_cache import DiskCache
from deim.data.images.pixel_format import PercentileScaling, PixelFormat, Scaling, Uint8Scaling, WindowScaling
from deim.data.images.tiling import TiledSplit, Tiling, describe_tiles, tile_split
from deim.data.options import DataOptions
from deim.data.sampling import RepeatFactorSampling, compute_repeat_factors, epoch_length
from deim.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

WORKER_ERROR_MARK = "deim.errors.DataError: "


def input_format(config: Config) -> InputFormat:
    """How the config turns images into inputs."""
    data = config.data
    return InputFormat(
        size_hw=config.image_size_hw,
        resize=data.resize,
        mean=data.mean,
        std=data.std,
        pixels=pixel_format(data),
        reduced_decode=data.reduced_decode,
        tiling=tiling(data),
    )


def build_disk_cache(config: DataOptions, split: CocoSplit, input_format: InputFormat) -> DiskCache | None:
    """Open the cache of a split's resized images on disk; None if the config asks for none.

    Args:
        config: The `data` block.
        split: Any split.
        input_format: How an image becomes an input.

    Raises:
        DataError: If the cache cannot be written.
    """
    if config.disk_cache_mb == 0:
        return None
    pixels = input_format.pixels
    tiles = tile_split(split, input_format.tiling)
    cache = DiskCache(
        Path(config.disk_cache_dir),
        [split.image_path(index).absolute() for index in tiles.image.tolist()],
        # YOLO and VOC have one file for all splits.
        name=f"{split.annotations_path.absolute()} {split.name}",
        made_how={
            "resize": input_format.resize,
            "pixels": asdict(pixels),
            "reduced_decode": input_format.reduced_decode,
            "windows": None if input_format.tiling is None else tiles.windows_xyxy.tolist(),
            # Other versions decode and resize to slightly other numbers.
            "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
            "jpeg": features.version("libjpeg_turbo"),
            "processor": torch.backends.cpu.get_cpu_capability(),
        },
        image_shape=(pixels.channels, *input_format.size_hw),
        dtype=torch.uint8 if pixels.scaling.type == "uint8" else torch.float32,
        max_bytes=config.disk_cache_mb * 2**20,
    )
    if cache.capacity < len(tiles):
        logger.warning(
            "data.disk_cache_mb: %d of %d inputs of %s (%s) fit; each takes %.1f MiB",
            cache.capacity,
            len(tiles),
            split.name,
            split.annotations_path,
            cache.image_bytes / 2**20,
        )
    return cache


def tiling(config: DataOptions) -> Tiling | None:
    """How the config cuts images; None if it leaves them whole."""
    tiles = config.tiles
    if tiles is None:
        return None
    return Tiling(size=tiles.size, overlap=tiles.overlap, keep_fraction=tiles.keep_fraction)


def pixel_format(config: DataOptions) -> PixelFormat:
    """What the config says of the files' channels and of their scaling."""
    match config.scaling:
        case Uint8Scaling():
            scaling = Scaling()
        case WindowScaling(low=low, high=high):
            scaling = Scaling(type="window", low=low, high=high)
        case PercentileScaling(low=low, high=high):
            scaling = Scaling(type="percentile", low=low, high=high)
    return PixelFormat(channels=config.channels, scaling=scaling)


def build_augmentation(
    config: AugmentOptions, *, start_epoch: int, stop_epoch: int, mix_end_epoch: int | None = None
) -> Augmentation:
    """Build the random changes of training images; the epochs come from the resolved schedule.

    Args:
        config: The `augment` block.
        start_epoch: First epoch with more than flips.
        stop_epoch: First epoch of the final stage.
        mix_end_epoch: First epoch without mosaic; None for `stop_epoch`.

    Raises:
        ConfigError: If a change needs a package that is not installed.
    """
    return Augmentation(
        horizontal_flip=config.horizontal_flip,
        vertical_flip=config.vertical_flip,
        photometric=config.photometric,
        start_epoch=start_epoch,
        stop_epoch=stop_epoch,
        mix_end_epoch=stop_epoch if mix_end_epoch is None else mix_end_epoch,
        mosaic=config.mosaic,
        mosaic_max_degrees=config.mosaic_max_degrees,
        mosaic_max_shift=config.mosaic_max_shift,
        mosaic_scales=config.mosaic_scales,
        zoom_out=config.zoom_out,
        zoom_out_max_scale=config.zoom_out_max_scale,
        crop=config.crop,
        industrial=None if config.industrial is None else _industrial_changes(config.industrial),
    )


def _industrial_changes(config: IndustrialOptions) -> IndustrialChanges:
    require_albumentations()
    return IndustrialChanges(
        rotation=config.rotation,
        max_degrees=config.max_degrees,
        perspective=config.perspective,
        max_corner_shift=config.max_corner_shift,
        lighting=config.lighting,
        exposure=config.exposure,
        blur=config.blur,
        noise=config.noise,
        jpeg=config.jpeg,
    )


def build_batch_changes(
    config: Config, *, start_epoch: int, mix_end_epoch: int, stop_epoch: int
) -> BatchChanges | None:
    """Build the random changes of training batches; None if the config wants none of them.

    Args:
        config: The experiment.
        start_epoch: First epoch with mix-up and copy-blend.
        mix_end_epoch: First epoch without mix-up.
        stop_epoch: First epoch of the final stage.
    """
    augment = config.augment
    sizes = compute_sizes(config.image_size_hw, augment.multi_scale, repeat=augment.multi_scale_repeat)
    if not sizes and max(augment.mix_up, augment.copy_blend) == 0:
        return None
    return BatchChanges(
        mix_up=augment.mix_up,
        copy_blend=augment.copy_blend,
        copy_blend_objects=augment.copy_blend_objects,
        copy_blend_balanced=augment.copy_blend_balanced,
        sizes_hw=sizes,
        start_epoch=start_epoch,
        mix_end_epoch=mix_end_epoch,
        stop_epoch=stop_epoch,
    )


def build_train_batches(
    config: Config, split: CocoSplit, *, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> EpochBatches:
    """Build the order of the training images, or tiles; set its `epoch` before each pass of the loader.

    Args:
        config: The experiment.
        split: Training data.
        batch_size: Images of an optimizer step, all processes together.
        rank: Number of this process.
        num_ranks: Processes.
    """
    tiles = tile_split(split, tiling(config.data))
    _report_tiles(config, tiles)
    return EpochBatches(
        len(tiles),
        batch_size,
        seed=config.seed,
        rank=rank,
        num_ranks=num_ranks,
        repeat_factors=_repeat_factors(config.data, split, tiles),
    )


def _report_tiles(config: Config, tiles: TiledSplit) -> None:
    """Say what becomes of the training images, if they are to be cut."""
    options = config.data.tiles
    if options is None:
        return
    logger.info("tiles: %s", describe_tiles(tiles, size=options.size, input_size_hw=config.image_size_hw))
    if not tiles.is_part.any():
        logger.warning("data.tiles: no training image is larger than a tile of %d px", options.size)
    if tiles.num_lost:
        logger.warning(
            "data.tiles: %d boxes are on no tile and are not learned, since none holds the share "
            "data.tiles.keep_fraction of them; lower it, or raise data.tiles.overlap",
            tiles.num_lost,
        )


def _repeat_factors(config: DataOptions, split: CocoSplit, tiles: TiledSplit) -> NDArray[np.float64] | None:
    """Of the images, or tiles, reported; None if each comes once an epoch."""
    if not isinstance(config.sampling, RepeatFactorSampling):
        return None
    factors = compute_repeat_factors(split, config.sampling.threshold, tiles=tiles)
    repeated = [
        f"{name} {factor:.2f}"
        for name, factor in zip(split.class_names, factors.of_classes, strict=True)
        if factor > 1
    ]
    logger.info(
        "data.sampling: repeat factors %s; an epoch has %d %s instead of %d",
        ", ".join(repeated) or "of all classes are 1: no class is rarer than the threshold",
        epoch_length(factors.of_images),
        "images" if config.tiles is None else "tiles",
        len(tiles),
    )
    return factors.of_images


def build_train_dataset(
    config: Config,
    split: CocoSplit,
    *,
    augmentation: Augmentation | None,
    repeat_factors: NDArray[np.float64] | None = None,
) -> DetectionDataset:
    """Build the training images with their targets.

    Args:
        config: The experiment.
        split: Training data, whose classes are those of the detector.
        augmentation: Random changes; None for none.
        repeat_factors: Of the sampler; None if it shows all alike.
    """
    form = input_format(config)
    return DetectionDataset(
        split,
        {category_id: index for index, category_id in enumerate(split.category_ids)},
        input_format=form,
        augmentation=augmentation,
        seed=config.seed,
        cache_bytes=config.data.cache_mb * 2**20,
        disk_cache=build_disk_cache(config.data, split, form),
        repeat_factors=repeat_factors,
    )


def build_train_loader(
    config: Config,
    split: CocoSplit,
    *,
    augmentation: Augmentation,
    batches: EpochBatches,
    changes: BatchChanges | None = None,
) -> DataLoader[Batch]:
    """Build the training loader.

    Args:
        config: The experiment.
        split: Training data.
        augmentation: Random changes of the images.
        batches: Which images make a batch.
        changes: Random changes of the batches; None for none.
    """
    dataset = build_train_dataset(
        config, split, augmentation=augmentation, repeat_factors=batches.repeat_factors
    )
    if changes is None:
        return load_batches(dataset, batches, num_workers=config.data.num_workers)
    good, names = config.data.normal_class, split.class_names
    return DataLoader(
        # Copies are of defects: not of what marks a good surface.
        ChangedBatches(dataset, changes, left_out=names.index(good) if good in names else None),
        batch_size=None,
        sampler=BatchRequests(batches),
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # without a batch size it gets an item
        **_loading(config.data.num_workers),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def build_eval_loader(
    split: CocoSplit,
    class_index: dict[int, int],
    *,
    input_format: InputFormat,
    config: DataOptions,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader[Batch]:
    """Build a loader that visits every image of a split, tile by tile, in the order of its file.

    Args:
        split: Any split.
        class_index: Class index of each of its category ids.
        input_format: How an image becomes an input.
        config: The `data` block, for batch size and workers.
        rank: Number of this process.
        num_ranks: Processes that share the images, each of which is in one's part alone with all its tiles.
    """
    dataset = DetectionDataset(
        split,
        class_index,
        input_format=input_format,
        cache_bytes=config.cache_mb * 2**20,
        disk_cache=build_disk_cache(config, split, input_format),
    )
    first = dataset.tiles.first_tile.tolist()
    own = [
        tile for index in range(rank, len(split), num_ranks) for tile in range(first[index], first[index + 1])
    ]
    size = config.eval_batch_size
    batches = [own[start : start + size] for start in range(0, len(own), size)]
    return load_batches(dataset, batches, num_workers=config.num_workers)


def load_batches(
    dataset: DetectionDataset, batches: Iterable[list[Any]], *, num_workers: int
) -> DataLoader[Batch]:
    """Build a loader of given batches.

    Args:
        dataset: Images and targets.
        batches: The items of each batch.
        num_workers: Processes that load images; 0 loads in this one.
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collate,
        **_loading(num_workers),
    )


def _loading(num_workers: int) -> dict[str, Any]:
    """What all loaders have in common."""
    return {
        # A generator of its own: the workers' seeds must not draw from the one that training uses.
        "generator": torch.Generator(),
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": _leave_process_group,
        "pin_memory": torch.cuda.is_available(),
    }


def _leave_process_group(worker: int) -> None:  # noqa: ARG001
    """Terminals and launchers signal the whole group of a run; the main process still needs its workers then.

    They do not ignore SIGTERM, by which Python ends them when the main process exits.
    """
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def iterate(loader: Iterable[T]) -> Iterator[T]:
    """Batches of a loader; a DataError from a worker process arrives with its own message only.

    Raises:
        DataError: If an image is damaged or does not fit its annotations.
    """
    try:
        yield from loader
    except DataError as error:
        # The loader puts the worker's whole traceback into the message.
        raise DataError(str(error).rsplit(WORKER_ERROR_MARK, 1)[-1].strip()) from None
