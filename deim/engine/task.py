"""What a run trains: the model, its loss, its optimizer and its batches.

The trainer is the same whatever is trained. This file builds the subject of phase 1, the detector itself;
`multimodal/task.py` builds that of phase 2.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from deim.config.schema import Config
from deim.data.augment.pipeline import AugmentEpochs
from deim.data.loader import build_train_loader
from deim.data.sampling import EpochSampler
from deim.data.splits import Splits
from deim.engine.distributed import DistributedContext
from deim.engine.optimizer import build_optimizer
from deim.engine.schedule import Timeline
from deim.engine.step import BatchLoss, Precision, StepBatch
from deim.loss.build import build_criterion
from deim.model.build import build_model
from deim.model.weights import load_initial_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is settled of a run before its model is built; the seed is set."""

    config: Config
    splits: Splits
    batches: EpochSampler
    """The order of the training images."""
    timeline: Timeline
    device: torch.device
    precision: Precision
    distributed: DistributedContext
    is_new: bool
    """Whether the run starts; a continued one takes its weights from a checkpoint later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What a run trains."""

    model: nn.Module
    """On the device of the run."""
    criterion: BatchLoss
    optimizer: torch.optim.Optimizer
    loader: "EpochLoader"
    """Batches of the epoch that the setting's `batches` stand at."""
    stored: dict[str, Any] = field(default_factory=dict)
    """Entries that each checkpoint holds beside its own: what is needed to build the model again."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of what the run began with beside its data; see `run_state.FINGERPRINTS`."""
    must_beat_start: bool = False
    """Validate before the first step too, and write best.pth only on a higher score than that."""


class EpochLoader(Protocol):
    """Batches of one epoch after another."""

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and the first of its batches, of the next pass."""

    def __iter__(self) -> Iterator[StepBatch]: ...


BuildSubject = Callable[[Setting], Subject]


def build_detector_subject(setting: Setting) -> Subject:
    """Build the detector in training, from random or initial weights.

    Args:
        setting: Of the run.

    Raises:
        CheckpointError: If the initial weights cannot be read or do not fit.
    """
    config, timeline = setting.config, setting.timeline
    train = setting.splits.train
    model = build_model(config.model, len(train.class_names), channels=config.data.channels)
    if config.model.init_from is not None and setting.is_new:
        load_initial_weights(model, Path(config.model.init_from), class_names=train.class_names)
    model.to(setting.device)
    loader = build_train_loader(
        setting.batches,
        train,
        data=config.data,
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        seed=config.seed,
        epochs=augment_epochs(timeline),
    )
    lines = loader.pipeline.describe(config.epochs)
    logger.info("augmentation:\n%s", "\n".join(f"  {line}" for line in lines))
    return Subject(
        model=model,
        criterion=build_criterion(config.loss, matcher_change_epoch=timeline.matcher_change_epoch),
        optimizer=build_optimizer(model, config.recipe),
        loader=loader,
    )


def augment_epochs(timeline: Timeline) -> AugmentEpochs:
    """Return the epochs in which the augmentation of a run changes."""
    return AugmentEpochs(
        start=timeline.augment_start_epoch, mix_end=timeline.mix_end_epoch, stop=timeline.no_aug_epoch
    )
