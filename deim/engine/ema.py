"""Exponential moving average of the weights."""

import copy
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from deim.config.checks import STEPS, Auto, check, outside
from deim.model.batch_norm import BATCH_NORMS

M = TypeVar("M", bound=nn.Module)

DECAY = 0.9999
HORIZON_SHARE = 0.1
WARMUP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaOptions:
    """Exponential moving average of the weights, which is evaluated and saved as best."""

    decay: float | Auto = "auto"
    """Share kept at each step, in [0, 1); auto: 0.9999, or a horizon of a tenth of a shorter run."""
    warmup_steps: int | Auto = "auto"
    """Time constant of the ramp-up of the decay, in steps; auto: a tenth of the averaging horizon."""

    def __post_init__(self) -> None:
        is_wrong = self.decay != "auto" and not 0 <= self.decay < 1
        problem = (is_wrong, f"decay: got {self.decay}, needs [0, 1)")
        check([*outside(0, STEPS, warmup_steps=self.warmup_steps), problem])


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaSchedule:
    """How fast the averaged weights follow the raw ones."""

    decay: float
    """Share kept at each step."""
    warmup_steps: int
    """Time constant of the decay's ramp, in steps; 0 for none."""


def resolve_ema(options: EmaOptions, *, total_steps: int) -> EmaSchedule:
    """Turn the block `ema` into numbers; `auto` follows from the optimizer steps of the whole run.

    Returns:
        With `auto`, a horizon of 1 / (1 - decay) steps that is at most a tenth of the run, and 10,000 steps.
    """
    horizon = max(1.0, HORIZON_SHARE * total_steps)
    decay = min(DECAY, 1 - 1 / horizon) if options.decay == "auto" else options.decay
    warmup = round(WARMUP_SHARE / (1 - decay)) if options.warmup_steps == "auto" else options.warmup_steps
    return EmaSchedule(decay=decay, warmup_steps=warmup)


class ModelEma(Generic[M]):
    """A copy of a model with averaged weights and batch-norm statistics; everything else is copied.

    Args:
        source: The model in training, whose tensors change in place; the copy starts equal to it.
        schedule: Decay and its ramp; at update u the decay is decay · (1 - exp(-u / warmup_steps)).
    """

    def __init__(self, source: M, schedule: EmaSchedule) -> None:
        self.schedule = schedule
        self.updates = 0
        self.model: M = copy.deepcopy(source).eval().requires_grad_(False)
        # Walking through a model takes longer than averaging it, so its tensors are looked up once.
        averaged, current = self.model.state_dict(), source.state_dict()
        learned = _learned_names(source)
        self._averages = [averaged[name] for name in learned]
        self._current = [current[name] for name in learned]
        counters = [name for name, _ in source.named_buffers() if name.endswith("num_batches_tracked")]
        self._counters = [(averaged[name], current[name]) for name in counters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of the model in training after an optimizer step."""
        self.updates += 1
        ramp = self.schedule.warmup_steps
        decay = self.schedule.decay * (1 - math.exp(-self.updates / ramp) if ramp else 1.0)
        get_ema_multi_avg_fn(decay)(self._averages, self._current, self.updates)
        for average, current in self._counters:
            average.copy_(current)


def _learned_names(model: nn.Module) -> list[str]:
    """Names of trainable parameters and of batch-norm statistics that move with them."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for prefix, module in model.named_modules():
        if isinstance(module, BATCH_NORMS):
            names += [f"{prefix}.running_mean", f"{prefix}.running_var"]
    return names
