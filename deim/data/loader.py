"""From options to samplers and loaders of batches."""

import gc
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import PIL
import torch
import torchvision
from PIL import features
from torch.utils.data import DataLoader

from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import AugmentEpochs, AugmentPipeline, build_pipeline
from deim.data.batch import Batch
from deim.data.dataset import DetectionDataset
from deim.data.formats.split import CocoSplit
from deim.data.image_cache import DiskCache
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.tiling import tile_split
from deim.data.options import WORKER_TIMEOUT_S, DataOptions
from deim.data.sampling import (
    BatchRequest,
    BatchSource,
    EpochSampler,
    FixedBatches,
    RepeatFactorSampling,
    compute_repeat_factors,
    epoch_length,
)
from deim.data.workers import (
    describe_failure,
    detach_from_signals,
    end_processes,
    starting_processes,
    watching,
)
from deim.errors import DataError, DeimError, TrainingError

logger = logging.getLogger(__name__)

IN_WORKER = "in DataLoader worker process"
"""Part of every error that torch raises again in the main process."""


class BatchLoader:
    """Loads batches of one epoch after another, in `num_workers` processes, or in this one if there are 0.

    A batch that does not come within `timeout_s` from a process is an error.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        source: BatchSource,
        *,
        num_workers: int,
        timeout_s: float = WORKER_TIMEOUT_S,
    ) -> None:
        self.dataset = dataset
        self.timeout_s = timeout_s
        self._position = _EpochPosition(source)
        self._processes: list[BaseProcess] = []
        self._loader: DataLoader[Batch | DataError] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._position,
            # A separate generator, so that the workers' seeds do not draw from the one that training uses.
            generator=torch.Generator(),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            worker_init_fn=detach_from_signals,
            timeout=timeout_s if num_workers else 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def pipeline(self) -> AugmentPipeline:
        """Random changes of the training images; a loader for evaluation has none."""
        assert self.dataset.pipeline is not None
        return self.dataset.pipeline

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch of the next pass, and the number of its batches to skip."""
        self._position.epoch, self._position.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self._position.source)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the chosen epoch.

        Raises:
            DataError: If an image is damaged.
            TrainingError: If a loading process ended, such as for want of shared memory, hangs or fails.
        """
        if not self._loader.num_workers:
            yield from map(_raise_if_damaged, self._loader)
            return
        try:
            for batch in self._from_processes():
                yield _raise_if_damaged(batch)
            return
        except Exception as error:
            if isinstance(error, DeimError) and IN_WORKER not in str(error):
                raise
            message = describe_failure(error, self._processes, timeout_s=self.timeout_s)
        # Outside of the handler, where nothing holds the other processes, they end with the loader.
        end_processes(self._processes)
        del self._loader
        gc.collect()
        raise TrainingError(message)

    def _from_processes(self) -> Iterator[Batch | DataError]:
        """Yield what the processes send; their death is an error within a wait, never between two."""
        if not self._processes:
            with starting_processes(self._loader.num_workers) as self._processes:
                batches = iter(self._loader)
        else:
            with watching(self._processes):
                batches = iter(self._loader)
        while True:
            with watching(self._processes):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def _raise_if_damaged(batch: Batch | DataError) -> Batch:
    if isinstance(batch, DataError):
        raise batch
    return batch


class _EpochPosition:
    """The requests of the current epoch, for torch's loader."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self.epoch = 0
        self.first_batch = 0

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.source.requests(self.epoch, first_batch=self.first_batch)


