"""Images at the size of the network input, kept from one epoch to the next: in memory, or on disk."""

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from torch import Tensor

from deim.data.tensor_file import pack_tensors, unpack_tensors
from deim.errors import DataError
from deim.files import folder_bytes, format_bytes, free_bytes, write_atomically
from deim.structures import Placement

ResizedImage = tuple[Tensor, Placement]
"""An image (C, H, W) at the size of the network input, and where the input lies in the original."""

FORMAT: Final = 2
"""Version of the files; raised whenever their content changes its meaning."""
HEADER_BYTES: Final = 512
"""Upper bound of the size of a file without the pixels."""


class MemoryCache:
    """Keeps the first images, up to `max_bytes` of all together, in the memory of one process."""

    def __init__(self, max_bytes: int) -> None:
        self.free_bytes = max_bytes
        self._images: dict[int, ResizedImage] = {}

    def get(self, index: int) -> ResizedImage | None:
        """Return an image, which must not be changed in place; None if it is not kept."""
        return self._images.get(index)

    def put(self, index: int, resized: ResizedImage) -> None:
        """Keep an image, if there is room for it."""
        num_bytes = resized[0].nbytes
        if index not in self._images and num_bytes <= self.free_bytes:
            self.free_bytes -= num_bytes
            self._images[index] = resized


class DiskCache:
    """Keeps the first images of a split in a folder that all processes and later runs share.

    Each image has a file, written whole or not at all. The name of the folder depends on everything that
    decides its content. Other folders of the split stay within the bound; the oldest are removed first.

    Args:
        folder: Folder of all caches; made if needed.
        paths: Images of the split.
        name: Name of the split; caches of other splits are left alone.
        key: Everything else that decides the content, such as sizes and versions.
        image_bytes: Size of the pixels of an image.
        max_bytes: Maximum size of all caches of the split.

    Raises:
        DataError: If the folder cannot be written or the disk is full.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path], *, name: str, key: str, image_bytes: int, max_bytes: int
    ) -> None:
        self.paths = list(paths)
        self.image_bytes = image_bytes + HEADER_BYTES
        self.capacity = min(len(self.paths), max_bytes // self.image_bytes)
        self._states = [_file_state(path) for path in self.paths]
        content = [FORMAT, list(map(str, self.paths)), self._states, self.capacity, image_bytes, key]
        split = _hash(name)
        self.folder = folder / f"{split}-{_hash(json.dumps(content))}"
        if self.capacity:
            self._reserve(split, max_bytes)

    def has_place(self, index: int) -> bool:
        """Whether an image is among those that are kept, and its original has not changed."""
        return index < self.capacity and _file_state(self.paths[index]) == self._states[index]

    def get(self, index: int) -> ResizedImage | None:
        """Return an image; None if it is not kept, is damaged, or its original has changed."""
        if not self.has_place(index):
            return None
        try:
            tensors = unpack_tensors(self._path(index).read_bytes())
        except (OSError, SafetensorError):
            return None
        size_hw, span_hw, shift_yx = tensors["placement"].view(3, 2).tolist()
        size_hw = (int(size_hw[0]), int(size_hw[1]))
        place = Placement(orig_size_hw=size_hw, span_hw=tuple(span_hw), shift_yx=tuple(shift_yx))
        return tensors["image"], place

    def put(self, index: int, resized: ResizedImage) -> None:
        """Keep an image, if it has a place; raises a DataError if it cannot be written."""
        if not self.has_place(index):
            return
        image, place = resized
        numbers = torch.tensor([*place.orig_size_hw, *place.span_hw, *place.shift_yx], dtype=torch.float64)
        content = pack_tensors({"image": image, "placement": numbers})
        try:
            write_atomically(self._path(index), lambda file: file.write(content))
        except FileNotFoundError:  # another run has removed the folder to make room
            return
        except OSError as error:
            raise self._error(error) from None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:07d}.safetensors"

    def _reserve(self, split: str, max_bytes: int) -> None:
        """Make the folder, remove older ones beyond the bound, and check the free space."""
        needed = self.capacity * self.image_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.touch()
            others = [path for path in self.folder.parent.glob(f"{split}-*") if path != self.folder]
            room = max_bytes - needed
            for path in sorted(others, key=lambda path: _file_state(path)[1], reverse=True):
                room -= folder_bytes(path)
                if room < 0:
                    shutil.rmtree(path, ignore_errors=True)
            if shutil.disk_usage(self.folder).free < needed - folder_bytes(self.folder):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> DataError:
        problem = f"cannot be written ({error.strerror})"
        if error.errno == errno.ENOSPC:
            needed_mib = math.ceil(self.capacity * self.image_bytes / 2**20)
            free = format_bytes(free_bytes(self.folder))
            problem = f"{free} are free, the disk is full; the cache of the split needs {needed_mib} MiB"
        return DataError(
            f"{self.folder}: {problem}. Free some space, lower data.disk_cache_mb, name another folder with "
            f"data.disk_cache_dir, or set data.disk_cache_mb=0."
        )


def _file_state(path: Path) -> list[int]:
    """Return size in bytes and time of the last change in nanoseconds; -1 and -1 for a missing file."""
    try:
        state = path.stat()
    except OSError:
        return [-1, -1]
    return [state.st_size, state.st_mtime_ns]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
