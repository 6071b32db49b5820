"""Sealed files of tensors, in the format of safetensors: the one form of all caches and banks."""

import json
from collections.abc import Mapping
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deim.files import SEAL_KEY, UNSEALED, is_unchanged, seal

LENGTH_BYTES: Final = 8
"""Size of the number at the start of a file, which is the length of the header."""


def pack_tensors(tensors: Mapping[str, Tensor], *, name: str = "deim", **described: Any) -> bytes:
    """Return the content of a sealed `.safetensors` file; equal values give equal bytes.

    Args:
        tensors: Of any shape and type, on the CPU.
        name: Name of the entry of the metadata that holds the seal and what is described.
        **described: Values of JSON types.
    """
    text = json.dumps({SEAL_KEY: UNSEALED, **described}, ensure_ascii=False)
    return seal(save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata={name: text}))


def unpack_tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a sealed `.safetensors` file.

    Raises:
        SafetensorError: If it is damaged, was changed after it was sealed, or has no seal.
    """
    if not is_unchanged(content, needs_seal=True):
        raise SafetensorError("its checksum does not fit its content")
    return load(content)


def read_metadata(content: bytes) -> Mapping[str, str]:
    """Return the metadata of a `.safetensors` file that safetensors can read."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    metadata: Mapping[str, str] = header.get("__metadata__") or {}
    return metadata
