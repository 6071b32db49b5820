"""What a run trains: the model, its loss, its optimiser and its batches.

The trainer is the same whatever is trained. This file builds the subject of phase 1, the detector itself;
`multimodal/build.py` builds that of phase 2.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deim.config import Config
from deim.data.build import Splits, build_augmentation, build_train_loader
from deim.data.dataset import EpochBatches
from deim.engine.distributed import World
from deim.engine.optimizer import build_optimizer
from deim.engine.schedule import Timeline
from deim.engine.step import BatchLoss, Precision, StepBatch
from deim.loss.build import build_criterion
from deim.model.build import build_model
from deim.model.weights import load_initial_weights


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
    world: World
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
    model = build_model(config.model, len(train.class_names))
    if config.model.init_from is not None and setting.is_new:
        load_initial_weights(model, Path(config.model.init_from), class_names=train.class_names)
    model.to(setting.device)
    augmentation = build_augmentation(
        config.augment, start_epoch=timeline.augment_start_epoch, stop_epoch=timeline.no_aug_epoch
    )
    return Subject(
        model=model,
        criterion=build_criterion(config.loss, matcher_change_epoch=timeline.matcher_change_epoch),
        optimizer=build_optimizer(model, config.recipe),
        loader=build_train_loader(config, train, augmentation=augmentation, batches=setting.batches),
    )
