"""Exponential moving average of the weights."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deim.engine.schedule import EmaSchedule

M = TypeVar("M", bound=nn.Module)


class ModelEma(Generic[M]):
    """An averaged copy of a model: learned weights and batch-norm statistics are averaged, nothing else is.

    Args:
        model: The model in training; the copy starts equal to it.
        schedule: Decay and its ramp; at update u the decay is decay · (1 - exp(-u / warmup_steps)).
    """

    def __init__(self, model: M, schedule: EmaSchedule) -> None:
        self.schedule = schedule
        self.updates = 0
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged = _learned_tensors(self.model, model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights after an optimiser step."""
        self.updates += 1
        ramp = self.schedule.warmup_steps
        decay = self.schedule.decay * (1 - math.exp(-self.updates / ramp) if ramp else 1.0)
        current = model.state_dict()
        averages = [tensor for _, tensor in self._averaged]
        torch._foreach_lerp_(averages, [current[name] for name, _ in self._averaged], 1 - decay)
        for name, buffer in self.model.named_buffers():
            if name.endswith("num_batches_tracked"):
                buffer.copy_(current[name])


def _learned_tensors(average: nn.Module, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and averaged tensors of trainable parameters and batch-norm statistics."""
    state = average.state_dict()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            names += [f"{prefix}.running_mean", f"{prefix}.running_var"]
    return [(name, state[name]) for name in names]