def build_sampler(
    data: DataOptions,
    split: CocoSplit,
    *,
    seed: int,
    batch_size: int,
    image_size_hw: tuple[int, int],
    rank: int = 0,
    num_ranks: int = 1,
) -> EpochSampler:
    """Build the order of the training images, or tiles, and log what tiles and repeat factors do.

    `batch_size` counts the images of an optimizer step of all processes together.
    """
    tiles = tile_split(split, data.tiles)
    if data.tiles is not None:
        logger.info(
            "tiles: %d images become %d tiles of at most %dx%d px, %d with boxes, at %dx%d px in the network",
            len(split),
            len(tiles),
            data.tiles.size,
            data.tiles.size,
            (tiles.num_boxes > 0).sum(),
            *reversed(image_size_hw),
        )
        if not tiles.is_part.any():
            logger.warning("data.tiles: no training image is larger than a tile of %d px", data.tiles.size)
        if tiles.num_lost:
            logger.warning(
                "data.tiles: %d boxes are on no tile and are not learned, since no tile holds the share "
                "data.tiles.keep_fraction of them; lower it, or raise data.tiles.overlap",
                tiles.num_lost,
            )
    repeat_factors = None
    if isinstance(data.sampling, RepeatFactorSampling):
        repeat_factors, of_classes = compute_repeat_factors(split, data.sampling.threshold, tiles=tiles)
        pairs = zip(split.class_names, of_classes, strict=True)
        repeated = ", ".join(f"{name} {factor:.2f}" for name, factor in pairs if factor > 1)
        logger.info(
            "data.sampling: repeat factors %s; an epoch has %d %s instead of %d",
            repeated or "of all classes are 1: no class is rarer than the threshold",
            epoch_length(repeat_factors),
            "images" if data.tiles is None else "tiles",
            len(tiles),
        )
    return EpochSampler(
        len(tiles), batch_size, seed=seed, rank=rank, num_ranks=num_ranks, repeat_factors=repeat_factors
    )


def build_train_loader(
    sampler: EpochSampler,
    split: CocoSplit,
    *,
    data: DataOptions,
    augment: AugmentOptions,
    image_size_hw: tuple[int, int],
    seed: int,
    epochs: AugmentEpochs,
) -> BatchLoader:
    """Build the loader of the training batches; the classes of the split are those of the detector.

    Raises:
        ConfigError: If a transform needs a package that is not installed.
        DataError: If the disk cache cannot be written.
    """
    good, names = data.normal_class, split.class_names
    normal_label = names.index(good) if good in names else None
    pipeline = build_pipeline(augment, epochs=epochs, image_size_hw=image_size_hw, normal_label=normal_label)
    input_format = build_input_format(data, image_size_hw)
    dataset = DetectionDataset(
        split,
        {category_id: index for index, category_id in enumerate(split.category_ids)},
        input_format=input_format,
        pipeline=pipeline,
        seed=seed,
        cache_bytes=data.cache_mb * 2**20,
        disk_cache=build_disk_cache(data, split, input_format),
        repeat_factors=sampler.repeat_factors,
    )
    return BatchLoader(dataset, sampler, num_workers=data.num_workers, timeout_s=data.worker_timeout_s)


def build_eval_loader(
    split: CocoSplit,
    class_index: Mapping[int, int],
    *,
    data: DataOptions,
    input_format: InputFormat,
    rank: int = 0,
    num_ranks: int = 1,
) -> BatchLoader:
    """Build a loader that visits every image of a split, tile by tile, in the order of its file.

    An image is loaded whole by one of the `num_ranks` processes; `class_index` is by category id.
    """
    dataset = DetectionDataset(
        split,
        class_index,
        input_format=input_format,
        cache_bytes=data.cache_mb * 2**20,
        disk_cache=build_disk_cache(data, split, input_format),
    )
    first = dataset.tiles.first_tile.tolist()
    images = range(rank, len(split), num_ranks)
    items = [(0, tile) for index in images for tile in range(first[index], first[index + 1])]
    size = data.eval_batch_size
    batches = FixedBatches([items[start : start + size] for start in range(0, len(items), size)])
    return BatchLoader(dataset, batches, num_workers=data.num_workers, timeout_s=data.worker_timeout_s)


def build_disk_cache(data: DataOptions, split: CocoSplit, input_format: InputFormat) -> DiskCache | None:
    """Open the disk cache of a split's resized images; None if the config does not ask for one.

    Raises:
        DataError: If the cache cannot be written.
    """
    if data.disk_cache_mb == 0:
        return None
    tiles = tile_split(split, input_format.tiles)
    # Other versions and processors decode and resize to slightly different values.
    versions = [torch.__version__, torchvision.__version__, PIL.__version__]
    versions += [features.version("libjpeg_turbo") or "", torch.backends.cpu.get_cpu_capability()]
    kept = asdict(replace(input_format, tiles=None, mean=(), std=()))
    windows = None if input_format.tiles is None else tiles.windows_xyxy.tolist()
    cache = DiskCache(
        Path(data.disk_cache_dir),
        [split.image_path(index).absolute() for index in tiles.image.tolist()],
        # YOLO and VOC have one file for all splits.
        name=f"{split.annotations_path.absolute()} {split.name}",
        key=json.dumps([kept, windows, versions]),
        image_bytes=input_format.num_bytes,
        max_bytes=data.disk_cache_mb * 2**20,
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
