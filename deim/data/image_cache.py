"""Images at the size of the network input, kept from one epoch to the next: in memory, or on disk.

Both caches are bounded in bytes and give back the very numbers that were put in.
"""

import errno
import hashlib
import json
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from deim.errors import DataError
from deim.structures import Placement

Fitted = tuple[Tensor, Placement]
"""An image (C, H, W) at the size of the network input, and where the input lies in the original."""

FORMAT: Final = 1
"""Of the files; a new one never reads those of an old one."""
RECORD: Final = struct.Struct("<II2I4d")
"""Of an image: checksums of its pixels and of the rest of the record, and its placement."""
CHECKSUM: Final = struct.Struct("<I")
SUFFIX: Final = ".images"


class MemoryCache:
    """The first images to come, in the memory of one process.

    Args:
        max_bytes: Of all images together; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.free_bytes = max_bytes
        self._kept: dict[int, Fitted] = {}

    def get(self, index: int) -> Fitted | None:
        """The image with a number; nothing may change it in place."""
        return self._kept.get(index)

    def put(self, index: int, fitted: Fitted) -> None:
        """Keep an image, if there is room for it."""
        num_bytes = fitted[0].nbytes
        if index not in self._kept and num_bytes <= self.free_bytes:
            self.free_bytes -= num_bytes
            self._kept[index] = fitted


class DiskCache:
    """Images of one split in a file that all processes and later runs share.

    The name of the file follows from all that decides its content, and each image has a place of its own in
    it: two processes that write the same image write the same bytes. An image counts once its record is
    written, which comes last, and the checksum in it agrees: one that a process was killed over does not. The
    space is taken at once, so that a run fails before its first epoch, not in the middle, if there is none.

    As many images as fit are kept, the first of the split. Files of the same split that were made otherwise
    (another size, other images) stay while all together are within the bound; the oldest are removed first.

    Args:
        folder: Of all caches; made if need be.
        paths: The images of the split.
        name: Of the split, by which its files are told from those of others.
        made_how: What decides how a file becomes an image, such as sizes and versions; JSON types.
        image_shape: (C, H, W).
        dtype: uint8 or float32.
        max_bytes: Of all files of the split.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        *,
        name: str,
        made_how: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        dtype: torch.dtype,
        max_bytes: int,
    ) -> None:
        self.paths = list(paths)
        self.image_shape = image_shape
        self.dtype = dtype
        self.image_bytes = int(np.prod(image_shape)) * dtype.itemsize
        self._states = np.array([_file_state(path) for path in self.paths], dtype=np.int64).reshape(-1, 2)
        page = mmap.ALLOCATIONGRANULARITY
        # Images begin where a page does, so that each can be mapped by itself.
        self._step = -(-self.image_bytes // page) * page
        self.capacity = min(len(self.paths), max_bytes // (self._step + RECORD.size))
        if self.num_bytes > max_bytes:
            self.capacity -= 1
        split = hashlib.sha256(name.encode("utf-8")).hexdigest()[:12]
        self.path = folder / f"{split}-{self._key(made_how)}{SUFFIX}"
        self._checked: set[int] = set()
        self._file: int | None = None
        if self.capacity:
            self._reserve(split, max_bytes)

    @property
    def num_bytes(self) -> int:
        """Of the file: the records, and behind them the images."""
        return self._start + self.capacity * self._step

    @property
    def _start(self) -> int:
        page = mmap.ALLOCATIONGRANULARITY
        return -(-self.capacity * RECORD.size // page) * page

    def has_place(self, index: int) -> bool:
        """Whether the image with a number is one of those that are kept once they have been read."""
        return index < self.capacity

    def get(self, index: int) -> Fitted | None:
        """The image with a number, straight from the file; changes of it stay in this process.

        Args:
            index: Of the image in the split.

        Returns:
            None if it is not kept, was not written in full, or its file has changed since.
        """
        if not self.has_place(index):
            return None
        record = os.pread(self._opened(), RECORD.size, index * RECORD.size)
        if len(record) < RECORD.size:
            return None
        pixels_sum, record_sum, *numbers = RECORD.unpack(record)
        if record_sum != _record_sum(record) or _file_state(self.paths[index]) != tuple(self._states[index]):
            return None
        image = self._map(index)
        if index not in self._checked:
            if zlib.crc32(image.numpy().data) != pixels_sum:
                return None
            self._checked.add(index)
        height, width, *places = numbers
        placement = Placement(
            orig_size_hw=(height, width),
            span_hw=(places[0], places[1]),
            shift_yx=(places[2], places[3]),
        )
        return image, placement

    def put(self, index: int, fitted: Fitted) -> None:
        """Keep an image, if it has a place and its file is still the one that the cache was opened with.

        Raises:
            DataError: If it cannot be written.
        """
        if not self.has_place(index) or _file_state(self.paths[index]) != tuple(self._states[index]):
            return
        image, placement = fitted
        assert (image.shape, image.dtype) == (self.image_shape, self.dtype)
        pixels = image.contiguous().numpy().reshape(-1).view(np.uint8).data
        rest = RECORD.pack(
            zlib.crc32(pixels), 0, *placement.orig_size_hw, *placement.span_hw, *placement.shift_yx
        )
        record = rest[:4] + CHECKSUM.pack(_record_sum(rest)) + rest[8:]
        try:
            _write(self._opened(), pixels, self._start + index * self._step)
            _write(self._opened(), record, index * RECORD.size)
        except OSError as error:
            raise DataError(self._describe(error)) from None

    def __getstate__(self) -> dict[str, Any]:
        """Without the opened file: each process opens it for itself."""
        return {**self.__dict__, "_file": None, "_checked": set()}

    def _key(self, made_how: Mapping[str, Any]) -> str:
        content = {
            "format": FORMAT,
            "files": [str(path) for path in self.paths],
            "states": self._states.tolist(),
            "shape": self.image_shape,
            "dtype": str(self.dtype),
            "capacity": self.capacity,
            "made": dict(made_how),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()[:16]

    def _reserve(self, split: str, max_bytes: int) -> None:
        """Make the file at its full size, and room for it."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_oldest(
                [path for path in folder.glob(f"{split}-*{SUFFIX}") if path != self.path],
                max_bytes - self.num_bytes,
            )
            file = self._opened()
            if os.fstat(file).st_size < self.num_bytes:
                _allocate(file, self.num_bytes)
            os.utime(self.path)
        except OSError as error:
            if self._file is not None and os.fstat(self._file).st_size < self.num_bytes:
                self.path.unlink(missing_ok=True)
            raise DataError(self._describe(error)) from None

    def _opened(self) -> int:
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._file)
        return self._file

    def _map(self, index: int) -> Tensor:
        place = self._start + index * self._step
        # A copy on write: torch wants memory that can be written, the file is not to change.
        mapped = mmap.mmap(self._opened(), self.image_bytes, access=mmap.ACCESS_COPY, offset=place)
        return torch.frombuffer(mapped, dtype=self.dtype).view(self.image_shape)

    def _describe(self, error: OSError) -> str:
        needed = -(-self.num_bytes // 2**20)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{self.path}: the disk is full; the cache of the split needs {needed} MiB. Free some, lower "
                f"data.disk_cache_mb, or name another disk with data.disk_cache_dir."
            )
        return (
            f"{self.path}: cannot be written ({error.strerror}). Name a folder that can with "
            f"data.disk_cache_dir, or go without by data.disk_cache_mb=0."
        )


def _file_state(path: Path) -> tuple[int, int]:
    """Bytes of a file, and when it changed, in nanoseconds; two minus ones if it is not there.

    What is wrong with a missing file is said where it is read.
    """
    try:
        state = path.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _record_sum(record: bytes) -> int:
    """Checksum of a record but for its own; of one that was never written it is not the 0 found there."""
    return zlib.crc32(record[:4] + record[8:])


def _write(file: int, content: bytes | memoryview, place: int) -> None:
    """All of the content: the system may take less of it at a time."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file, rest, place)
        rest, place = rest[written:], place + written


def _allocate(file: int, num_bytes: int) -> None:
    """Take the space of a file, if the system has a way to do so, or else only its size."""
    try:
        os.posix_fallocate(file, 0, num_bytes)
    except AttributeError:
        os.ftruncate(file, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(file, num_bytes)


def _remove_oldest(paths: Sequence[Path], max_bytes: int) -> None:
    """Remove files, the longest unused first, until the rest are within `max_bytes`.

    A process that still has one open keeps it until it ends.
    """
    states: list[tuple[int, int, Path]] = []
    for path in paths:
        num_bytes, changed_ns = _file_state(path)
        if num_bytes >= 0:
            states.append((changed_ns, num_bytes, path))
    total = sum(num_bytes for _, num_bytes, _ in states)
    for _, num_bytes, path in sorted(states):
        if total <= max_bytes:
            break
        path.unlink(missing_ok=True)
        total -= num_bytes
