"""Division of a dataset into training, validation and test data: every class in each, no group in two."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from deim.curation.duplicates import find_copies
from deim.curation.scan import ImageFacts
from deim.data.formats.names import SPLITS
from deim.data.formats.split import CocoSplit
from deim.errors import DataError
from deim.report.tables import format_table

PASSES = 10
"""Maximum number of rounds of moving single groups; two or three usually suffice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Division:
    """A dataset with the new split of each image."""

    pool: CocoSplit
    """All images, sorted by path."""
    names: tuple[str, ...]
    """Name of each image in the new dataset: its file name, or its path where names are not unique."""
    group_of: NDArray[np.int64]
    """(I,) number of the group of each image; copies of an image are in one group."""
    split_of: NDArray[np.int64]
    """(I,) position in `SPLITS`."""
    num_bound: int
    """Number of images that belong to a group only because they are copies of another image."""
    empty: tuple[str, ...]
    """New splits with a share but no image."""

    def indices(self, name: str) -> NDArray[np.int64]:
        """Return the positions of the images of a new split, in the order of the pool."""
        return np.flatnonzero(self.split_of == SPLITS.index(name))

    def splits(self) -> dict[str, CocoSplit]:
        """Return the new splits that have images."""
        parts = {name: take_images(self.pool, self.indices(name)) for name in SPLITS}
        return {name: replace(part, name=name) for name, part in parts.items() if len(part)}

    def new_names(self) -> dict[str, list[str]]:
        """Return the new name of each image of each split of `splits`."""
        return {name: [self.names[index] for index in self.indices(name)] for name in self.splits()}


def pool_splits(splits: Mapping[str, CocoSplit]) -> tuple[CocoSplit, tuple[str, ...]]:
    """Merge splits with the same classes.

    Returns:
        The pool, sorted by path, whose `image_dir` is the common parent of all image folders; and the name of
        each image in the files, which images of two splits may share. Image ids are kept if they are unique,
        otherwise numbered from 1.
    """
    parts = list(splits.values())
    image_dir = Path(os.path.commonpath([split.image_dir.absolute() for split in parts]))
    paths = [split.image_path(index).absolute() for split in parts for index in range(len(split))]
    names = [name for split in parts for name in split.file_names]
    sizes = np.concatenate([np.diff(split.first_box) for split in parts])
    ids = np.concatenate([split.image_ids for split in parts])
    long_names = [Path(os.path.relpath(path, image_dir)).as_posix() for path in paths]
    order = np.argsort(np.array(long_names), kind="stable")
    if len(set(ids.tolist())) < len(ids):
        ids = np.argsort(order, kind="stable") + 1
    merged = replace(
        parts[0],
        image_dir=image_dir,
        image_ids=ids,
        file_names=tuple(long_names),
        sizes_hw=np.concatenate([split.sizes_hw for split in parts]),
        first_box=np.cumsum([0, *sizes]),
        boxes_xywh=np.concatenate([split.boxes_xywh for split in parts]),
        box_category_ids=np.concatenate([split.box_category_ids for split in parts]),
        areas=np.concatenate([split.areas for split in parts]),
        is_crowd=np.concatenate([split.is_crowd for split in parts]),
    )
    return take_images(merged, order), tuple(names[index] for index in order)


def take_images(split: CocoSplit, indices: NDArray[np.int64]) -> CocoSplit:
    """Return the images of a split at (K,) positions, in their order, with their annotations."""
    counts = np.diff(split.first_box)[indices]
    rows = [np.arange(split.first_box[index], split.first_box[index + 1]) for index in indices]
    taken = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return replace(
        split,
        image_ids=split.image_ids[indices],
        file_names=tuple(split.file_names[index] for index in indices),
        sizes_hw=split.sizes_hw[indices],
        first_box=np.cumsum([0, *counts]),
        boxes_xywh=split.boxes_xywh[taken],
        box_category_ids=split.box_category_ids[taken],
        areas=split.areas[taken],
        is_crowd=split.is_crowd[taken],
    )


