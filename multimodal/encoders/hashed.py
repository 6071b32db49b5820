"""Texts → unit vectors: what every encoder offers, and one that needs no weights.

The encoder with meaning is `open_clip_encoder.py`. Only building a text bank needs either.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

HASHED_DIM: Final = 512
"""Numbers in a vector of `HashedTextEncoder`, as many as the usual CLIP models have."""

WORD: Final = re.compile(r"[^\W_]+")


class TextEncoder(Protocol):
    """Turns texts into vectors whose cosines can be compared."""

    @property
    def dim(self) -> int:
        """Numbers in a vector, D."""

    @property
    def identity(self) -> str:
        """The encoder in words, as reports and checkpoints show it."""

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of its weights; None if it has none."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: N texts.

        Returns:
            (N, D) float32 on the CPU, of length 1. N may be 0.

        Raises:
            ValueError: If a text holds no word.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedTextEncoder:
    """Bag of words through a random projection: the same numbers everywhere, but without meaning.

    Each word has a vector of ±1 that follows from its letters and the seed by SHAKE-256; a text is the sum of
    its words, scaled to length 1. Texts are alike as far as they share words. For tests and the quickstart.
    """

    seed: int = 0
    """Another seed gives other vectors."""

    @property
    def dim(self) -> int:
        """Numbers in a vector, D."""
        return HASHED_DIM

    @property
    def identity(self) -> str:
        """The encoder in words."""
        return f"hashed bag of words, seed {self.seed} (without meaning)"

    @property
    def weights_hash(self) -> str | None:
        """None: there are no weights."""
        return None

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; see `TextEncoder.encode`."""
        vectors = np.zeros((len(texts), HASHED_DIM), dtype=np.float32)
        for row, text in enumerate(texts):
            words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
            if not words:
                raise ValueError(f"encode: text {row} holds no word, got {text!r}.")
            # Whole numbers up to the last division: no rounding that differs between machines.
            total = sum((self._signs(word) for word in words), start=np.zeros(HASHED_DIM, dtype=np.int64))
            vectors[row] = total / math.sqrt(int((total * total).sum()))
        return torch.from_numpy(vectors)

    def _signs(self, word: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        digest = hashlib.shake_256(f"{self.seed}:{word}".encode()).digest(HASHED_DIM // 8)
        bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
        return 2 * bits.astype(np.int64) - 1


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, kinds and values of tensors; their order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
