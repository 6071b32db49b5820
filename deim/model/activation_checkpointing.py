"""Activations that are computed again in the backward pass instead of being kept: less memory, more work."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deim.model.batch_norm import remember_batch_norm
from deim.model.detector import Detector


def checkpoint_activations(model: Detector) -> None:
    """Recompute every transformer block of the backbone, and every block of the encoder, in training.

    Args:
        model: Changed in place; names and values of its weights stay.
    """
    encoder = model.encoder
    blocks = [*model.backbone.vit.blocks, *encoder.fpn_blocks, *encoder.pan_blocks]
    for block in blocks:
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def checkpointed(*args: Any) -> Any:
        if not block.training or not torch.is_grad_enabled():
            return forward(*args)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _statistics_kept(block)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)

    block.forward = checkpointed


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second pass must not move the batch-norm statistics once more."""
    restore = remember_batch_norm(block)
    try:
        yield  # left by an exception when the last activation that is needed has been computed
    finally:
        restore()