def divide(
    pool: CocoSplit,
    names: Sequence[str],
    *,
    facts: Sequence[ImageFacts],
    groups: Sequence[str] | None,
    ratios: Sequence[float],
    seed: int,
) -> Division:
    """Assign every image to a new split.

    Args:
        pool: All images.
        names: Name of each image in the files.
        facts: Facts about each image, decoded; copies of an image are bound to its group.
        groups: Group of each image; None makes a group of each image.
        ratios: Shares of training, validation and test data, at least 0, of any sum.
        seed: Seed of random choices between equals.

    Raises:
        DataError: If a ratio is negative or not finite, that of training is 0, or training or validation data
            have a share but would get no image.
    """
    shown = " ".join(f"{ratio:g}" for ratio in ratios)
    is_finite = math.isfinite(sum(ratios))
    if len(ratios) != len(SPLITS) or not is_finite or min(ratios) < 0 or ratios[0] <= 0:
        raise DataError(
            f"--ratios: got {shown}. Give three numbers from 0 for train, val and test, such as 80 10 10; "
            f"the first must be above 0."
        )
    group_names = np.arange(len(pool)) if groups is None else np.array(groups)
    requested = np.unique(group_names, return_inverse=True)[1]
    copies = find_copies(facts)
    bound = _join(requested, copies)
    features = _features(pool)
    group_features = np.zeros((int(bound.max()) + 1, features.shape[1]))
    np.add.at(group_features, bound, features)
    split_of_group = assign_groups(group_features, np.array(ratios, dtype=float), seed=seed)
    filled = set(split_of_group.tolist())
    empty = tuple(name for index, name in enumerate(SPLITS) if ratios[index] > 0 and index not in filled)
    lacking = " and ".join(name for name in empty if name != "test")
    if lacking:
        remedy = "give val a ratio of 0" if lacking == "val" else "give train a larger ratio"
        raise DataError(
            f"--ratios: got {shown}, but {lacking} would get no image (groups: "
            f"{len(group_features)}, with all copies of an image in one). Make smaller groups with a finer "
            f"--group-regex, add images, or {remedy}."
        )
    return Division(
        pool=pool,
        names=tuple(names) if len(set(names)) == len(names) else pool.file_names,
        group_of=bound,
        split_of=split_of_group[bound],
        num_bound=len({index for index, earlier in copies if requested[index] != requested[earlier]}),
        empty=empty,
    )


def assign_groups(
    features: NDArray[np.float64], ratios: NDArray[np.float64], *, seed: int
) -> NDArray[np.int64]:
    """Choose a split for each group so that each feature is distributed by the ratios.

    The feature with the fewest unassigned images comes first, its largest group first, each into the split
    that lacks most of it. If a feature has no more groups left than there are splits without it, only those
    splits get it, so that a class of three groups is in all three splits. Then single groups are moved while
    that improves the result.

    Args:
        features: (G, F) number of images of each group with each feature; the last one counts all images.
        ratios: (S,) share of each split, of any sum; a split with 0 gets nothing.
        seed: Seed of the order of groups of the same size.

    Returns:
        (G,) position of the split.

    Source:
        Iterative stratification, Sechidis et al., ECML PKDD 2011, applied to groups and with a minimum count.
    """
    shares = ratios / ratios.sum()
    lacking = shares[:, None] * features.sum(axis=0)
    is_open = np.ones(len(features), dtype=bool)
    held = np.zeros((len(shares), features.shape[1]))
    chosen = np.zeros(len(features), dtype=np.int64)
    priority = np.random.default_rng(seed).permutation(len(features))
    while is_open.any():
        left = features[is_open].sum(axis=0)
        left[-1] = np.inf if (left[:-1] > 0).any() else left[-1]
        feature = int(np.where(left > 0, left, np.inf).argmin())
        members = np.flatnonzero(is_open & (features[:, feature] > 0))
        members = members[np.lexsort((priority[members], -features[members, feature]))]
        for place, group in enumerate(members):
            is_allowed = shares > 0
            is_without = is_allowed & (held[:, feature] == 0)
            if 0 < len(members) - place <= is_without.sum():
                is_allowed = is_without
            demand = np.where(is_allowed, lacking[:, feature], -np.inf)
            equal = np.flatnonzero(demand >= demand.max() - 1e-9)
            split = int(equal[lacking[equal, -1].argmax()])
            chosen[group] = split
            held[split] += features[group]
            lacking[split] -= features[group]
        is_open[members] = False
    _improve(chosen, features, shares, order=np.argsort(priority))
    return chosen


