"""Keeping batch-norm statistics where a forward pass must not move them."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def remember_batch_norm(module: nn.Module) -> Callable[[], None]:
    """Keep the batch-norm statistics, which a forward pass moves, perhaps to NaN; call to restore.

    Those in evaluation mode, such as a frozen detector's, do not move.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    statistics = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in statistics]

    def restore() -> None:
        for buffer, saved in zip(statistics, before, strict=True):
            buffer.data.copy_(saved)  # not through autograd: a graph may hold these buffers

    return restore
