"""Random states of a run."""

import logging
import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; datasets and samplers do not use them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def use_deterministic_operations() -> None:
    """Use deterministic operations for the rest of the process.

    On a CPU all operations of the detector are deterministic. On a GPU torch warns of each that is not when
    it is first used, such as the gradient of bilinear sampling.
    """
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    logging.captureWarnings(True)


def random_states() -> dict[str, Any]:
    """Return the states of all global generators in plain values and tensors, for a checkpoint."""
    state: Any = np.random.get_state()
    name, keys, *rest = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Restore all global generators; CUDA states are skipped on a machine with another number of GPUs."""
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(states["numpy"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
