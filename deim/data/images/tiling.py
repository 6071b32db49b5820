"""Tiles: the parts of an image that become separate inputs, and the boxes that each of them is trained on.

An image that fits into a tile is its only tile and is treated as without tiles.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deim.config.checks import IMAGE_PX, check, outside
from deim.data.formats.split import CocoSplit
from deim.structures import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class TilesOptions:
    """Square tiles of the images, each a separate input, in training, validation and prediction."""

    size: int
    """Side of a tile in pixels of the original image, at least 32; a shorter side of an image is not cut."""
    overlap: float = 0.2
    """Minimum share of a tile that overlaps the next, in [0, 0.9]; as wide as most objects. With 0, an
    oblique scratch stays in pieces, and objects on both sides of a border, within 1 % of a tile, are
    merged."""
    keep_fraction: float = 0.5
    """Minimum share of a box inside a tile to train the tile on it, in (0, 1]; for a box that is larger than
    a tile, the share of what a tile can contain."""

    def __post_init__(self) -> None:
        keep = self.keep_fraction
        check(
            [
                *outside(32, IMAGE_PX, size=self.size),
                (not 0 <= self.overlap <= 0.9, f"overlap: got {self.overlap:g}, needs [0, 0.9]"),
                (not 0 < keep <= 1, f"keep_fraction: got {keep:g}, needs (0, 1]"),
            ]
        )


WindowXyxy = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the original image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TiledSplit:
    """The tiles of a split, image by image. T counts tiles, K boxes on tiles."""

    image: NDArray[np.int64]
    """(T,) position of the image in its split."""
    windows_xyxy: NDArray[np.int64]
    """(T, 4) xyxy in pixels of the original."""
    is_part: NDArray[np.bool_]
    """(T,) true where a tile is a part of its image."""
    first_tile: NDArray[np.int64]
    """(I + 1,) image i has the tiles first_tile[i] to first_tile[i + 1] - 1."""
    first_row: NDArray[np.int64]
    """(T + 1,) tile t is trained on the boxes rows[first_row[t] : first_row[t + 1]]."""
    rows: NDArray[np.int64]
    """(K,) positions of boxes in their split, without crowds; a box may be on several tiles."""
    num_lost: int
    """Number of boxes that are on no tile."""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_boxes(self) -> NDArray[np.int64]:
        """(T,) number of boxes on each tile."""
        return np.diff(self.first_row)

    def shown(self, tile: int) -> WindowXyxy:
        """Return what a tile shows of its image."""
        left, top, right, bottom = self.windows_xyxy[tile].tolist()
        return left, top, right, bottom

    def window(self, tile: int) -> WindowXyxy | None:
        """Return the part of its image that a tile shows; None if it shows all of it."""
        return self.shown(tile) if self.is_part[tile] else None

    def rows_of(self, tile: int) -> NDArray[np.int64]:
        """Return the positions of the boxes of a tile in their split."""
        return self.rows[self.first_row[tile] : self.first_row[tile + 1]]


def compute_windows(size_hw: tuple[int, int], options: TilesOptions) -> NDArray[np.int64]:
    """Compute the tiles of an image: the minimum number with the requested overlap, evenly spread.

    Returns:
        (n, 4) xyxy, row by row, all of the same size. A side of the image that is not longer than a tile is
        not cut.
    """
    tops, lefts = (_starts(side, options) for side in size_hw)
    height, width = (min(side, options.size) for side in size_hw)
    top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
    return np.stack([left, top, left + width, top + height], axis=1)


def _starts(side: int, options: TilesOptions) -> NDArray[np.int64]:
    """Return the starts of the tiles along a side of an image."""
    if side <= options.size:
        return np.zeros(1, dtype=np.int64)
    # The small number makes up for binary fractions: 100 · (1 - 0.9) is a little under 10.
    largest_step = max(1, int(options.size * (1 - options.overlap) + 1e-6))
    room = side - options.size
    steps = -(-room // largest_step)
    return np.arange(steps + 1, dtype=np.int64) * room // steps


def tile_split(split: CocoSplit, options: TilesOptions | None) -> TiledSplit:
    """Cut the images of a split and find the boxes of each tile.

    A tile is trained on a box if it contains `keep_fraction` of its area, or, where the box is longer than a
    tile, of the area that a tile can contain: otherwise a scratch across five tiles would be on none. Without
    options, images are not cut.
    """
    if options is None:
        return _uncut(split)
    windows = [compute_windows((height, width), options) for height, width in split.sizes_hw.tolist()]
    counts = np.array([len(part) for part in windows], dtype=np.int64)
    rows: list[NDArray[np.int64]] = []
    num_lost = 0
    for index, image_windows in enumerate(windows):
        boxes = np.arange(split.first_box[index], split.first_box[index + 1])
        boxes = boxes[~split.is_crowd[boxes]]
        contains = _contains(split, index, boxes, image_windows, options)
        num_lost += int((~contains.any(axis=0)).sum())
        rows += [boxes[is_inside] for is_inside in contains]
    lengths = np.array([len(tile_rows) for tile_rows in rows], dtype=np.int64)
    return TiledSplit(
        image=np.repeat(np.arange(len(split)), counts),
        windows_xyxy=np.concatenate(windows),
        is_part=np.repeat(counts > 1, counts),
        first_tile=np.concatenate([[0], np.cumsum(counts)]),
        first_row=np.concatenate([[0], np.cumsum(lengths)]),
        rows=np.concatenate(rows),
        num_lost=num_lost,
    )


def _uncut(split: CocoSplit) -> TiledSplit:
    zeros = np.zeros_like(split.sizes_hw)
    shown = np.concatenate([[0], np.cumsum(~split.is_crowd)])
    return TiledSplit(
        image=np.arange(len(split)),
        windows_xyxy=np.concatenate([zeros, split.sizes_hw[:, ::-1]], axis=1),
        is_part=np.zeros(len(split), dtype=np.bool_),
        first_tile=np.arange(len(split) + 1),
        first_row=shown[split.first_box],
        rows=np.flatnonzero(~split.is_crowd),
        num_lost=0,
    )


def _contains(
    split: CocoSplit, index: int, rows: NDArray[np.int64], windows: NDArray[np.int64], options: TilesOptions
) -> NDArray[np.bool_]:
    """Return (tiles, boxes): whether a tile of an image is trained on a box of it."""
    if len(windows) == 1:
        return np.ones((1, len(rows)), dtype=np.bool_)
    size_wh = split.sizes_hw[index, ::-1]
    low = np.clip(split.boxes_xywh[rows, :2], 0, size_wh)
    high = np.clip(split.boxes_xywh[rows, :2] + split.boxes_xywh[rows, 2:], 0, size_wh)
    shown_low = np.maximum(low, windows[:, None, :2])
    shown_high = np.minimum(high, windows[:, None, 2:])
    shown = np.maximum(shown_high - shown_low, 0).prod(axis=-1)
    largest = np.minimum(high - low, windows[0, 2:] - windows[0, :2]).prod(axis=-1)
    # A box that is completely inside has exactly the same sides, so that rounding loses no box.
    contains: NDArray[np.bool_] = (shown > 0) & (shown >= options.keep_fraction * largest)
    return contains


def place_tile(placement: Placement, window_xyxy: WindowXyxy, orig_size_hw: tuple[int, int]) -> Placement:
    """Turn the placement of an input in its tile into that in the whole image, all in pixels of it."""
    shift_y, shift_x = placement.shift_yx
    return replace(
        placement,
        orig_size_hw=orig_size_hw,
        shift_yx=(shift_y + window_xyxy[1], shift_x + window_xyxy[0]),
        tile_xyxy=window_xyxy,
    )
