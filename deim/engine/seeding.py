"""The global random generators of a run."""

import logging
import os
import random
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomStates:
    """States of the global generators, each as its library gives it."""

    torch: Tensor
    cuda: list[Tensor]
    python: Any
    numpy: Any

    @classmethod
    def capture(cls) -> Self:
        """Return the present states."""
        state: Any = np.random.get_state()
        name, keys, *rest = state
        return cls(
            torch=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            python=random.getstate(),
            numpy=(name, keys.tolist(), *rest),
        )

    def restore(self) -> None:
        """Restore the generators; those of GPUs only on a machine with the same number of them."""
        torch.set_rng_state(self.torch)
        version, numbers, gauss = self.python
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(self.numpy)
        if torch.cuda.is_available() and len(self.cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self.cuda)
