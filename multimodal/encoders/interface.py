"""What a text encoder offers. Only building a text bank needs one."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TextEncoder(Protocol):
    """Turns texts into vectors whose cosines can be compared."""

    @property
    def dim(self) -> int:
        """Length of a vector, D."""

    @property
    def identity(self) -> str:
        """Name of the encoder and its weights, as reports and checkpoints show it."""

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of the weights; None if there are none."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: N texts.

        Returns:
            (N, D) float32 on the CPU, of norm 1. N may be 0.

        Raises:
            ValueError: If a text holds no word.
        """
