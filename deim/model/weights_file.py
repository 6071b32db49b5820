"""Files of tensors: read without running code in them, and refused before a false claim takes memory.

A file of torch is a pickle beside the bytes of its tensors. The pickle may say anything about them: more
bytes than there are, a small tensor repeated to a giant one, tensors without values. So its outline is read
first, and only what is plain and no larger than the file is given to torch.
"""

import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickletools import genops
from typing import IO, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from deim.errors import CheckpointError
from deim.files import CHANGED, is_unchanged, not_a_file

UNREADABLE: Final = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, OverflowError),
    *(MemoryError, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError),
)
"""Errors that the readers raise for files that are damaged or of another kind."""
ZIP_MARK: Final = b"PK\x03\x04"
PICKLES_BEFORE_CONTENT: Final = 3
"""A mark, a version and the byte order, in files of torch before 1.6."""
STORAGE_ITEM_BYTES: Final = {
    **dict.fromkeys(("UntypedStorage", "ByteStorage", "CharStorage", "BoolStorage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
"""Bytes of a number, by the name of torch's class for the bytes of tensors."""
CHUNK_BYTES: Final = 2**20
DOS_FOLDER: Final = 0x10
"""Mark of a folder among the attributes of an entry."""
MAX_VALUES: Final = 2_000_000
"""Values of a file with shared ones counted at each place; a short file can stand for billions."""
CONTAINERS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("collections", "Counter"): Counter,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
    ("torch", "device"): lambda *_: None,
    ("_codecs", "encode"): lambda *_: b"",
}
"""Plain values beside tensors, and what stands for them in an outline."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """The bytes behind tensors, as a pickle describes them."""

    num_bytes: int
    item_bytes: int


class _Outline(pickle.Unpickler):
    """Reads what a pickle says about tensors, and builds none of them.

    Args:
        file: The pickle.
        size_of: Returns the bytes that the file has for a key.
    """

    def __init__(self, file: IO[bytes], size_of: Callable[[str], int]) -> None:
        super().__init__(file)
        self._size_of = size_of

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function; a ValueError for one that is not needed."""
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if name in STORAGE_ITEM_BYTES:
            return name
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3")):
            return _check_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) not in CONTAINERS:
            raise ValueError(f"holds {module}.{name}, which is no plain tensor or value")
        return CONTAINERS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return what stands for the bytes of tensors."""
        _, kind, key, _, numel, *_ = pid
        num_bytes = numel * STORAGE_ITEM_BYTES[kind]
        if not 0 <= num_bytes <= self._size_of(key):
            raise ValueError(f"claims {num_bytes} bytes for a tensor and has {self._size_of(key)}")
        return _Storage(num_bytes, STORAGE_ITEM_BYTES[kind])


def _check_tensor(storage: _Storage, _: int, shape: tuple[int, ...], *options: Any) -> None:
    """Stand for a tensor; its strides and its type are among the options."""
    dtype = next((option for option in options if isinstance(option, torch.dtype)), None)
    item_bytes = storage.item_bytes if dtype is None else dtype.itemsize
    if min(shape, default=0) < 0 or prod(shape) * item_bytes > storage.num_bytes:
        raise ValueError(f"claims a tensor of shape {shape} and has {storage.num_bytes} bytes for it")


def read_weights_file(path: Path, *, advice: str = "Check the path.") -> dict[str, Any]:
    """Read a file of tensors and plain values without running any code in it.

    Args:
        path: `.pth`, `.pt` or `.safetensors`.
        advice: What to do about a missing file.

    Raises:
        CheckpointError: If the file is missing, damaged, does not hold a mapping, holds anything but plain
            values and dense tensors in memory, or claims more bytes than it has.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {not_a_file(path, 'weights file')}. {advice}")
    try:
        if path.suffix == ".safetensors":
            content: Any = _load_safetensors(path)
        else:
            with path.open("rb") as file:  # the same file is checked and loaded, whatever takes its name
                _check_claims(file)
                file.seek(0)
                content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: damaged, truncated or not a weights file ({first_line:.300}). Use another copy."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}. A weights file holds named tensors."
        )
    return content


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()  # not mapped: a file that is cut short meanwhile would end the process
    if not is_unchanged(content):
        raise ValueError(CHANGED)
    return load(content)


def _check_claims(file: IO[bytes]) -> None:
    """Raise one of the errors of `UNREADABLE` if a file of torch is damaged or claims more than it has."""
    size = os.fstat(file.fileno()).st_size
    if file.read(len(ZIP_MARK)) != ZIP_MARK:
        file.seek(0)
        for _ in range(PICKLES_BEFORE_CONTENT + 1):
            _read_outline(file, lambda _: size)
        return
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
        entries = {entry.filename: entry for entry in listed}
        is_packed = any(entry.compress_type or entry.file_size != entry.compress_size for entry in listed)
        if any(entry.external_attr & DOS_FOLDER for entry in listed):
            raise ValueError("an entry is marked as a folder, which torch reads as zeros")
        if is_packed or len(entries) < len(listed) or sum(entry.file_size for entry in listed) > size:
            raise ValueError(f"its entries claim more than the {size} bytes of the file")
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("no file of torch.save")
        folder = pickles[0].removesuffix("data.pkl")
        content = io.BytesIO(archive.read(pickles[0]))
        _read_outline(content, lambda key: entries[f"{folder}data/{key}"].file_size)
        for entry in listed:
            _check_sum(archive, entry)


def _check_sum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, where the reader compares its checksum; torch does not."""
    with archive.open(entry) as opened:
        while opened.read(CHUNK_BYTES):
            pass


def _read_outline(file: IO[bytes], size_of: Callable[[str], int]) -> None:
    start = file.tell()
    for operation, argument, _ in genops(file):
        # Python's reader makes room for as many values as the largest number of one says.
        if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > MAX_VALUES:
            raise ValueError(f"claims {argument} values")
    file.seek(start)
    if _count_values(_Outline(file, size_of).load(), {}) > MAX_VALUES:
        raise ValueError(f"stands for more than {MAX_VALUES} values")


def _count_values(value: object, known: dict[int, int]) -> int:
    """Count values with shared ones at each place; `known` has 0 for the containers around it."""
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if known.get(id(value)) == 0:
        raise ValueError("a value contains itself")
    if id(value) not in known:
        known[id(value)] = 0
        children = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(value)]
