"""Files written whole or not at all and sealed with a checksum, hashes, near names, and listed problems."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, Final

from deim.errors import DataError, DeimError, DiskFullError

UNFINISHED = ".part"
MAX_LISTED_PROBLEMS = 20
LONGEST_NAME: Final = 200
"""Bytes of a file's name that the name of its temporary repeats."""
NO_ROOM: Final = {
    getattr(errno, "EDQUOT", -1): "Free some space within your quota, or write to another disk.",
    errno.ENOSPC: "Free some space, or write to another disk, and run the command again.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), and run the command again.",
}
"""What to do about the errors of a system that has no room for a file."""
CHANGED: Final = "was changed after it was written, its checksum does not fit"
SEAL_KEY: Final = "seal"
UNSEALED: Final = "crc32:00000000"
"""Value of the first key of a file until `seal` puts the checksum there."""
SEAL: Final = re.compile(rb"\bseal\W{2,6}crc32:([0-9a-f]{8})\b")
"""The seal in JSON, also within a text of JSON, or after a `#` of YAML; the first of a file is its own."""


class FileGroup(AbstractContextManager["FileGroup"]):
    """Files that belong together: all take their names when the block ends, or none after an error."""

    def __init__(self) -> None:
        self._temporaries: dict[Path, Path] = {}
        self._kept: dict[Path, Path] = {}

    def write(self, path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> Path:
        """Write a file as `write_atomically`, under the temporary name that is returned."""
        temporary = path.with_name(f".{_short_name(path.name)}.{os.getpid()}{UNFINISHED}")
        self._temporaries[path] = temporary
        if keep is not None:
            self._kept[path] = keep
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            cause = _system_error(error)
            if cause is None or cause.errno is None:
                raise
            self._remove()
            raise _name_error(cause, path, lambda: _measure(write)) from None
        return temporary

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                for path, temporary in self._temporaries.items():
                    self._rename(temporary, path)
        finally:
            self._remove()

    def _rename(self, temporary: Path, path: Path) -> None:
        try:
            if path in self._kept and path.exists():
                path.replace(self._kept[path])
            temporary.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise _name_error(error, path, None) from None

    def _remove(self) -> None:
        for temporary in self._temporaries.values():
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> None:
    """Write a file so that a crash or a full disk leaves either the old file or the new one.

    Args:
        path: File to write; its folder exists.
        write: Writes the content to an open binary file. It is called again, to measure the content, if the
            disk is full.
        keep: Where the old file goes; None drops it.

    Raises:
        OSError: If the file cannot be written, with `path`; the old file is untouched.
        DiskFullError: If it has no room.
    """
    with FileGroup() as group:
        group.write(path, write, keep=keep)


def _short_name(name: str) -> str:
    """Return a name that leaves room for more letters, where systems allow 255 bytes in all."""
    content = name.encode("utf-8", "replace")
    if len(content) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 4]}.{zlib.crc32(content):08x}"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; see `write_atomically` for the errors."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 with Unix line ends; see `write_atomically` for the errors."""
    write_bytes(path, text.encode("utf-8"))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically; see `write_atomically` for the errors."""
    with source.open("rb") as opened:

        def copy(file: BinaryIO) -> None:
            opened.seek(0)
            shutil.copyfileobj(opened, file)

        write_atomically(target, copy)


def write_to_end(file: io.FileIO, content: bytes) -> None:
    """Write content to an unbuffered file, of which a disk may take a part before it refuses the rest.

    Raises:
        OSError: If a part cannot be written.
    """
    while content:
        content = content[file.write(content) :]


