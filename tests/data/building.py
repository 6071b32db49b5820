"""Samplers, datasets and loaders of a config, and pipelines of single options."""

from typing import Any

from deim.config.schema import Config
from deim.data.augment.options import AugmentOptions
from deim.data.augment.pipeline import AugmentEpochs, AugmentPipeline, build_pipeline
from deim.data.dataset import DetectionDataset
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.loader import BatchLoader, build_sampler, build_train_loader
from deim.data.sampling import EpochSampler

OFF: dict[str, Any] = {"horizontal_flip": 0.0, "photometric": 0.0}
"""Options without any change."""


def make_format(config: Config) -> InputFormat:
    return build_input_format(config.data, config.image_size_hw)


def make_pipeline(
    *,
    start: int = 0,
    stop: int = 9,
    mix_end: int | None = None,
    augment: AugmentOptions | None = None,
    **options: Any,
) -> AugmentPipeline:
    epochs = AugmentEpochs(start=start, mix_end=stop if mix_end is None else mix_end, stop=stop)
    return build_pipeline(
        augment or AugmentOptions(**{**OFF, **options}), epochs=epochs, image_size_hw=(64, 64)
    )


def make_sampler(
    config: Config, split: CocoSplit, *, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> EpochSampler:
    return build_sampler(
        config.data,
        split,
        seed=config.seed,
        batch_size=batch_size,
        image_size_hw=config.image_size_hw,
        rank=rank,
        num_ranks=num_ranks,
    )


def make_train_loader(
    config: Config,
    split: CocoSplit,
    *,
    batch_size: int = 2,
    start: int = 0,
    mix_end: int = 99,
    stop: int = 99,
    rank: int = 0,
    num_ranks: int = 1,
) -> BatchLoader:
    return build_train_loader(
        make_sampler(config, split, batch_size=batch_size, rank=rank, num_ranks=num_ranks),
        split,
        data=config.data,
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        seed=config.seed,
        epochs=AugmentEpochs(start=start, mix_end=mix_end, stop=stop),
    )


def make_train_dataset(config: Config, split: CocoSplit, **epochs: int) -> DetectionDataset:
    return make_train_loader(config, split, **epochs).dataset


def read_input_of(dataset: DetectionDataset, *item: int) -> tuple[Any, Any]:
    """The normalized input and the target of an item (epoch, index, …)."""
    batch = dataset.load_items([item])
    return batch.images[0], batch.targets[0]
