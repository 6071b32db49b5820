"""The interface of `deim.data.loader` after its change, on the loaders of today; to be removed with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch.utils.data import DataLoader

from deim.data import loader as old
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import Augmentation, BatchChanges, Stage, compute_sizes, find_stages
from deim.data.collate import Batch
from deim.data.dataset import DetectionDataset
from deim.data.dataset import EpochBatches as EpochSampler
from deim.data.formats.coco import CocoSplit
from deim.data.options import DataOptions

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
        """Return the stages of a run."""
        return find_stages(self.images, self.batches, epochs=epochs)

    def describe(self, epochs: int) -> list[str]:
        """Return a line for each stage of a run."""
        return [stage.describe() for stage in self.stages(epochs)]

    def max_boxes(self, num_boxes: int) -> int:
        """Return the most boxes of an input."""
        images = (4 if self.augment.mosaic else 1) * (2 if self.augment.mix_up else 1)
        copies = self.augment.copy_blend_objects if self.augment.copy_blend and num_boxes else 0
        return images * num_boxes + copies

    @property
    def changes_images(self) -> bool:
        """Whether single images are changed."""
        names = ("horizontal_flip", "vertical_flip", "photometric", "mosaic", "zoom_out", "crop")
        options = self.augment
        return max(getattr(options, name) for name in names) > 0 or options.industrial is not None

    @property
    def largest_size_hw(self) -> tuple[int, int]:
        """Size in pixels of the largest input."""
        repeat = self.augment.multi_scale_repeat
        sizes = compute_sizes(self.image_size_hw, self.augment.multi_scale, repeat=repeat)
        return max([self.image_size_hw, *sizes], key=lambda size_hw: size_hw[0] * size_hw[1])


class TrainLoader:
    """Training batches of one epoch after another."""

    def __init__(self, loader: DataLoader[Batch], sampler: EpochSampler, pipeline: AugmentPipeline) -> None:
        self.loader = loader
        self.sampler = sampler
        self.pipeline = pipeline
        dataset: Any = loader.dataset
        self.dataset: DetectionDataset = getattr(dataset, "dataset", dataset)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return old.iterate(self.loader)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose what the next pass loads."""
        self.sampler.epoch, self.sampler.first_batch = epoch, first_batch


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
    """Build the order of the training images."""
    config: Any = SimpleNamespace(data=data, seed=seed, image_size_hw=image_size_hw)
    return old.build_train_batches(config, split, batch_size=batch_size, rank=rank, num_ranks=num_ranks)


def build_pipeline(
    augment: AugmentOptions, *, epochs: AugmentEpochs, image_size_hw: tuple[int, int]
) -> AugmentPipeline:
    """Build the random changes."""
    stages = {"start_epoch": epochs.start, "mix_end_epoch": epochs.mix_end, "stop_epoch": epochs.stop}
    config: Any = SimpleNamespace(augment=augment, image_size_hw=image_size_hw)
    return AugmentPipeline(
        augment=augment,
        image_size_hw=image_size_hw,
        images=old.build_augmentation(augment, **stages),
        batches=old.build_batch_changes(config, **stages),
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
) -> TrainLoader:
    """Build the training loader."""
    config: Any = SimpleNamespace(data=data, augment=augment, seed=seed, image_size_hw=image_size_hw)
    pipeline = build_pipeline(augment, epochs=epochs, image_size_hw=image_size_hw)
    images: Any = pipeline.images if pipeline.changes_images else None
    loader = old.build_train_loader(
        config, split, augmentation=images, batches=sampler, changes=pipeline.batches
    )
    return TrainLoader(loader, sampler, pipeline)
