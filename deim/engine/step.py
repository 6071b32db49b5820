"""One training step: micro-batches forward and backward, then one update, on all processes alike."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from deim.engine.distributed import DistributedContext
from deim.engine.memory import STEP_ADVICE, ends_without_memory
from deim.engine.optimizer import drop_waiting_gradients
from deim.errors import NonFiniteError
from deim.loss.criterion import LossCounts
from deim.model.batch_norm import remember_batch_norm
from deim.structures import ModelOutput, Target


class StepBatch(Protocol):
    """Inputs of one step with their targets, such as `deim.data.batch.Batch`."""

    @property
    def images(self) -> Any:
        """What the model takes, B images."""

    @property
    def targets(self) -> list[Target]:
        """Ground truth, an image each."""

    def to(self, device: torch.device) -> Self:
        """Copy the inputs, boxes and labels to a device."""

    def split(self, size: int) -> Sequence[Self]:
        """Micro-batches of at most `size` images."""


class MatchedBatch(Protocol):
    """What a loss found out about a batch before its terms."""

    @property
    def counts(self) -> LossCounts:
        """Of this batch alone."""


class BatchLoss(Protocol):
    """A loss in two steps, such as `Criterion`: the terms of a batch's parts add up to its own."""

    def match(self, outputs: Any, targets: Sequence[Target], *, epoch: int) -> Any:
        """Assign boxes to queries; gives a `MatchedBatch`."""

    def terms(self, outputs: Any, matched: Any, counts: LossCounts) -> dict[str, Tensor]:
        """Weighted terms of what `match` gave, averaged over `counts`."""


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
    """Weighted loss terms of the whole batch; empty if there are none."""
    loss: float
    """Their sum; NaN if the step was refused."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; NaN if there is none."""
    skip_reason: str | None
    """Why the weights were left as they were; None if they were updated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """What every step of a run works with."""

    model: nn.Module
    """Takes inputs and targets and gives a `ModelOutput`; in training mode."""
    criterion: BatchLoss
    optimizer: torch.optim.Optimizer
    """Its learning rates are set."""
    precision: Precision
    """Of the forward pass; the loss is always in float32."""
    clip_grad_norm: float
    """Largest global L2 norm of the gradient."""
    distributed: DistributedContext = DistributedContext()  # noqa: RUF009  immutable


def train_step(
    parts: StepParts,
    batch: StepBatch,
    *,
    epoch: int,
    seed: int | None = None,
    micro_batch_size: int | None = None,
) -> StepResult:
    """Forward, loss, backward, clip, update. A non-finite loss or gradient leaves the weights unchanged.

    However the batch is cut into micro-batches and shared out among processes, the gradient is that of the
    whole, but for batch norm, which sees one micro-batch at a time.

    Args:
        parts: What the step works with.
        batch: This process's images, on the model's device; as many as in every other process.
        epoch: 0-based.
        seed: Of torch's global generator, set before each forward pass; None leaves it as it is.
        micro_batch_size: Images at once in memory; None for all.

    Raises:
        OutOfMemoryError: If memory runs out before the update; nothing has changed then.
        TrainingError: If it runs out within the update, which cannot be repeated.
    """
    parts.optimizer.zero_grad(set_to_none=True)
    restore_statistics = remember_batch_norm(parts.model)
    micro_batches = batch.split(micro_batch_size or len(batch.targets))
    forward = _Forward(parts, epoch=epoch, seed=seed, max_boxes=_max_boxes(batch, parts.distributed))
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
            with _exchanging_gradients(parts.model, is_last):
                outputs = forward(parts.model, micro_batch)
                matched, own_counts = forward.match(outputs, micro_batch.targets)
                terms = parts.criterion.terms(outputs, matched, counts or own_counts)
                names = list(terms)
                stacked = torch.stack(list(terms.values()))
                totals.append(parts.distributed.sum(stacked.detach()))
                _raise_if_non_finite(names, totals[-1])
                # Processes average their gradients, but each loss is a share of one sum.
                parts.precision.scaler.scale(stacked.sum() * parts.distributed.size).backward()
    except torch.OutOfMemoryError:
        restore_statistics()
        raise
    except NonFiniteError as error:
        restore_statistics()
        return StepResult(terms={}, loss=math.nan, grad_norm=math.nan, skip_reason=str(error))
    values = dict(zip(names, torch.stack(totals).sum(dim=0).tolist(), strict=True))
    with ends_without_memory("in the update of the weights", STEP_ADVICE):
        grad_norm = _update(parts)
    if not math.isfinite(grad_norm):
        restore_statistics()
        return StepResult(terms=values, loss=math.nan, grad_norm=grad_norm, skip_reason="non-finite gradient")
    return StepResult(terms=values, loss=sum(values.values()), grad_norm=grad_norm, skip_reason=None)


def forward_and_backward(parts: StepParts, batch: StepBatch) -> None:
    """Do the work of a step in this process alone, without an update; it leaves gradients behind.

    Raises:
        NonFiniteError: If the scores or boxes are NaN or infinite.
    """
    model = unwrap_model(parts.model)
    restore_statistics = remember_batch_norm(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    alone = replace(parts, model=model, distributed=DistributedContext())
    forward = _Forward(alone, epoch=0, seed=None, max_boxes=_max_boxes(batch, alone.distributed))
    try:
        for norm in norms:
            norm.train(
                parts.distributed.size == 1
            )  # in training, common statistics wait for the other processes
        with torch.random.fork_rng(devices=[batch.images.device] if batch.images.is_cuda else []):
            outputs = forward(model, batch)
        matched, counts = forward.match(outputs, batch.targets)
        torch.stack(list(parts.criterion.terms(outputs, matched, counts).values())).sum().backward()
    finally:
        for norm in norms:
            norm.train()
        restore_statistics()


class _Forward:
    """Forward passes and matchings of one step."""

    def __init__(self, parts: StepParts, *, epoch: int, seed: int | None, max_boxes: int) -> None:
        self.parts = parts
        self.epoch = epoch
        self.seed = seed
        self.max_boxes = max_boxes

    def __call__(self, model: nn.Module, batch: StepBatch) -> ModelOutput:
        if self.seed is not None:
            _set_seed(self.seed)
        with autocast(self.parts.precision):
            return model(batch.images, batch.targets, max_boxes=self.max_boxes)

    def match(self, outputs: ModelOutput, targets: list[Target]) -> tuple[MatchedBatch, LossCounts]:
        """The matching here, and the counts of all processes; all of them fail if one does."""
        error = None
        numbers = [0, 0, 0, 0]
        try:
            matched = self.parts.criterion.match(outputs, targets, epoch=self.epoch)
            counts = matched.counts
            numbers = [counts.images, counts.boxes, counts.pairs, 0]
        except NonFiniteError as caught:
            error = caught
            numbers[3] = 1
        images, boxes, pairs, failed = self.parts.distributed.sum(torch.tensor(numbers)).tolist()
        if error is not None:
            raise error
        if failed:
            raise NonFiniteError(f"scores or boxes are NaN or infinite in {failed} other processes.")
        return matched, LossCounts(images=images, boxes=boxes, pairs=pairs)

    @torch.no_grad()
    def count(self, micro_batches: Sequence[StepBatch]) -> LossCounts:
        """Counts of the whole batch; moves the batch-norm statistics."""
        model = unwrap_model(self.parts.model)
        found = [
            self.match(self(model, micro_batch), micro_batch.targets)[1] for micro_batch in micro_batches
        ]
        return LossCounts(
            images=sum(counts.images for counts in found),
            boxes=sum(counts.boxes for counts in found),
            pairs=sum(counts.pairs for counts in found),
        )


def autocast(precision: Precision) -> torch.autocast:
    """The context of a forward pass in mixed precision, or in float32."""
    return torch.autocast(precision.device_type, dtype=precision.dtype, enabled=precision.dtype is not None)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside the wrapper that exchanges gradients."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _set_seed(seed: int) -> None:
    """As `torch.manual_seed`, which on a machine without a GPU keeps a note of each call for ever."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def _max_boxes(batch: StepBatch, distributed: DistributedContext) -> int:
    return distributed.max(max((len(target["labels"]) for target in batch.targets), default=0))


def _exchanging_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Gradients are exchanged once, in the last backward pass of a step."""
    if is_last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def _raise_if_non_finite(names: list[str], values: Tensor) -> None:
    if not math.isfinite(values.sum().item()):
        bad = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
        raise NonFiniteError(f"non-finite loss in {', '.join(bad)}")


def _update(parts: StepParts) -> float:
    """Clip and update; return the norm of the gradient, not finite if nothing was updated."""
    scaler = parts.precision.scaler
    drop_waiting_gradients(parts.optimizer)
    scaler.unscale_(parts.optimizer)
    parameters = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, parts.clip_grad_norm).item()
    if math.isfinite(grad_norm):
        scaler.step(parts.optimizer)
    # The scaler lowers its scale after an overflow, so it hears of skipped steps too.
    scaler.update()
    return grad_norm
