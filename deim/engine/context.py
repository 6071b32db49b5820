"""Everything decided before the model is built, and what training works with afterwards."""

from dataclasses import dataclass

import torch
from torch import nn

from deim.config.schema import Config
from deim.data.augment.pipeline import AugmentEpochs
from deim.data.sampling import EpochSampler
from deim.data.splits import Splits
from deim.engine.distributed import DistributedContext
from deim.engine.ema import ModelEma
from deim.engine.schedule import Timeline
from deim.engine.step import Precision, StepContext
from deim.engine.task import TaskProducts, TrainingTask


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How many images are processed together."""

    effective: int
    """Images of an optimizer step, over all processes."""
    share: int
    """Images of a step in each process."""
    micro: int | None
    """Images that a process holds in memory at once; None if that is to be measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """Everything decided before the model is built."""

    config: Config
    splits: Splits
    plan: BatchPlan
    sampler: EpochSampler
    """Order of the training images."""
    timeline: Timeline
    device: torch.device
    precision: Precision
    distributed: DistributedContext
    is_new: bool
    """Whether the run starts; a resumed one takes its weights from a checkpoint later."""

    @property
    def augment_epochs(self) -> AugmentEpochs:
        """First epochs of the stages of augmentation."""
        return AugmentEpochs(
            start=self.timeline.augment_start_epoch,
            mix_end=self.timeline.mix_end_epoch,
            stop=self.timeline.no_aug_epoch,
            low_resolution=self.timeline.low_resolution,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """Everything that training works with."""

    task: TrainingTask
    context: RunContext
    products: TaskProducts
    step: StepContext
    """Model, loss and optimizer; the model is wrapped where several processes train it."""
    ema: ModelEma[nn.Module]
    fingerprints: dict[str, str]
    """Hashes of the data and of the task's inputs; a resumed run must have the same."""