def _improve(
    chosen: NDArray[np.int64],
    features: NDArray[np.float64],
    shares: NDArray[np.float64],
    *,
    order: NDArray[np.int64],
) -> None:
    """Move groups, in place, while that brings the counts closer to the shares; no split loses a feature."""
    expected = shares[:, None] * features.sum(axis=0)
    held = np.zeros_like(expected)
    np.add.at(held, chosen, features)
    weights = 1 / np.maximum(expected, 1)
    for _ in range(PASSES):
        num_moved = 0
        for group in order:
            now, content = chosen[group], features[group]
            if ((held[now] > 0) & (held[now] - content <= 0)).any():
                continue
            excess = held - expected
            loss = (weights * ((excess + content) ** 2 - excess**2)).sum(axis=1)
            benefit = (weights[now] * (excess[now] ** 2 - (excess[now] - content) ** 2)).sum()
            loss[now] = np.inf
            loss[shares == 0] = np.inf
            best = int(loss.argmin())
            if loss[best] < benefit - 1e-9:
                chosen[group] = best
                held[now] -= content
                held[best] += content
                num_moved += 1
        if not num_moved:
            return


def describe_division(division: Division) -> list[str]:
    """Return images, groups and boxes of each new split, and what is missing, line by line."""
    splits = division.splits()
    lines = []
    if division.num_bound:
        lines.append(f"{division.num_bound} images are bound to the group of their copy")
    num_groups = int(division.group_of.max()) + 1
    lines += [f"{name}: no image (groups: {num_groups})" for name in division.empty]
    columns = [["images", "share", "groups", "without boxes", *division.pool.class_names]]
    for name, split in splits.items():
        boxes = Counter(split.box_category_ids[~split.is_crowd].tolist())
        counts = [boxes[number] for number in split.category_ids]
        groups = len(np.unique(division.group_of[division.indices(name)]))
        share = f"{100 * len(split) / len(division.pool):.1f} %"
        columns.append([str(len(split)), share, str(groups), str(split.num_empty), *map(str, counts)])
        lines += [
            f"{name}: no box of class {label!r}; it has too few groups, or they hold other rare classes"
            for label, count in zip(split.class_names, counts, strict=True)
            if not count
        ]
    table = format_table(["", *splits], list(zip(*columns, strict=True)))
    return [*table.splitlines(), *lines]


def _features(pool: CocoSplit) -> NDArray[np.float64]:
    """Return (I, C + 2): whether an image has each class, whether it has no box, and 1."""
    features = np.zeros((len(pool), len(pool.category_ids) + 2))
    owner = np.repeat(np.arange(len(pool)), np.diff(pool.first_box))
    column = np.searchsorted(np.array(pool.category_ids), pool.box_category_ids)
    features[owner, column] = 1
    features[:, -2] = ~features[:, :-2].any(axis=1)
    features[:, -1] = 1
    return features


def _join(groups: NDArray[np.int64], pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return (I,) groups, numbered from 0, after merging the groups of each pair."""
    number = int(groups.max()) + 1
    first, second = groups[np.array(pairs, dtype=np.int64).reshape(-1, 2)].T
    links = coo_array((np.ones(len(first)), (first, second)), shape=(number, number))
    return connected_components(links, directed=False)[1].astype(np.int64)[groups]
