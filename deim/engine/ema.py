"""Exponential moving average of the weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from deim.engine.schedule import EmaSchedule
from deim.model.batch_norm import BATCH_NORMS

M = TypeVar("M", bound=nn.Module)


class ModelEma(Generic[M]):
    """A copy of a model with averaged weights and batch-norm statistics; everything else is copied.

    Args:
        model: The model in training; the copy starts equal to it.
        schedule: Decay and its ramp; at update u the decay is decay · (1 - exp(-u / warmup_steps)).
    """

    def __init__(self, model: M, schedule: EmaSchedule) -> None:
        self.schedule = schedule
        self.updates = 0
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged = _learned_names(model)
        self._counted = [name for name, _ in model.named_buffers() if name.endswith("num_batches_tracked")]
        self._source: nn.Module | None = None
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._counters: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights after an optimizer step."""
        self.updates += 1
        ramp = self.schedule.warmup_steps
        decay = self.schedule.decay * (1 - math.exp(-self.updates / ramp) if ramp else 1.0)
        self._look_up(model)
        averages, current = self._pairs
        get_ema_multi_avg_fn(decay)(averages, current, self.updates)
        for counter, counted in self._counters:
            counter.copy_(counted)

    def _look_up(self, model: nn.Module) -> None:
        """Find the tensors once: walking through a model takes longer than averaging it."""
        if model is self._source:
            return
        averaged, current = self.model.state_dict(), model.state_dict()
        self._pairs = (
            [averaged[name] for name in self._averaged],
            [current[name] for name in self._averaged],
        )
        self._counters = [(averaged[name], current[name]) for name in self._counted]
        self._source = model


def _learned_names(model: nn.Module) -> list[str]:
    """Names of trainable parameters and of batch-norm statistics that move with them."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for prefix, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            names += [f"{prefix}.running_mean", f"{prefix}.running_var"]
    return names
