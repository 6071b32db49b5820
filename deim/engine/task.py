"""What a run trains: the model, its loss, its optimizer and its batches.

The trainer is the same whatever is trained. This file builds the subject of phase 1, the detector itself;
`multimodal/task.py` builds that of phase 2.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deim.config.schema import Config
from deim.data.augment.pipeline import Augmentation, BatchChanges, find_stages
from deim.data.dataset import EpochBatches
from deim.data.loader import build_augmentation, build_batch_changes, build_train_loader
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
    batches: EpochBatches
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
    loader: Iterable[StepBatch]
    """Batches of the epoch that the setting's `batches` stand at."""
    stored: dict[str, Any] = field(default_factory=dict)
    """Entries that each checkpoint holds beside its own: what is needed to build the model again."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of what the run began with beside its data; see `run_state.FINGERPRINTS`."""
    must_beat_start: bool = False
    """Validate before the first step too, and write best.pth only on a higher score than that."""


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
    augmentation, changes = build_training_changes(config, timeline)
    stages = find_stages(augmentation, changes, epochs=config.epochs)
    logger.info("augmentation:\n%s", "\n".join(f"  {stage.describe()}" for stage in stages))
    return Subject(
        model=model,
        criterion=build_criterion(config.loss, matcher_change_epoch=timeline.matcher_change_epoch),
        optimizer=build_optimizer(model, config.recipe),
        loader=build_train_loader(
            config, train, augmentation=augmentation, batches=setting.batches, changes=changes
        ),
    )


def build_training_changes(config: Config, timeline: Timeline) -> tuple[Augmentation, BatchChanges | None]:
    """Build the random changes of images and of batches for the stages of a run.

    Args:
        config: The experiment.
        timeline: Of the run.

    Raises:
        ConfigError: If a change needs a package that is not installed.
    """
    stages = {
        "start_epoch": timeline.augment_start_epoch,
        "mix_end_epoch": timeline.mix_end_epoch,
        "stop_epoch": timeline.no_aug_epoch,
    }
    return build_augmentation(config.augment, **stages), build_batch_changes(config, **stages)
