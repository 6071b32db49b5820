"""Tiles: which parts of an image become inputs of their own, and which boxes each of them is trained on.

    size of an image → windows → each resized to the network input, placed in the original

An image that fits into a tile is its own only tile and is treated as if there were none.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deim.config.checks import below, check
from deim.data.formats.coco import CocoSplit
from deim.structures import Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class TilesOptions:
    """Square tiles of the images, each an input of its own, in training, validation and prediction alike."""

    size: int
    """Side of a tile in pixels of the original image, at least 32; a shorter side of an image stays whole."""
    overlap: float = 0.2
    """Share of a tile that it has in common with the next, at least, in [0, 0.9]; as wide as most objects.
    With 0, an oblique scratch stays in pieces, and objects face to face within 1 % of a tile of its border
    become one."""
    keep_fraction: float = 0.5
    """Share of a box that a tile must hold to be trained on it, in (0, 1]; of a box that is larger than a
    tile, the share of what a tile can hold."""

    def __post_init__(self) -> None:
        check(
            [
                *below(32, size=self.size),
                (not 0 <= self.overlap <= 0.9, f"overlap: got {self.overlap:g}, needs [0, 0.9]"),
                (
                    not 0 < self.keep_fraction <= 1,
                    f"keep_fraction: got {self.keep_fraction:g}, needs (0, 1]",
                ),
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
    """(T, 4) in pixels of the original."""
    is_part: NDArray[np.bool_]
    """(T,) true where a tile is a part of its image."""
    first_tile: NDArray[np.int64]
    """(I + 1,) image i has the tiles first_tile[i] to first_tile[i + 1] - 1."""
    first_row: NDArray[np.int64]
    """(T + 1,) tile t is trained on the boxes rows[first_row[t] : first_row[t + 1]]."""
    rows: NDArray[np.int64]
    """(K,) positions of boxes in their split, crowds left out; a box may be on several tiles."""
    num_lost: int
    """Boxes that are on no tile."""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_with_boxes(self) -> int:
        """Tiles with a box."""
        return int((np.diff(self.first_row) > 0).sum())

    @property
    def most_boxes(self) -> int:
        """Boxes of the fullest tile."""
        return int(np.diff(self.first_row).max(initial=0))

    def window(self, tile: int) -> WindowXyxy | None:
        """The part of its image that a tile shows; None if it shows all of it."""
        if not self.is_part[tile]:
            return None
        left, top, right, bottom = self.windows_xyxy[tile].tolist()
        return left, top, right, bottom

    def rows_of(self, tile: int) -> NDArray[np.int64]:
        """Positions of the boxes of a tile in their split."""
        return self.rows[self.first_row[tile] : self.first_row[tile + 1]]

    def owners(self) -> NDArray[np.int64]:
        """(K,) the tile of each of `rows`."""
        return np.repeat(np.arange(len(self)), np.diff(self.first_row))


def compute_windows(size_hw: tuple[int, int], options: TilesOptions) -> NDArray[np.int64]:
    """The tiles of an image: as few as cover it with the overlap asked for, evenly spread.

    Args:
        size_hw: Size of the image, in pixels.
        options: How it is cut.

    Returns:
        (n, 4) xyxy, row by row; all of one size, which is that of the image along a side that is no longer
        than a tile.
    """
    tops, lefts = (_starts(side, options) for side in size_hw)
    height, width = (min(side, options.size) for side in size_hw)
    top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
    return np.stack([left, top, left + width, top + height], axis=1)


def _starts(side: int, options: TilesOptions) -> NDArray[np.int64]:
    """Where tiles start along a side of an image."""
    if side <= options.size:
        return np.zeros(1, dtype=np.int64)
    # The small number mends what binary fractions lack: 100 · (1 - 0.9) is a little under 10.
    largest_step = max(1, int(options.size * (1 - options.overlap) + 1e-6))
    room = side - options.size
    steps = -(-room // largest_step)
    return np.arange(steps + 1, dtype=np.int64) * room // steps


def tile_split(split: CocoSplit, options: TilesOptions | None) -> TiledSplit:
    """Cut the images of a split and find the boxes of each tile.

    A tile is trained on a box if it holds `keep_fraction` of its area, or, where the box is longer than a
    tile, of the area that a tile can hold of it: else a scratch across five tiles would be on none.

    Args:
        split: Any split.
        options: How its images are cut; None leaves them whole.
    """
    if options is None:
        return _uncut(split)
    windows = [compute_windows((height, width), options) for height, width in split.sizes_hw.tolist()]
    counts = np.array([len(of_image) for of_image in windows], dtype=np.int64)
    rows: list[NDArray[np.int64]] = []
    num_lost = 0
    for index, of_image in enumerate(windows):
        own = np.arange(split.first_box[index], split.first_box[index + 1])
        own = own[~split.is_crowd[own]]
        holds = _holds(split, index, own, of_image, options)
        num_lost += int((~holds.any(axis=0)).sum())
        rows += [own[of_tile] for of_tile in holds]
    lengths = np.array([len(of_tile) for of_tile in rows], dtype=np.int64)
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


def _holds(
    split: CocoSplit, index: int, own: NDArray[np.int64], windows: NDArray[np.int64], options: TilesOptions
) -> NDArray[np.bool_]:
    """(tiles, boxes) whether a tile of an image is trained on a box of it."""
    if len(windows) == 1:
        return np.ones((1, len(own)), dtype=np.bool_)
    size_wh = split.sizes_hw[index, ::-1]
    low = np.clip(split.boxes_xywh[own, :2], 0, size_wh)
    high = np.clip(split.boxes_xywh[own, :2] + split.boxes_xywh[own, 2:], 0, size_wh)
    shown_low = np.maximum(low, windows[:, None, :2])
    shown_high = np.minimum(high, windows[:, None, 2:])
    shown = np.maximum(shown_high - shown_low, 0).prod(axis=-1)
    largest = np.minimum(high - low, windows[0, 2:] - windows[0, :2]).prod(axis=-1)
    # What is held whole has the very same sides, so that rounding loses no box.
    held: NDArray[np.bool_] = (shown > 0) & (shown >= options.keep_fraction * largest)
    return held


def describe_tiles(tiles: TiledSplit, *, size: int, input_size_hw: tuple[int, int]) -> str:
    """What becomes of the images of a split, in words.

    Args:
        tiles: Of the split.
        size: Side of a tile, in pixels of the original.
        input_size_hw: Size of the network input, in pixels.
    """
    return (
        f"{len(tiles.first_tile) - 1} images become {len(tiles)} tiles of at most {size}x{size} px, "
        f"{tiles.num_with_boxes} with boxes, at {input_size_hw[1]}x{input_size_hw[0]} px in the network"
    )


def place_tile(placement: Placement, window_xyxy: WindowXyxy, orig_size_hw: tuple[int, int]) -> Placement:
    """Turn the placement of an input in its tile into that in the whole image.

    Args:
        placement: From `fit_to_input`, of the tile as if it were an image.
        window_xyxy: The tile, in pixels of the original.
        orig_size_hw: Size of the original, in pixels.
    """
    shift_y, shift_x = placement.shift_yx
    return replace(
        placement,
        orig_size_hw=orig_size_hw,
        shift_yx=(shift_y + window_xyxy[1], shift_x + window_xyxy[0]),
        tile_xyxy=window_xyxy,
    )
