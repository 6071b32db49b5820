"""Activation checkpointing: recompute activations in the backward pass, for less memory and more work."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deim.model.batch_norm import remember_batch_norm
from deim.model.weights import AnyModel


def checkpoint_activations(model: AnyModel) -> None:
    """Change a model to recompute the activations of the blocks of its large parts in training."""
    for part in model.large_parts:
        for block in part.checkpointable_blocks():
            _checkpoint_block(block)


def _checkpoint_block(block: nn.Module) -> None:
    forward = block.forward

    def checkpointed(*args: Any) -> Any:
        if not block.training or not torch.is_grad_enabled():
            return forward(*args)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _batch_norm_kept(block)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)

    block.forward = checkpointed


@contextmanager
def _batch_norm_kept(block: nn.Module) -> Iterator[None]:
    """Keep the batch-norm statistics: the second pass must not update them again."""
    restore = remember_batch_norm(block)
    try:
        yield  # an exception ends the block once the last activation that is needed has been computed
    finally:
        restore()
