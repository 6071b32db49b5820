"""One training step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deim.data.collate import Batch
from deim.errors import NonFiniteError
from deim.loss.criterion import Criterion
from deim.model.detector import Detector


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Mixed precision of a run."""

    device_type: str
    """`cuda` or `cpu`."""
    dtype: torch.dtype | None
    """Type of the matrix products; None for float32 throughout."""
    scaler: torch.amp.GradScaler
    """Enabled for float16 only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What a step did."""

    terms: dict[str, float]
    """Weighted loss terms; empty if there are none."""
    loss: float
    """Their sum; NaN if the step was refused."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; NaN if there is none."""
    refused: str | None
    """Why the weights were left as they were; None if they were updated."""


def train_step(
    model: Detector,
    criterion: Criterion,
    *,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    clip_grad_norm: float,
    epoch: int,
) -> StepResult:
    """Forward, loss, backward, clip, update. A non-finite loss or gradient leaves the weights unchanged.

    Args:
        model: In training mode.
        criterion: The loss.
        batch: On the model's device.
        optimizer: Its learning rates are set.
        precision: Of the forward pass; the loss is always in float32.
        clip_grad_norm: Largest global L2 norm of the gradient.
        epoch: 0-based.
    """
    optimizer.zero_grad(set_to_none=True)
    restore_statistics = _remember_batch_norm(model)
    with torch.autocast(precision.device_type, dtype=precision.dtype, enabled=precision.dtype is not None):
        outputs = model(batch.images, batch.targets)
    try:
        terms = criterion(outputs, batch.targets, epoch=epoch)
    except NonFiniteError as error:
        return _refused({}, str(error), restore_statistics)
    stacked = torch.stack(list(terms.values()))
    loss = stacked.sum()
    # One copy to the host for all terms.
    values = dict(zip(terms, stacked.tolist(), strict=True))
    if not math.isfinite(sum(values.values())):
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        return _refused(values, f"non-finite loss in {', '.join(bad)}", restore_statistics)
    precision.scaler.scale(loss).backward()
    precision.scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
    finite = bool(torch.isfinite(grad_norm))
    if finite:
        precision.scaler.step(optimizer)
    # The scaler lowers its scale after an overflow, so it hears of refused steps too.
    precision.scaler.update()
    if not finite:
        return _refused(values, "non-finite gradient", restore_statistics)
    return StepResult(terms=values, loss=loss.item(), grad_norm=grad_norm.item(), refused=None)


def _remember_batch_norm(model: nn.Module) -> Callable[[], None]:
    """Keep the batch-norm statistics, which a forward pass moves, perhaps to NaN; call to restore."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in statistics]

    def restore() -> None:
        for buffer, saved in zip(statistics, before, strict=True):
            buffer.copy_(saved)

    return restore


def _refused(terms: dict[str, float], reason: str, restore_statistics: Callable[[], None]) -> StepResult:
    restore_statistics()
    return StepResult(terms=terms, loss=float("nan"), grad_norm=float("nan"), refused=reason)
