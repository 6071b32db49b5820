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


class HashedTextEncoder:
    """Bag of words through a random projection, with the same numbers on every machine.

    Each word has a vector of ±1 that follows from its letters by SHAKE-256; a text is the sum of its words,
    scaled to norm 1. Texts are as similar as the share of words that they have in common.
    """

    identity = "hashed bag of words, seed 0 (without meaning)"
    weights_hash: str | None = None

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; see `TextEncoder.encode`."""
        vectors = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, text in enumerate(texts):
            tokens = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
            # Integers up to the last division, so that no rounding differs between machines.
            total = sum(map(_signs, tokens), start=np.zeros(DIM, dtype=np.int64))
            vectors[row] = total / math.sqrt(int((total * total).sum()))
        return torch.from_numpy(vectors)


def _signs(word: str) -> NDArray[np.int64]:
    digest = hashlib.shake_256(f"0:{word}".encode()).digest(DIM // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
    return 2 * bits.astype(np.int64) - 1
