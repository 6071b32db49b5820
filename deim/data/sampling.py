"""How often an epoch shows each image: rare classes more often than others, if asked for."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deim.config.checks import check
from deim.data.formats.coco import CocoSplit
from deim.data.images.tiling import TiledSplit, tile_split


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSampling:
    """Every training image comes once an epoch."""

    type: Literal["uniform"] = "uniform"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatFactorSampling:
    """Images of a rare class come sqrt(threshold / share of the images that show it) times an epoch."""

    type: Literal["repeat_factor"]
    threshold: float
    """Classes on a smaller share of the training images are repeated, in (0, 1]."""

    def __post_init__(self) -> None:
        is_wrong = not 0 < self.threshold <= 1
        check([(is_wrong, f"threshold: got {self.threshold:g}, needs (0, 1]")])


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatFactors:
    """How often classes and images come, in units of once an epoch."""

    of_classes: NDArray[np.float64]
    """(C,), at least 1, in the order of the split's categories."""
    of_images: NDArray[np.float64]
    """(N,), at least 1, of each image or tile: the largest of its classes."""


def compute_repeat_factors(
    split: CocoSplit, threshold: float, *, tiles: TiledSplit | None = None
) -> RepeatFactors:
    """Repeat factors of a split: max(1, sqrt(threshold / share of the images that show the class)).

    Crowd regions do not count: training does not see them.

    Args:
        split: Training data.
        threshold: Classes on a smaller share of the images are repeated; in (0, 1].
        tiles: Of the split: each counts as an image; None for whole images.

    Source:
        Gupta et al., LVIS, CVPR 2019, appendix on repeat factor sampling (arXiv:1908.03195).
    """
    tiles = tiles or tile_split(split, None)
    images, categories = tiles.owners(), split.box_category_ids[tiles.rows]
    of_classes = np.ones(len(split.category_ids))
    of_images = np.ones(len(tiles))
    for index, category_id in enumerate(split.category_ids):
        shows = np.unique(images[categories == category_id])
        if len(shows):
            of_classes[index] = max(1.0, (threshold * len(tiles) / len(shows)) ** 0.5)
            of_images[shows] = np.maximum(of_images[shows], of_classes[index])
    return RepeatFactors(of_classes=of_classes, of_images=of_images)


def epoch_length(repeat_factors: NDArray[np.float64]) -> int:
    """Images of an epoch, copies counted: the sum of the factors, rounded up."""
    return math.ceil(math.fsum(repeat_factors.tolist()))


def draw_copies(repeat_factors: NDArray[np.float64], *, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each image comes in an epoch: its factor, rounded up or down by lot.

    Every epoch has the same number of images, `epoch_length`, so that the schedule of a run is known ahead:
    the factors are stretched to that sum, by less than 1 / length, and laid end to end in a random order; as
    many whole numbers as fall into an image's part, from a random start, are its copies.

    Args:
        repeat_factors: (N,), at least 1.
        rng: Source of all draws.

    Returns:
        (N,), at least 1, of sum `epoch_length`.
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


def count_copies(drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """(L,) how often each of (L,) entries has come before."""
    by_value = np.argsort(drawn, kind="stable")
    starts = np.flatnonzero(np.diff(drawn[by_value], prepend=-1))
    lengths = np.diff(starts, append=len(drawn))
    found = np.empty(len(drawn), dtype=np.int64)
    found[by_value] = np.arange(len(drawn)) - np.repeat(starts, lengths)
    return found
