"""One training step: micro-batches forward and backward, then one update, on all processes alike."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deim.engine.distributed import DistributedContext
from deim.engine.memory import STEP_ADVICE, explain_out_of_memory
from deim.engine.optimizer import drop_waiting_gradients
from deim.errors import NonFiniteError
from deim.files import count
from deim.loss.criterion import LossCounts
from deim.model.batch_norm import BATCH_NORMS, remember_batch_norm
from deim.structures import ModelOutput, Target


class StepBatch(Protocol):
    """Inputs of one step with their targets, such as `deim.data.batch.Batch`."""

    @property
    def images(self) -> Any:
        """The input of the model, B images."""

    @property
    def targets(self) -> list[Target]:
        """Ground truth of each image."""

    def to(self, device: torch.device) -> Self:
        """Copy the inputs, boxes and labels to a device."""

    def split(self, size: int) -> Sequence[Self]:
        """Micro-batches of at most `size` images."""


class BatchLoss(Protocol):
    """A loss in two steps, such as `Criterion`; the terms of micro-batches add up to those of the batch."""

    def match(self, outputs: Any, targets: Sequence[Target], *, epoch: int) -> Any:
        """Assign boxes to queries; the result has the `counts: LossCounts` of this batch alone."""

    def terms(self, outputs: Any, matched: Any, counts: LossCounts) -> dict[str, Tensor]:
        """Return the weighted loss terms of a matched batch, averaged over `counts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Mixed precision of a run."""

    device_type: str
    """`cuda` or `cpu`."""
    dtype: torch.dtype | None
    """Type of the matrix products; None for float32 everywhere."""
    scaler: torch.amp.GradScaler
    """Enabled for float16 only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Outcome of a step."""

    terms: dict[str, float]
    """Weighted loss terms of the whole batch; empty if there are none."""
    loss: float
    """Their sum; NaN if the step was skipped."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; NaN if there is none."""
    skip_reason: str | None
    """Why the weights were left as they were; None if they were updated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext:
    """What every step of a run needs."""

    model: nn.Module
    """Maps inputs and targets to a `ModelOutput`; in training mode."""
    criterion: BatchLoss
    optimizer: torch.optim.Optimizer
    """Its learning rates are set."""
    precision: Precision
    """Precision of the forward pass; the loss is always in float32."""
    clip_grad_norm: float
    """Largest global L2 norm of the gradient."""
    distributed: DistributedContext = DistributedContext()  # noqa: RUF009  immutable


def train_step(
    context: StepContext,
    batch: StepBatch,
    *,
    epoch: int,
    seed: int | None = None,
    micro_batch_size: int | None = None,
) -> StepResult:
    """Forward, loss, backward, clip, update. A non-finite loss or gradient leaves the weights unchanged.

    The gradient is that of the whole batch, however it is split into micro-batches and among processes,
    except for batch norm, which sees one micro-batch at a time.

    Args:
        context: Model, loss, optimizer and precision.
        batch: This process's images, on the model's device; as many as in every other process.
        epoch: 0-based.
        seed: Seed of torch's global generator, set before each forward pass; None does not set it.
        micro_batch_size: Images in memory at once; None for all.

    Raises:
        OutOfMemoryError: If memory runs out before the update; then nothing has changed.
        TrainingError: If memory runs out in the update, which cannot be repeated.
    """
    context.optimizer.zero_grad(set_to_none=True)
    restore_statistics = remember_batch_norm(context.model)
    micro_batches = batch.split(micro_batch_size or len(batch.targets))
    forward = _Forward(context, epoch, seed, _max_boxes(batch, context.distributed))
    names: list[str] = []
    totals: list[Tensor] = []
    try:
        counts = None
        if len(micro_batches) > 1:
            # The terms are averages over the whole batch, whose matched pairs must be counted beforehand.
            counts = forward.count(micro_batches)
            restore_statistics()
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            with _exchanging_gradients(context.model, is_last):
                outputs = forward(context.model, micro_batch)
                matched, batch_counts = forward.match(outputs, micro_batch.targets)
                terms = context.criterion.terms(outputs, matched, counts or batch_counts)
                names = list(terms)
                stacked = torch.stack(list(terms.values()))
                totals.append(context.distributed.sum(stacked.detach()))
                _raise_if_non_finite(names, totals[-1])
                # Processes average their gradients, but each loss is a share of one sum.
                context.precision.scaler.scale(stacked.sum() * context.distributed.size).backward()
    except torch.OutOfMemoryError:
        restore_statistics()
        raise
    except NonFiniteError as error:
        restore_statistics()
        return StepResult(terms={}, loss=math.nan, grad_norm=math.nan, skip_reason=str(error))
    values = dict(zip(names, torch.stack(totals).sum(dim=0).tolist(), strict=True))
    with explain_out_of_memory("in the update of the weights", STEP_ADVICE):
        grad_norm = _update(context)
    if not math.isfinite(grad_norm):
        restore_statistics()
        return StepResult(terms=values, loss=math.nan, grad_norm=grad_norm, skip_reason="non-finite gradient")
    return StepResult(terms=values, loss=sum(values.values()), grad_norm=grad_norm, skip_reason=None)


def forward_and_backward(context: StepContext, batch: StepBatch) -> None:
    """Do the work of a step in this process alone, without an update; gradients remain.

    Raises:
        NonFiniteError: If the scores or boxes are NaN or infinite.
    """
    model = unwrap_model(context.model)
    restore_statistics = remember_batch_norm(model)
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    local = replace(context, model=model, distributed=DistributedContext())
    forward = _Forward(local, 0, None, _max_boxes(batch, local.distributed))
    modes = [norm.training for norm in norms]
    try:
        for norm, was_training in zip(norms, modes, strict=True):
            # In training mode, synchronized statistics would wait for the other processes.
            norm.train(was_training and context.distributed.size == 1)
        with torch.random.fork_rng(devices=[batch.images.device] if batch.images.is_cuda else []):
            outputs = forward(model, batch)
        matched, counts = forward.match(outputs, batch.targets)
        torch.stack(list(context.criterion.terms(outputs, matched, counts).values())).sum().backward()
    finally:
        for norm, was_training in zip(norms, modes, strict=True):
            norm.train(was_training)
        restore_statistics()


@dataclass(frozen=True, slots=True)
class _Forward:
    """Forward passes and matchings of one step."""

    context: StepContext
    epoch: int
    seed: int | None
    max_boxes: int

    def __call__(self, model: nn.Module, batch: StepBatch) -> ModelOutput:
        if self.seed is not None:
            _set_seed(self.seed)
        with autocast(self.context.precision):
            return model(batch.images, batch.targets, max_boxes=self.max_boxes)

    def match(self, outputs: ModelOutput, targets: list[Target]) -> tuple[Any, LossCounts]:
        """Match in this process and add up the counts of all; every process fails if one does."""
        error = None
        numbers = [0, 0, 0, 0]
        try:
            matched = self.context.criterion.match(outputs, targets, epoch=self.epoch)
            counts = matched.counts
            numbers = [counts.images, counts.boxes, counts.pairs, 0]
        except NonFiniteError as caught:
            error = caught
            numbers[3] = 1
        images, boxes, pairs, failed = self.context.distributed.sum(torch.tensor(numbers)).tolist()
        if error is not None:
            raise error
        if failed:
            raise NonFiniteError(f"scores or boxes are NaN or infinite in {count('other process', failed)}.")
        return matched, LossCounts(images=images, boxes=boxes, pairs=pairs)

    @torch.no_grad()
    def count(self, micro_batches: Sequence[StepBatch]) -> LossCounts:
        """Return the counts of the whole batch; this changes the batch-norm statistics."""
        model = unwrap_model(self.context.model)
        every = [
            self.match(self(model, micro_batch), micro_batch.targets)[1] for micro_batch in micro_batches
        ]
        return LossCounts(
            images=sum(counts.images for counts in every),
            boxes=sum(counts.boxes for counts in every),
            pairs=sum(counts.pairs for counts in every),
        )


def autocast(precision: Precision) -> torch.autocast:
    """Return the context of a forward pass in mixed precision, or in float32."""
    return torch.autocast(precision.device_type, dtype=precision.dtype, enabled=precision.dtype is not None)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that exchanges gradients."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _set_seed(seed: int) -> None:
    """Seed like `torch.manual_seed`, which without a GPU queues every call and so leaks memory."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def _max_boxes(batch: StepBatch, distributed: DistributedContext) -> int:
    return distributed.max(max((len(target["labels"]) for target in batch.targets), default=0))


def _exchanging_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Exchange gradients once, in the last backward pass of a step."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def _raise_if_non_finite(names: list[str], values: Tensor) -> None:
    if not math.isfinite(values.sum().item()):
        bad = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
        raise NonFiniteError(f"non-finite loss in {', '.join(bad)}")


def _update(context: StepContext) -> float:
    """Clip and update; return the norm of the gradient, not finite if nothing was updated."""
    scaler = context.precision.scaler
    drop_waiting_gradients(context.optimizer)
    scaler.unscale_(context.optimizer)
    parameters = [parameter for group in context.optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, context.clip_grad_norm).item()
    if math.isfinite(grad_norm):
        scaler.step(context.optimizer)
    # The scaler lowers its scale after an overflow, so it is updated after skipped steps too.
    scaler.update()
    return grad_norm
