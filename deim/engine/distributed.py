"""Several processes that train one model; with a single process nothing is exchanged.

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
"""How long a process waits for the others, which may validate or make a dataset meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """The processes of a run, as one of them sees them."""

    rank: int = 0
    """Index of this process, from 0."""
    size: int = 1
    """Number of processes of the run."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009  immutable
    """Device of exchanged tensors: this process's GPU, or the CPU."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and log lines."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def max(self, value: int) -> int:
        """Return the largest value of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def copy_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of the main process, such as batch-norm statistics, to every process."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Wait until all processes arrive here."""
        self.gather(None)


def exchange_gradients(model: nn.Module, distributed: DistributedContext) -> nn.Module:
    """Wrap a model so that processes average their gradients and, on GPUs, share batch-norm statistics."""
    if distributed.size == 1:
        return model
    if distributed.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        logger.warning("on CPUs each process keeps batch-norm statistics of its own images")
    return DistributedDataParallel(model)


@contextmanager
def join_distributed(device: str) -> Iterator[DistributedContext]:
    """Join the processes that `torchrun` started, and leave them at the end.

    GPUs exchange tensors by NCCL; CPUs, which `runtime.device` cpu asks for, by Gloo.

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
                f"torchrun: process {local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}. Use --nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=TIMEOUT)
    yield DistributedContext(
        rank=dist.get_rank(),
        size=size,
        device=torch.device("cuda", local_rank) if on_cuda else torch.device("cpu"),
    )
    # Not after an error: this would wait for the others, which wait for this process. Torchrun ends them.
    dist.destroy_process_group()
