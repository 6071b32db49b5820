"""Files written whole or not at all, hashes, near names, and problems that are raised together."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from deim.errors import DataError, DeimError

UNFINISHED = ".part"
SHOWN_OF_NAME = 48
"""Characters of a file's name in that of its temporary file."""
MAX_LISTED_PROBLEMS = 20


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, keep: Path | None = None) -> None:
    """Write a file so that a crash leaves either the old file or the new one.

    Args:
        path: File to write; its folder exists.
        write: Writes the content to an open binary file.
        keep: Where the old file goes; None drops it.

    Raises:
        OSError: If the file cannot be written, with `path`; the old file is untouched.
    """
    # A name of full length leaves no room for more.
    temporary = path.with_name(f".{path.name[:SHOWN_OF_NAME]}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 with Unix line ends.

    Raises:
        OSError: If the file cannot be written.
    """
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


class JsonListFile:
    """A list in a JSON file that is whole after each addition, so that a stopped program leaves what it did.

    An old file is replaced. Only the new entries are in memory.

    Raises:
        OSError: If the file cannot be written.
    """

    END = b"\n]\n"

    def __init__(self, path: Path) -> None:
        write_text(path, f"[{self.END.decode()}")
        self._file = path.open("r+b", buffering=0)
        self._is_empty = True

    def add(self, entries: Iterable[object]) -> None:
        """Append entries of JSON types, in one call to the system."""
        lines = [json.dumps(entry, allow_nan=False) for entry in entries]
        if not lines:
            return
        text = ("\n" if self._is_empty else ",\n") + ",\n".join(lines)
        self._is_empty = False
        self._file.seek(-len(self.END), os.SEEK_END)
        self._file.write(text.encode("ascii") + self.END)

    def close(self) -> None:
        """Close the file."""
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
