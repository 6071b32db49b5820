"""A task as another file would add it: the detector with a scaled learning rate."""

from dataclasses import dataclass
from typing import Literal

from deim.config.checks import check, not_positive
from deim.config.schema import Config
from deim.engine.context import RunContext
from deim.engine.detection_task import DetectionTask
from deim.engine.task import TaskProducts


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledOptions:
    """Trains the detector with a scaled learning rate."""

    type: Literal["scaled"] = "scaled"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        check(not_positive(lr_scale=self.lr_scale))


class ScaledTask(DetectionTask):
    options_class = ScaledOptions
    free_options = ("task.lr_scale",)

    def describe(self, config: Config) -> list[str]:
        assert isinstance(config.task, ScaledOptions)
        return [f"  learning rate times    {config.task.lr_scale:g}"]

    def build(self, context: RunContext) -> TaskProducts:
        products = super().build(context)
        assert isinstance(context.config.task, ScaledOptions)
        for group in products.optimizer.param_groups:
            group["flat_lr"] *= context.config.task.lr_scale
        return products


TASK = ScaledTask()
