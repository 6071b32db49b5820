"""Training batches under the names that `deim.data.loader` will have; to be removed with that change."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader

from deim.config.schema import Config
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import Augmentation, BatchChanges, Stage, compute_sizes, find_stages
from deim.data.collate import Batch
from deim.data.dataset import EpochBatches as EpochSampler
from deim.data.formats.coco import CocoSplit
from deim.data.loader import (
    build_augmentation,
    build_batch_changes,
    build_train_batches,
    iterate,
)
from deim.data.loader import build_train_loader as build_data_loader

__all__ = ["AugmentEpochs", "EpochSampler", "TrainLoader", "build_pipeline", "build_sampler"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentEpochs:
    """First epochs (0-based) of the stages of augmentation."""

    start: int
    mix_end: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentPipeline:
    """The random changes of images and of batches."""

    augment: AugmentOptions
    image_size_hw: tuple[int, int]
    images: Augmentation
    batches: BatchChanges | None

    def stages(self, epochs: int) -> list[Stage]:
        """Return the stages of a run of so many epochs."""
        return find_stages(self.images, self.batches, epochs=epochs)

    def describe(self, epochs: int) -> list[str]:
        """Return a line for each stage of a run of so many epochs."""
        return [stage.describe() for stage in self.stages(epochs)]

    def max_boxes(self, most_boxes: int) -> int:
        """Return the most boxes that an input can have when one image has at most `most_boxes`."""
        images = (4 if self.augment.mosaic else 1) * (2 if self.augment.mix_up else 1)
        copies = self.augment.copy_blend_objects if self.augment.copy_blend and most_boxes else 0
        return images * most_boxes + copies

    @property
    def changes_images(self) -> bool:
        """Whether images are changed at all."""
        options = self.augment
        chances = (
            options.horizontal_flip,
            options.vertical_flip,
            options.photometric,
            options.mosaic,
            options.zoom_out,
            options.crop,
        )
        return max(chances) > 0 or options.industrial is not None

    @property
    def largest_size_hw(self) -> tuple[int, int]:
        """Return the largest input in pixels."""
        sizes = compute_sizes(
            self.image_size_hw, self.augment.multi_scale, repeat=self.augment.multi_scale_repeat
        )
        return max([self.image_size_hw, *sizes], key=lambda size_hw: size_hw[0] * size_hw[1])


class TrainLoader:
    """Training batches of one epoch after the other."""

    def __init__(self, loader: DataLoader[Batch], sampler: EpochSampler, pipeline: AugmentPipeline) -> None:
        self.loader = loader
        self.sampler = sampler
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return iterate(self.loader)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the first of its batches, that the next pass yields."""
        set_epoch(self.sampler, epoch, first_batch)


def set_epoch(sampler: EpochSampler, epoch: int, first_batch: int = 0) -> None:
    """Choose the epoch, and the first of its batches, that the next pass of a sampler yields."""
    sampler.epoch, sampler.first_batch = epoch, first_batch


def build_sampler(
    config: Config, split: CocoSplit, *, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> EpochSampler:
    """Build the order of the training images."""
    return build_train_batches(config, split, batch_size=batch_size, rank=rank, num_ranks=num_ranks)


def build_pipeline(config: Config, *, epochs: AugmentEpochs) -> AugmentPipeline:
    """Build the random changes."""
    stages = {"start_epoch": epochs.start, "mix_end_epoch": epochs.mix_end, "stop_epoch": epochs.stop}
    return AugmentPipeline(
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        images=build_augmentation(config.augment, **stages),
        batches=build_batch_changes(config, **stages),
    )


def build_train_loader(
    config: Config, sampler: EpochSampler, split: CocoSplit, *, epochs: AugmentEpochs
) -> TrainLoader:
    """Build the training loader."""
    pipeline = build_pipeline(config, epochs=epochs)
    loader = build_data_loader(
        config, split, augmentation=pipeline.images, batches=sampler, changes=pipeline.batches
    )
    return TrainLoader(loader, sampler, pipeline)
