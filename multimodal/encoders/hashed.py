"""A text encoder without weights, for tests and the quickstart: its vectors have no meaning."""

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIM: Final = 512
"""Length of a vector, the same as of the usual CLIP models."""
WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedEncoderOptions:
    """Texts become bags of words without meaning: needs no weights; for tests and the quickstart."""

    type: Literal["hashed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedTextEncoder:
    """Bag of words through a random projection, with the same numbers on every machine.

    Each word has a vector of ±1 that follows from its letters and the seed by SHAKE-256; a text is the sum of
    its words, scaled to norm 1. Texts are as similar as the share of words that they have in common.
    """

    seed: int = 0
    """Another seed gives other vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector, D."""
        return DIM

    @property
    def identity(self) -> str:
        """Name of the encoder."""
        return f"hashed bag of words, seed {self.seed} (without meaning)"

    @property
    def weights_hash(self) -> str | None:
        """None: there are no weights."""
        return None

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; see `TextEncoder.encode`."""
        vectors = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, text in enumerate(texts):
            tokens = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
            if not tokens:
                raise ValueError(f"encode: text {row} holds no word, got {text!r}.")
            # Integers up to the last division, so that no rounding differs between machines.
            total = sum((self._signs(word) for word in tokens), start=np.zeros(DIM, dtype=np.int64))
            vectors[row] = total / math.sqrt(int((total * total).sum()))
        return torch.from_numpy(vectors)

    def _signs(self, word: str) -> NDArray[np.int64]:
        digest = hashlib.shake_256(f"{self.seed}:{word}".encode()).digest(DIM // 8)
        bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
        return 2 * bits.astype(np.int64) - 1
