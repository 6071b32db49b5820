"""Several processes that train one model; with one process every function here does nothing.

Start them with `torchrun --nproc_per_node=N tools/train.py …`, on one machine or several.
"""

import datetime
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deim.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a process waits for the others; validation and the making of a set may keep them that long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """Processes of the run."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009  immutable
    """Where tensors must be to be exchanged; on a GPU the one of this process."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a tensor over all processes, the same on each."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def max(self, value: int) -> int:
        """Largest value of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, on each."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def copy_buffers(self, model: nn.Module) -> None:
        """Give every process the main process's buffers, such as batch-norm statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.gather(None)


def exchange_gradients(model: nn.Module, distributed: DistributedContext) -> nn.Module:
    """Make all processes use the mean of their gradients; on GPUs, common batch-norm statistics too.

    Args:
        model: On this process's device; the same in each.
        distributed: The processes; a single one needs no wrapper.
    """
    if distributed.size == 1:
        return model
    if distributed.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        logger.warning("on CPUs each process keeps batch-norm statistics of its own images")
    return DistributedDataParallel(model)


@contextmanager
def join_distributed(device: str) -> Iterator[DistributedContext]:
    """Join the processes that `torchrun` has started, and leave them at the end.

    Args:
        device: `runtime.device`; decides how tensors are exchanged: NCCL between GPUs, Gloo between CPUs.

    Raises:
        ConfigError: If the environment names several processes but not how to find them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistributedContext()
        return
    absent = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if absent:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(absent)} not set. Start several processes with torchrun."
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun: process {local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}. Use --nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=TIMEOUT)
    yield DistributedContext(
        rank=dist.get_rank(),
        size=size,
        device=torch.device("cuda", local_rank) if on_cuda else torch.device("cpu"),
    )
    # Not after an error: the others would be waited for, which wait for this process. Torchrun ends them.
    dist.destroy_process_group()