@contextmanager
def explain_full_disk(path: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn the error of a full disk within into a DiskFullError that names a file or folder.

    Args:
        path: What is written.
        needed: Returns its size in bytes; None does not know it.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise _name_error(error, path, needed) from None


def _name_error(error: OSError, path: Path, needed: Callable[[], int | None] | None) -> OSError:
    """Return an error of the system with the file's name, and with sizes in bytes if it has no room."""
    if isinstance(error, DiskFullError):
        return error
    if error.errno is None or error.errno not in NO_ROOM:
        return OSError(error.errno, error.strerror, str(path))
    num_bytes = None if needed is None else needed()
    needs = "" if num_bytes is None else f", it needs {format_bytes(num_bytes)}"
    reason = f"{error.strerror}{needs}, and {format_bytes(free_bytes(path))} are free"
    message = f"{path}: cannot be written ({reason}). {NO_ROOM[error.errno]}"
    return DiskFullError(message, error.errno, reason)


def describe_system_error(error: OSError) -> str:
    """Say what an error of the system means; of a full disk, also how many bytes are free."""
    name = error.filename2 or error.filename or Path.cwd()
    return str(error if error.errno not in NO_ROOM else _name_error(error, Path(os.fsdecode(name)), None))


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk of a file or folder, which need not exist yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder and below it; 0 if there is none."""
    num_bytes = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another run may have removed it
            num_bytes += path.stat().st_size if path.is_file() else 0
    return num_bytes


def format_bytes(num_bytes: int) -> str:
    """Return text such as `812 bytes` or `1.5 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


class _Scale(io.RawIOBase):
    """Counts what is written to it, and keeps nothing."""

    num_bytes = 0

    def write(self, content: Any) -> int:
        """Count bytes."""
        size = memoryview(content).nbytes
        self.num_bytes += size
        return size


def _measure(write: Callable[[Any], object]) -> int | None:
    """Return how many bytes are written; None if that fails on any disk."""
    scale = _Scale()
    try:
        write(scale)
    except (OSError, RuntimeError):
        return None
    return scale.num_bytes


def seal(content: bytes) -> bytes:
    """Put the checksum of a file's content where it has `UNSEALED`."""
    match = SEAL.search(content)
    assert match is not None
    return b"%b%08x%b" % (content[: match.start(1)], zlib.crc32(content), content[match.end(1) :])


def is_unchanged(content: bytes, *, needs_seal: bool = False) -> bool:
    """Whether content has the checksum that its seal says.

    Content without a seal, such as that of files of older versions, passes unless it `needs_seal`.
    """
    match = SEAL.search(content)
    if match is None:
        return not needs_seal
    before, after = memoryview(content)[: match.start(1)], memoryview(content)[match.end(1) :]
    zeros = b"0" * len(match[1])
    return int(match[1], 16) == zlib.crc32(after, zlib.crc32(zeros, zlib.crc32(before)))


class JsonListFile:
    """A list in a JSON file that is whole after each addition, so that a stopped program leaves what it did.

    An older file of the name stays until the list is complete: the list is written beside it, as
    `NAME.unfinished.json`, and takes the name in `finish`. Only the new entries are in memory.

    Raises:
        OSError: If the file cannot be written.
        DiskFullError: If it has no room; the file keeps the entries before.
    """

    END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.working_path = path.with_suffix(f".unfinished{path.suffix}") if path.exists() else path
        write_text(self.working_path, f"[{self.END.decode()}")
        self._file = self.working_path.open("r+b", buffering=0)
        self._is_empty = True

    def add(self, entries: Iterable[object]) -> None:
        """Append entries of JSON types, in one call to the system."""
        lines = [json.dumps(entry, allow_nan=False) for entry in entries]
        if not lines:
            return
        text = ("\n" if self._is_empty else ",\n") + ",\n".join(lines)
        content = text.encode("ascii") + self.END
        start = self._file.seek(-len(self.END), os.SEEK_END)
        try:
            with explain_full_disk(self.working_path, lambda: start + len(content)):
                write_to_end(self._file, content)
        except OSError:
            self._file.seek(start)
            self._file.write(self.END)  # where the end was before, which needs no room
            self._file.truncate()
            raise
        self._is_empty = False

    def finish(self) -> None:
        """Give the complete list its name."""
        os.fsync(self._file.fileno())
        self.close()
        self.working_path.replace(self.path)

    def close(self) -> None:
        """Close the file; without `finish` before, the list keeps the name of an unfinished one."""
        self._file.close()


def refuse_overwriting(*, outputs: Iterable[Path], inputs: Iterable[Path], option: str = "--output") -> None:
    """Refuse outputs that would replace what a command reads, or land in a folder that it reads.

    Files and folders are compared by what they are, so that links, `..` and upper case do not hide a clash.

    Args:
        outputs: Files that the command writes, and folders that hold nothing but what it writes. They need
            not exist, and neither do their parents.
        inputs: Files and folders that it reads.
        option: What names the outputs, for the message.

    Raises:
        DataError: If an output is an input, lies in an input folder, or is a folder that holds an input.
    """
    chains = {path: _identities(path) for path in inputs}
    problems = []
    for output in outputs:
        above = _identities(output)
        for path, chain in chains.items():
            if chain[0] == above[0]:
                clash = f"would replace {path}, which is read"
            elif chain[0] in above:
                clash = f"lies in {path}, which is read: a second run would read what the first one wrote"
            elif above[0] in chain:
                clash = f"is to hold what is written, but {path} in it is read"
            else:
                continue
            problems.append(f"{output}: {clash}. Outputs need a place of their own. Choose it with {option}.")
            break
    raise_listed(problems)


def _identities(path: Path) -> list[object]:
    """Return what tells a path and each folder above it from others: device and inode, or else the path."""
    resolved = Path(os.path.realpath(path))
    return [_identity(place) for place in (resolved, *resolved.parents)]


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return path
    return status.st_dev, status.st_ino


def lies_below(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder by its names; where a link in the folder leads is the user's affair."""
    names = path.relative_to(folder) if path.is_relative_to(folder) else path
    if ".." in names.parts:
        path, folder = path.resolve(), folder.resolve()
    return Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute()))


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed `write_atomically` left in a folder."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def is_utf8(name: str) -> bool:
    """Whether a name can be written in UTF-8; that of a file on disk may hold any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return the sentence that helps after an unknown name: the nearest valid one, or all of them."""
    names = list(valid)
    close = get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Valid are {', '.join(names)}."


def looked_in(path: str | Path) -> str:
    """Return where a relative path was looked for, ` (looked in FOLDER)`; nothing for an absolute path."""
    return "" if Path(path).is_absolute() else f" (looked in {Path.cwd()})"


def not_a_file(path: Path, what: str) -> str:
    """Say why there is no file of a kind at a path: it is a folder, or `no such WHAT`."""
    return f"is a folder, not a {what}" if path.is_dir() else f"no such {what}{looked_in(path)}"


def count(noun: str, number: int) -> str:
    """Return a number with its noun, such as `1 image` and `2 images`, or `0 boxes`."""
    plural = "es" if noun.endswith(("x", "ss", "sh", "tch")) else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"


def raise_listed(problems: Sequence[str], error: type[DeimError] = DataError) -> None:
    """Raise one error that lists the first 20 problems, a line each; do nothing if there are none."""
    if not problems:
        return
    lines = list(problems[:MAX_LISTED_PROBLEMS])
    if len(problems) > len(lines):
        lines.append(f"… and {len(problems) - len(lines)} more.")
    raise error("\n".join(lines))


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the system's own error, which torch wraps in a RuntimeError."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    """Make new file names survive a power cut, on systems that can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
