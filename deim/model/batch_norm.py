"""Batch-norm layers, and keeping their statistics where a forward pass must not update them."""

from collections.abc import Callable
from typing import Final

from torch import nn

BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def remember_batch_norm(module: nn.Module) -> Callable[[], None]:
    """Remember the batch-norm statistics, which a forward pass may turn into NaN; call the result to restore.

    Layers in evaluation mode, such as those of a frozen detector, do not update theirs and are skipped.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, BATCH_NORMS) and layer.training]
    statistics = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in statistics]

    def restore() -> None:
        for buffer, saved in zip(statistics, before, strict=True):
            buffer.data.copy_(saved)  # not through autograd: a graph may hold these buffers

    return restore
