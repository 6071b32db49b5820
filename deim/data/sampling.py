"""The order of the training images in each epoch; rare classes can come more often than others."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deim.config.checks import check
from deim.data.formats.split import CocoSplit
from deim.data.images.tiling import TiledSplit, tile_split


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSampling:
    """Draws every training image once per epoch."""

    type: Literal["uniform"] = "uniform"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatFactorSampling:
    """Draws images of a rare class sqrt(threshold / share of the images with the class) times per epoch."""

    type: Literal["repeat_factor"]
    threshold: float
    """Images of classes on a smaller share of the training images are repeated; in (0, 1]."""

    def __post_init__(self) -> None:
        is_wrong = not 0 < self.threshold <= 1
        check([(is_wrong, f"threshold: got {self.threshold:g}, needs (0, 1]")])


Item = tuple[int, ...]
"""(epoch, index) of an image, or tile; repeated images of an epoch add the number of the repetition, from
1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRequest:
    """A batch to load."""

    epoch: int
    number: int
    """Number of the batch in its epoch, from 0."""
    items: tuple[Item, ...]
    """All items of the batch, of all processes together."""
    part: slice = field(default_factory=lambda: slice(None))
    """Positions in `items` that this process loads."""


class BatchSource(Protocol):
    """Batches of one epoch after another."""

    def __len__(self) -> int: ...

    def requests(self, epoch: int, *, first_batch: int = 0) -> Iterator[BatchRequest]:
        """Yield the batches of an epoch, without the first `first_batch`."""


@dataclass(frozen=True, slots=True)
class FixedBatches:
    """Given batches, the same in every epoch."""

    batches: Sequence[Sequence[Item]]

    def __len__(self) -> int:
        return len(self.batches)

    def requests(self, epoch: int = 0, *, first_batch: int = 0) -> Iterator[BatchRequest]:
        """Yield the batches, without the first `first_batch`."""
        for number in range(first_batch, len(self)):
            yield BatchRequest(epoch=epoch, number=number, items=tuple(self.batches[number]))


@dataclass(frozen=True)
class EpochSampler:
    """Batches that visit every image once per epoch, in a random order that depends on seed and epoch only.

    With repeat factors an image can come more than once; the length of an epoch is always the same.

    Several processes share each batch in equal parts. The last batch of an epoch may be smaller. If it cannot
    be shared equally, fewer images than there are processes are skipped, different ones in each epoch.
    """

    num_images: int
    """Number of images of the split, or tiles, which count as images here."""
    batch_size: int
    """Images of a batch of all processes together; a multiple of `num_ranks`."""
    _: KW_ONLY
    seed: int
    rank: int = 0
    num_ranks: int = 1
    repeat_factors: NDArray[np.float64] | None = None
    """(num_images,) from `compute_repeat_factors`; None draws each image once."""

    @cached_property
    def num_draws(self) -> int:
        """Number of images of an epoch of all processes together."""
        length = self.num_images if self.repeat_factors is None else epoch_length(self.repeat_factors)
        return length - length % self.batch_size % self.num_ranks

    def __len__(self) -> int:
        """Return the number of batches, which are optimizer steps, of an epoch."""
        return -(-self.num_draws // self.batch_size)

    def requests(self, epoch: int, *, first_batch: int = 0) -> Iterator[BatchRequest]:
        """Yield the batches of an epoch, without the first ones, which an interrupted run has seen."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.repeat_factors is None:
            order = rng.permutation(self.num_images)
        else:
            copies = draw_copies(self.repeat_factors, rng=rng)
            order = rng.permutation(np.repeat(np.arange(len(copies)), copies))
        repetitions = count_repetitions(order)
        for number in range(first_batch, len(self)):
            start = number * self.batch_size
            part = slice(start, min(start + self.batch_size, self.num_draws))
            pairs = zip(order[part].tolist(), repetitions[part].tolist(), strict=True)
            items = tuple((epoch, index, count) if count else (epoch, index) for index, count in pairs)
            rank_part = slice(self.rank, None, self.num_ranks)
            yield BatchRequest(epoch=epoch, number=number, items=items, part=rank_part)


def compute_repeat_factors(
    split: CocoSplit, threshold: float, *, tiles: TiledSplit | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the repeat factors of a split: max(1, sqrt(threshold / share of the images with the class)).

    Crowd regions do not count, because training does not see them. Given tiles, each counts as an image.

    Returns:
        The mean number of draws per epoch, at least 1: (N,) of the images, the maximum of their classes, and
        (C,) of the classes in the order of the split's categories.

    Source:
        Gupta et al., LVIS, CVPR 2019, appendix on repeat factor sampling (arXiv:1908.03195).
    """
    tiles = tiles or tile_split(split, None)
    images = np.repeat(np.arange(len(tiles)), tiles.num_boxes)
    categories = split.box_category_ids[tiles.rows]
    by_class = np.ones(len(split.category_ids))
    by_image = np.ones(len(tiles))
    for index, category_id in enumerate(split.category_ids):
        shows = np.unique(images[categories == category_id])
        if len(shows):
            by_class[index] = max(1.0, (threshold * len(tiles) / len(shows)) ** 0.5)
            by_image[shows] = np.maximum(by_image[shows], by_class[index])
    return by_image, by_class


def epoch_length(repeat_factors: NDArray[np.float64]) -> int:
    """Return the number of draws of an epoch: the sum of the factors, rounded up."""
    return math.ceil(math.fsum(repeat_factors.tolist()))


def draw_copies(repeat_factors: NDArray[np.float64], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw how often each image comes in an epoch: its factor, rounded up or down at random.

    Every epoch has the same number of draws, `epoch_length`, so that the schedule of a run is known in
    advance. The factors are scaled to that sum, by less than 1 / length, and laid end to end in a random
    order. The number of integers in an image's interval, from a random start, is its number of copies.

    Returns:
        (N,) at least 1, of sum `epoch_length`.
    """
    length = epoch_length(repeat_factors)
    order = rng.permutation(len(repeat_factors))
    ends = np.cumsum(repeat_factors[order])
    ends *= length / ends[-1]
    marks = np.floor(ends + rng.random())
    marks[-1] = length
    copies = np.empty(len(order), dtype=np.int64)
    copies[order] = np.diff(marks, prepend=0.0)
    return copies


def count_repetitions(drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (L,) how often each of (L,) entries has come before."""
    by_value = np.argsort(drawn, kind="stable")
    starts = np.flatnonzero(np.diff(drawn[by_value], prepend=-1))
    lengths = np.diff(starts, append=len(drawn))
    repetitions = np.empty(len(drawn), dtype=np.int64)
    repetitions[by_value] = np.arange(len(drawn)) - np.repeat(starts, lengths)
    return repetitions
