"""Image files of a folder, and the look-up of those that annotation files name."""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from deim.data.images.read import IMAGE_SUFFIXES
from deim.files import lies_below

SYSTEM_FOLDERS = ("__MACOSX",)
OUTSIDE = (
    "A file outside the folder is there, but names in data lead only to files below it. If you trust these "
    "data, allow others with --allow-outside, or data.allow_outside=true."
)


def is_hidden(path: Path | PurePosixPath) -> bool:
    """Whether a relative path is hidden, such as the `._NAME` files in zip archives of macOS."""
    return any(part.startswith(".") or part in SYSTEM_FOLDERS for part in path.parts)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; false for a path that cannot be one."""
    return _has_mode(path, stat.S_ISREG)


def is_dir(path: Path) -> bool:
    """Whether there is a folder; false for a path that cannot be one."""
    return _has_mode(path, stat.S_ISDIR)


def _has_mode(path: Path, test: Callable[[int], bool]) -> bool:
    try:
        return test(path.stat().st_mode)
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def walk_files(folder: Path) -> Iterator[str]:
    """Yield the relative path, with `/`, of each file below a folder that is not hidden, folder by folder."""
    waiting, seen = [""], {os.path.realpath(folder)}
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(PurePosixPath(entry.name)):
                    continue
                path = f"{prefix}{entry.name}"
                if entry.is_dir():
                    # A link to a folder above would never end.
                    real = os.path.realpath(entry.path)
                    if real not in seen:
                        seen.add(real)
                        waiting.append(f"{path}/")
                elif entry.is_file():
                    yield path


def list_images(folder: Path) -> list[str]:
    """Return the relative path of every image file below a folder, with `/`, in alphabetical order."""
    return sorted(name for name in walk_files(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """Result of looking for the file that a name means."""

    path: str | None
    """Path relative to the folder, with `/`; None if no file or several fit."""
    candidates: tuple[str, ...] = ()
    """The files that fit equally well, if there are several."""
    is_outside: bool = False
    """Whether the name is that of a file outside the folder, which is not taken."""

    @property
    def advice(self) -> str:
        """Sentence about a file outside the folder; empty if there is none."""
        return f" {OUTSIDE}" if self.is_outside else ""


class ImageIndex:
    """Finds the image files of a folder by the names that annotation files give them."""

    def __init__(
        self, folder: Path, paths: Sequence[str] | None = None, *, allow_outside: bool = False
    ) -> None:
        """Index the image files below a folder, which need not exist, or only some, by their `paths`.

        With `allow_outside` a name may also be that of a file elsewhere.
        """
        self.folder, self.allow_outside = folder, allow_outside
        if paths is None:
            paths = list_images(folder) if folder.is_dir() else []
        self.paths = list(paths)
        self._known = frozenset(self.paths)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            name = _normalize(PurePosixPath(path).name)
            self._by_name.setdefault(name, []).append(path)
            self._by_stem.setdefault(PurePosixPath(name).stem, []).append(path)

    def find(self, name: str) -> Lookup:
        r"""Find the file that a name means.

        It is taken as given, or else with `\` as `/`, URL-decoded and in Unicode form NFC: the file below the
        folder that shares the longest end of the path with it.

        Args:
            name: Relative or absolute path as an annotation file gives it; only regular files are found, and
                only below the folder unless others are allowed.
        """
        if name in self._known:
            return Lookup(path=PurePosixPath(name).as_posix())
        is_there = is_file(self.folder / name)
        is_inside = lies_below(self.folder / name, self.folder) if is_there else True
        if is_there and (self.allow_outside or (is_inside and not _climbs(name))):
            return Lookup(path=PurePosixPath(name).as_posix())
        lookup = _longest_end(dict.fromkeys((name, unquote(name))), self._by_name)
        is_lost = lookup.path is None and not lookup.candidates
        return replace(lookup, is_outside=is_lost and not is_inside)

    def find_stem(self, stem: str) -> Lookup:
        """Find the file of a path without its suffix; otherwise as `find`."""
        return _longest_end((stem,), self._by_stem)


def _climbs(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _longest_end(texts: Iterable[str], paths_by_key: dict[str, list[str]]) -> Lookup:
    """Return the file that shares the longest end with one of the spellings of a path."""
    for text in texts:
        parts = path_parts(text)
        if not parts or parts[-1] not in paths_by_key:
            continue
        lengths = {path: _common_end(parts, _normalize(path).split("/")) for path in paths_by_key[parts[-1]]}
        longest = max(lengths.values())
        best = [path for path, length in lengths.items() if length == longest]
        return Lookup(path=best[0]) if len(best) == 1 else Lookup(path=None, candidates=tuple(best))
    return Lookup(path=None)


def path_parts(text: str) -> list[str]:
    r"""Return the names in a path of any system, `/` or `\`, in Unicode form NFC."""
    path = _normalize(text).replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def _common_end(parts: list[str], others: list[str]) -> int:
    """Return the number of parts before the last in which two paths agree, from the end."""
    count = 0
    for part, other in zip(reversed(parts[:-1]), reversed(others[:-1]), strict=False):
        if part != other:
            break
        count += 1
    return count


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFC", text)
