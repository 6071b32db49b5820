"""The task `detection`: training the detector itself."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from deim.config.schema import Config
from deim.data.loader import BatchLoader, build_train_loader
from deim.engine.checkpoints import Checkpoint, find_checkpoint
from deim.engine.context import RunContext
from deim.engine.optimizer import build_optimizer
from deim.engine.step import BatchLoss
from deim.engine.task import TaskOptions, TaskProducts, TrainingTask
from deim.loss.criterion import Criterion
from deim.model.backbone.timm import PRETRAINED, RANDOM, TimmOptions, pretrained_normalization
from deim.model.detector import Detector
from deim.model.weights import AnyDetector, AnyModel, load_backbone_weights, load_initial_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionOptions:
    """Training of the detector from random or initial weights."""

    type: Literal["detection"] = "detection"


class DetectionTask(TrainingTask):
    """See `TrainingTask`."""

    options_class: type[TaskOptions] = DetectionOptions

    def start_files(self, config: Config) -> list[Path]:
        """Return the files of initial weights."""
        init_from, backbone = config.model.init_from, config.model.backbone
        paths = [] if init_from is None else [find_checkpoint(Path(init_from))]
        if isinstance(backbone, TimmOptions) and backbone.weights not in (RANDOM, PRETRAINED):
            paths.append(Path(backbone.weights))
        return paths

    def build(self, context: RunContext) -> TaskProducts:
        """Build the detector with random or initial weights, its loss, optimizer and batches.

        Raises:
            CheckpointError: If the initial weights cannot be read or do not fit.
            ConfigError: If the backbone or a change of images does not fit, or needs a package that is not
                installed.
        """
        config, train = context.config, context.splits.train
        model = self.build_model(config, len(train.class_names))
        if context.is_new:
            load_start(model, config, class_names=train.class_names)
        model.to(context.device)
        loader = build_detection_loader(context)
        return TaskProducts(
            model=model,
            criterion=self.build_loss(context),
            optimizer=build_optimizer(model, config.recipe),
            loader=loader,
        )

    def build_model(self, config: Config, num_classes: int) -> AnyDetector:
        """Build the detector with random weights."""
        return Detector(config.model, num_classes, channels=config.data.channels)

    def build_loss(self, context: RunContext) -> BatchLoss:
        """Build the loss of the detector."""
        return Criterion(context.config.loss, matcher_change_epoch=context.timeline.matcher_change_epoch)

    def build_stored_model(self, config: Config, checkpoint: Checkpoint, path: Path) -> nn.Module:  # noqa: ARG002
        """Build the detector of a checkpoint."""
        return self.build_model(config, len(checkpoint.class_names))


TASK = DetectionTask()


def load_start(model: AnyModel, config: Config, *, class_names: Sequence[str]) -> None:
    """Fill a new model with the weights that a config names, in place, and log which.

    Raises:
        CheckpointError: If they cannot be read or do not fit.
    """
    backbone = config.model.backbone
    if config.model.init_from is not None:
        path = find_checkpoint(Path(config.model.init_from))
        load_initial_weights(model, path, class_names=class_names)
    elif isinstance(backbone, TimmOptions) and backbone.weights != RANDOM:
        load_backbone_weights(model, backbone)
        mean, std = pretrained_normalization(backbone)
        if len(mean) == config.data.channels and (mean, std) != (config.data.mean, config.data.std):
            logger.warning(
                "data.mean, data.std: the weights of %s are made for --set data.mean=%s data.std=%s",
                backbone.name,
                json.dumps(mean),
                json.dumps(std),
            )
    else:
        logger.info("starting from random weights; set model.init_from to start from trained ones")


def build_detection_loader(context: RunContext) -> BatchLoader:
    """Build the training batches of a detector, and log how they are augmented.

    Raises:
        ConfigError: If a change of images needs a package that is not installed.
    """
    config = context.config
    loader = build_train_loader(
        context.sampler,
        context.splits.train,
        data=config.data,
        augment=config.augment,
        image_size_hw=config.image_size_hw,
        seed=config.seed,
        epochs=context.augment_epochs,
    )
    lines = [f"  {stage.describe()}" for stage in loader.pipeline.stages(config.epochs)]
    logger.info("augmentation:\n%s", "\n".join(lines))
    return loader
