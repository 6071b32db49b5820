"""Issue images that are there twice: byte for byte, or saved again, resized or made brighter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deim.curation.scan import ImageFacts
from deim.files import sha256_of_file

LEAST_CORRELATION = 0.99
"""Of the thumbnails of two images that count as one."""
LEAST_DETAIL = 1.5
"""Root mean square of a thumbnail's own content, in gray levels of 255; below it nothing can be told."""
MOST_DIFFERENCE = 8.0
"""Largest difference of two such thumbnails in one place, in gray levels of 255 …"""
MOST_PEAK = 6.0
"""… unless it is at most so many times the root mean square of all differences: saving and resizing change an
image a little everywhere, another defect changes it in one place."""
LEAST_FOR_BACKGROUND = 20
"""Images from which on what all have in common is taken off before they are compared."""
ROWS_AT_A_TIME = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicate:
    """An image that shows the same as an earlier one."""

    index: int
    """Position of the image."""
    earlier: int
    """Position of the earlier one, in another split if there is such a one."""
    is_exact: bool
    """Whether the files are the same byte for byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """The thumbnails of U images with enough content of their own."""

    indices: NDArray[np.int64]
    """(U,) positions of the images."""
    whole: NDArray[np.float32]
    """(U, 1024) of mean 0 and standard deviation 1."""
    own: NDArray[np.float32]
    """(U, 1024) what differs from the mean of all images, of length 1."""
    contrast: NDArray[np.float32]
    """(U,) standard deviation before, in gray levels."""


def find_exact(hashes: Sequence[str], split_of: Sequence[str]) -> list[Duplicate]:
    """Files with the bytes of an earlier one.

    Args:
        hashes: Of each file; an empty one is not compared.
        split_of: Name of the split of each file.
    """
    by_hash: dict[str, list[int]] = {}
    for index, value in enumerate(hashes):
        if value:
            by_hash.setdefault(value, []).append(index)
    found = [
        Duplicate(index=index, earlier=_one_elsewhere(index, indices[:place], split_of), is_exact=True)
        for indices in by_hash.values()
        for place, index in enumerate(indices)
        if place
    ]
    return sorted(found, key=lambda duplicate: duplicate.index)


def hash_equal_lengths(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of the files whose length in bytes another one has too; empty for all others."""
    lengths = [path.stat().st_size if path.is_file() else -1 for path in paths]
    values, counts = np.unique(lengths, return_counts=True)
    shared = set(values[(counts > 1) & (values > 0)].tolist())
    return [
        sha256_of_file(path) if length in shared else "" for path, length in zip(paths, lengths, strict=True)
    ]


def find_near(facts: Sequence[ImageFacts], split_of: Sequence[str]) -> list[Duplicate]:
    """Images whose thumbnail is that of an earlier one, but for brightness and contrast.

    Where there are 20 images or more, the mean of all thumbnails is taken off first: parts that one camera
    photographs in one holder look alike, and still differ in what is their own. Of copies saved as JPEG of
    quality 60, 97 in a hundred and more are found; of those of half the size or 15 % brighter, 68 and more.
    Mirrored, turned and cropped copies are not.

    Args:
        facts: Of each image, decoded.
        split_of: Name of the split of each image.

    Returns:
        One entry for each image with an earlier likeness; pairs with the same bytes are left out.
    """
    return [
        Duplicate(index=index, earlier=_one_elsewhere(index, earlier, split_of), is_exact=False)
        for index, earlier in _alike(facts)
    ]


def find_copies(facts: Sequence[ImageFacts]) -> list[tuple[int, int]]:
    """Pairs of positions of images that must not be parted: with the same bytes, or alike as in `find_near`.

    Args:
        facts: Of each image, decoded.
    """
    exact = find_exact([fact.sha256 for fact in facts], [""] * len(facts))
    near = [(index, other) for index, earlier in _alike(facts) for other in earlier]
    return [*((duplicate.index, duplicate.earlier) for duplicate in exact), *near]


def count_plain(facts: Sequence[ImageFacts]) -> int:
    """Decoded images with too little content of their own to be compared by their thumbnails."""
    return sum(bool(fact.thumbnail.size) for fact in facts) - len(_compare_content(facts).indices)


def _alike(facts: Sequence[ImageFacts]) -> Iterator[tuple[int, list[int]]]:
    """Position of each image that is like earlier ones of other bytes, with theirs."""
    content = _compare_content(facts)
    for start in range(0, len(content.indices), ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, len(content.indices))
        alike = content.own[start:stop] @ content.own[:stop].T >= LEAST_CORRELATION
        alike &= np.arange(stop)[None] < np.arange(start, stop)[:, None]
        for row in np.flatnonzero(alike.any(axis=1)).tolist():
            others = np.flatnonzero(alike[row])
            others = others[_differ_everywhere_or_nowhere(content, start + row, others)]
            index = int(content.indices[start + row])
            earlier = [int(other) for other in content.indices[others]]
            earlier = [other for other in earlier if facts[other].sha256 != facts[index].sha256]
            if earlier:
                yield index, earlier


def _differ_everywhere_or_nowhere(
    content: _Content, row: int, others: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(K,) whether what is left between an image and each other one is small, or spread over the image."""
    one, many = content.whole[row], content.whole[others]
    left = one - many * ((many @ one) / (many**2).sum(axis=1))[:, None]
    peak, mean = np.abs(left).max(axis=1), np.sqrt((left**2).mean(axis=1))
    in_levels = peak * np.minimum(content.contrast[row], content.contrast[others])
    return (in_levels <= MOST_DIFFERENCE) | (peak <= MOST_PEAK * mean)


def _compare_content(facts: Sequence[ImageFacts]) -> _Content:
    """What can be compared of the decoded images."""
    decoded = np.array([index for index, fact in enumerate(facts) if fact.thumbnail.size], dtype=np.int64)
    if not len(decoded):
        nothing = np.zeros((0, 1), dtype=np.float32)
        return _Content(indices=decoded, whole=nothing, own=nothing, contrast=nothing[:, 0])
    gray = np.stack([facts[index].thumbnail.ravel() for index in decoded])
    contrast = gray.std(axis=1)
    whole = (gray - gray.mean(axis=1, keepdims=True)) / np.maximum(contrast, 1e-6)[:, None]
    own = whole - whole.mean(axis=0) if len(decoded) >= LEAST_FOR_BACKGROUND else whole
    usable = np.sqrt((own**2).mean(axis=1)) * contrast >= LEAST_DETAIL
    own = own[usable] / np.linalg.norm(own[usable], axis=1, keepdims=True)
    return _Content(indices=decoded[usable], whole=whole[usable], own=own, contrast=contrast[usable])


def _one_elsewhere(index: int, earlier: Sequence[int], split_of: Sequence[str]) -> int:
    return next((other for other in earlier if split_of[other] != split_of[index]), earlier[0])
