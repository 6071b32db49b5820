"""Duplicate images: identical files, and images that were saved again, resized or made brighter."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deim.curation.scan import THUMBNAIL_SIDE, ImageFacts
from deim.files import sha256_of_file

MIN_CORRELATION = 0.99
"""Minimum correlation of the thumbnails of duplicates."""
MIN_DETAIL = 1.5
"""Minimum root mean square of a thumbnail's distinct content, in gray levels of 255, for a comparison."""
MAX_DIFFERENCE = 8.0
"""Maximum difference of the thumbnails of duplicates in any place, in gray levels of 255 …"""
MAX_PEAK = 6.0
"""… unless it is at most this multiple of the root mean square of all differences: saving and resizing change
an image a little everywhere, another defect changes it in one place."""
MIN_FOR_BACKGROUND = 20
"""Minimum number of images to subtract their common background before they are compared."""
ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """An image with the same content as an earlier one."""

    index: int
    earlier: int
    """Position of the earlier one, preferably in another split."""
    is_exact: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """The thumbnails of U images with enough distinct content."""

    indices: NDArray[np.int64]
    """(U,) positions of the images."""
    whole: NDArray[np.float32]
    """(U, 1024) thumbnails with mean 0 and standard deviation 1."""
    distinct: NDArray[np.float32]
    """(U, 1024) difference from the mean of all images, of length 1."""
    contrast: NDArray[np.float32]
    """(U,) standard deviation of the thumbnails, in gray levels."""


def find_exact(hashes: Sequence[str], split_of: Sequence[str]) -> list[Duplicate]:
    """Return the files that are identical to an earlier one, by their hashes and the names of their splits.

    Empty hashes are not compared.
    """
    by_hash: dict[str, list[int]] = {}
    duplicates = []
    for index, value in enumerate(hashes):
        same = by_hash.setdefault(value, [])
        if value and same:
            earlier = _choose_earlier(index, same, split_of)
            duplicates.append(Duplicate(index=index, earlier=earlier, is_exact=True))
        same.append(index)
    return duplicates


def hash_equal_lengths(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of files that share their length in bytes with another one; empty for the rest."""
    lengths = [path.stat().st_size if path.is_file() else 0 for path in paths]
    counts = Counter(lengths)
    return [
        sha256_of_file(path) if length and counts[length] > 1 else ""
        for path, length in zip(paths, lengths, strict=True)
    ]


def find_near(facts: Sequence[ImageFacts], split_of: Sequence[str]) -> list[Duplicate]:
    """Return the images whose thumbnail equals an earlier one except for brightness and contrast.

    With 20 images or more, the mean of all thumbnails is subtracted first, because images of parts in the
    same holder look alike. Of copies saved as JPEG with quality 60, at least 97 % are found; of copies with
    half the size or 15 % more brightness, at least 68 %. Mirrored, rotated and cropped copies are not found,
    and identical files are left to `find_exact`.

    Args:
        facts: Facts about each image, decoded.
        split_of: Name of the split of each image.
    """
    return [
        Duplicate(index=index, earlier=_choose_earlier(index, earlier, split_of), is_exact=False)
        for index, earlier in _alike(facts)
    ]


def find_copies(facts: Sequence[ImageFacts]) -> list[tuple[int, int]]:
    """Return pairs of positions of images with the same bytes or alike as in `find_near`."""
    exact = find_exact([fact.sha256 for fact in facts], [""] * len(facts))
    near = [(index, other) for index, earlier in _alike(facts) for other in earlier]
    return [*((duplicate.index, duplicate.earlier) for duplicate in exact), *near]


def count_plain(facts: Sequence[ImageFacts]) -> int:
    """Return the number of decoded images with too little distinct content for a comparison."""
    return sum(bool(fact.thumbnail.size) for fact in facts) - len(_compare_content(facts).indices)


def _alike(facts: Sequence[ImageFacts]) -> Iterator[tuple[int, list[int]]]:
    """Yield the position of each image that is like earlier ones with other bytes, and their positions."""
    content = _compare_content(facts)
    for start in range(0, len(content.indices), ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, len(content.indices))
        alike = content.distinct[start:stop] @ content.distinct[:stop].T >= MIN_CORRELATION
        alike &= np.arange(stop)[None] < np.arange(start, stop)[:, None]
        for row in np.flatnonzero(alike.any(axis=1)).tolist():
            others = np.flatnonzero(alike[row])
            others = others[_differ_evenly(content, start + row, others)]
            index = int(content.indices[start + row])
            earlier = [int(other) for other in content.indices[others]]
            earlier = [other for other in earlier if facts[other].sha256 != facts[index].sha256]
            if earlier:
                yield index, earlier


def _differ_evenly(content: _Content, row: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (K,) whether the difference of an image to each other one is small, or spread over the image."""
    image, many = content.whole[row], content.whole[others]
    difference = image - many * ((many @ image) / (many**2).sum(axis=1))[:, None]
    peak, mean = np.abs(difference).max(axis=1), np.sqrt((difference**2).mean(axis=1))
    in_levels = peak * np.minimum(content.contrast[row], content.contrast[others])
    return (in_levels <= MAX_DIFFERENCE) | (peak <= MAX_PEAK * mean)


def _compare_content(facts: Sequence[ImageFacts]) -> _Content:
    """Return the comparable content of the decoded images."""
    decoded = np.array([index for index, fact in enumerate(facts) if fact.thumbnail.size], dtype=np.int64)
    thumbnails = [facts[index].thumbnail.ravel() for index in decoded]
    gray = np.array(thumbnails, dtype=np.float32).reshape(-1, THUMBNAIL_SIDE**2)
    contrast = gray.std(axis=1)
    whole = (gray - gray.mean(axis=1, keepdims=True)) / np.maximum(contrast, 1e-6)[:, None]
    distinct = whole - whole.mean(axis=0) if len(decoded) >= MIN_FOR_BACKGROUND else whole
    usable = np.sqrt((distinct**2).mean(axis=1)) * contrast >= MIN_DETAIL
    distinct = distinct[usable] / np.linalg.norm(distinct[usable], axis=1, keepdims=True)
    return _Content(
        indices=decoded[usable], whole=whole[usable], distinct=distinct, contrast=contrast[usable]
    )


def _choose_earlier(index: int, earlier: Sequence[int], split_of: Sequence[str]) -> int:
    return next((other for other in earlier if split_of[other] != split_of[index]), earlier[0])
