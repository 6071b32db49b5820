"""What a dataset is like: classes, box sizes at the training size, positions, brightness; and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from deim.data.formats.coco import CocoSplit
from deim.data.images.scan import ImageFacts

PERCENTILES: Final = (5, 25, 50, 75, 95)
SMALL_SIDE_PX = 8.0
"""A median box below it is hard to learn: one cell of the finest feature map."""
FEW_BOXES = 30
"""A class with fewer cannot be told from chance."""
UNEVEN_BRIGHTNESS = 20.0
"""Difference of the medians of two splits, in gray levels of 255."""
SIZE_STEP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxTable:
    """All boxes of a dataset but crowd regions, clipped to their images. A counts boxes."""

    split_index: NDArray[np.int64]
    """(A,) position of the split."""
    image_index: NDArray[np.int64]
    """(A,) position of the image in its split."""
    class_index: NDArray[np.int64]
    """(A,) position in the list of classes."""
    sides_wh: NDArray[np.float64]
    """(A, 2) width and height in pixels at the training size, even of boxes that are larger than a tile."""
    original_sides: NDArray[np.float64]
    """(A,) square root of the area in the original image, in pixels."""
    centers_xy: NDArray[np.float64]
    """(A, 2) center as fractions of the image."""
    aspect_ratios: NDArray[np.float64]
    """(A,) width over height in the original image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStats:
    """Numbers of a dataset; the tables are what its charts are drawn from."""

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    input_size_hw: tuple[int, int]
    tile_size: int | None
    """Side of the tiles that become that size, in pixels; None for whole images."""
    boxes: BoxTable
    boxes_per_image: tuple[NDArray[np.int64], ...]
    """Number of boxes of each image, a split each."""
    brightness: tuple[NDArray[np.float64], ...]
    """Mean gray of each image that can be decoded, in [0, 255], a split each."""
    is_decoded: tuple[NDArray[np.bool_], ...]
    """Whether each image can be decoded, a split each."""
    image_sizes_hw: NDArray[np.int64]
    """(I, 2) of all images, in pixels."""

    def counts(self) -> NDArray[np.int64]:
        """(splits, classes) boxes."""
        table = np.zeros((len(self.split_names), len(self.class_names)), dtype=np.int64)
        np.add.at(table, (self.boxes.split_index, self.boxes.class_index), 1)
        return table

    def box_sides(self) -> NDArray[np.float64]:
        """(A,) square root of the area at the training size, in pixels."""
        return np.sqrt(self.boxes.sides_wh.prod(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """The numbers for a JSON file."""
        counts, sides = self.counts(), self.box_sides()
        return {
            "input_size_hw": list(self.input_size_hw),
            "tile_size": self.tile_size,
            "images": {
                name: len(of_split)
                for name, of_split in zip(self.split_names, self.boxes_per_image, strict=True)
            },
            "images_without_boxes": {
                name: int((of_split == 0).sum())
                for name, of_split in zip(self.split_names, self.boxes_per_image, strict=True)
            },
            "images_not_decoded": {
                name: int((~of_split).sum())
                for name, of_split in zip(self.split_names, self.is_decoded, strict=True)
            },
            "boxes": {
                split: dict(zip(self.class_names, row.tolist(), strict=True))
                for split, row in zip(self.split_names, counts, strict=True)
            },
            "box_side_px": _percentiles(sides),
            "box_side_px_by_class": {
                name: _percentiles(sides[self.boxes.class_index == index])
                for index, name in enumerate(self.class_names)
            },
            "aspect_ratio": _percentiles(self.boxes.aspect_ratios),
            "boxes_per_image": {
                name: _percentiles(of_split)
                for name, of_split in zip(self.split_names, self.boxes_per_image, strict=True)
            },
            "brightness": {
                name: _percentiles(of_split)
                for name, of_split in zip(self.split_names, self.brightness, strict=True)
            },
            "image_height_px": _percentiles(self.image_sizes_hw[:, 0]),
            "image_width_px": _percentiles(self.image_sizes_hw[:, 1]),
            "advice": advise(self),
        }


def compute_stats(
    splits: Mapping[str, CocoSplit],
    facts: Mapping[str, Sequence[ImageFacts]],
    *,
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
    tile_size: int | None = None,
) -> DatasetStats:
    """Measure a dataset.

    Args:
        splits: All of one set of classes.
        facts: Of each image of each split, decoded.
        input_size_hw: Training size, in pixels.
        resize: How an image becomes that size.
        tile_size: Side of the tiles that become that size instead, in pixels; None for whole images.
    """
    tables = [
        _boxes_of(split, position, input_size_hw, resize, tile_size)
        for position, split in enumerate(splits.values())
    ]
    first = next(iter(splits.values()))
    return DatasetStats(
        class_names=tuple(map(legible, first.class_names)),
        split_names=tuple(map(legible, splits)),
        input_size_hw=input_size_hw,
        tile_size=tile_size,
        boxes=BoxTable(
            **{
                name: np.concatenate([getattr(table, name) for table in tables])
                for name in BoxTable.__dataclass_fields__
            }
        ),
        boxes_per_image=tuple(
            np.bincount(table.image_index, minlength=len(split))
            for table, split in zip(tables, splits.values(), strict=True)
        ),
        brightness=tuple(
            np.array([fact.brightness for fact in facts[name] if fact.thumbnail.size]) for name in splits
        ),
        is_decoded=tuple(
            np.array([fact.thumbnail.size > 0 for fact in facts[name]], dtype=bool) for name in splits
        ),
        image_sizes_hw=np.concatenate([split.sizes_hw for split in splits.values()]),
    )


def legible(name: str) -> str:
    """The name with a question mark for what is not Unicode, which can be neither drawn nor written."""
    return name.encode("utf-8", "replace").decode()


def advise(stats: DatasetStats) -> list[str]:
    """What the numbers suggest to do, a sentence each; none if nothing stands out.

    Args:
        stats: Of all splits.
    """
    sides, counts = stats.box_sides(), stats.counts()
    median = float(np.median(sides)) if len(sides) else SMALL_SIDE_PX
    lines = []
    if median < SMALL_SIDE_PX:
        height, width = stats.input_size_hw
        factor = SMALL_SIDE_PX / median
        larger = [int(-(-side * factor // SIZE_STEP) * SIZE_STEP) for side in (width, height)]
        of_tiles = "" if stats.tile_size is None else f" in tiles of {stats.tile_size} px"
        lines.append(
            f"The median box has a side of {median:.1f} px at {width}x{height}{of_tiles}, under "
            f"{SMALL_SIDE_PX:g} px. Use a larger size, {larger[0]}x{larger[1]} or more, or "
            f"{_tile_advice(stats)}."
        )
    in_train = stats.split_names.index("train") if "train" in stats.split_names else None
    for index, name in enumerate(stats.class_names):
        of_class = counts[:, index]
        if of_class.sum() < FEW_BOXES:
            lines.append(
                f"Class {name!r} has {of_class.sum()} boxes in all, under {FEW_BOXES}. Collect more, or join "
                f"it with a class that is treated alike."
            )
        where = [split for split, number in zip(stats.split_names, of_class, strict=True) if number]
        if len(where) == 1 < len(stats.split_names):
            lines.append(
                f"Class {name!r} has boxes in {where[0]} only. Split again with tools/data.py split."
            )
        elif in_train is not None and where and not of_class[in_train]:
            lines.append(f"Class {name!r} has no box in train and cannot be learned.")
    medians = {
        name: float(np.median(of_split))
        for name, of_split in zip(stats.split_names, stats.brightness, strict=True)
        if len(of_split)
    }
    if medians and max(medians.values()) - min(medians.values()) > UNEVEN_BRIGHTNESS:
        shown = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
        lines.append(f"The median brightness differs between splits: {shown}. Are they of one camera?")
    return lines


def _tile_advice(stats: DatasetStats) -> str:
    """The tiles in which the median box is large enough."""
    side = float(np.median(stats.boxes.original_sides))
    size = int(min(stats.input_size_hw) * side / SMALL_SIDE_PX // SIZE_STEP * SIZE_STEP)
    if size < SIZE_STEP:
        return "photographs from nearer by, since no tiles are small enough"
    which = "cut the images into tiles" if stats.tile_size is None else "smaller tiles"
    return f"{which}, data.tiles.size={size} or less"


def describe_stats(stats: DatasetStats) -> list[str]:
    """The numbers for the terminal, line by line."""
    numbers = stats.to_dict()
    rows = [["class", *stats.split_names, "side px 5 %", "50 %", "95 %"]]
    for index, name in enumerate(stats.class_names):
        side = numbers["box_side_px_by_class"][name]
        shown = [f"{side[key]:.1f}" if side else "-" for key in ("5", "50", "95")]
        rows.append([name, *map(str, stats.counts()[:, index]), *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.append("")
    for name in stats.split_names:
        per_image, gray = numbers["boxes_per_image"][name], numbers["brightness"][name]
        lines.append(
            f"{name}: {numbers['images'][name]} images, {numbers['images_without_boxes'][name]} without "
            f"boxes; boxes an image: median {per_image['50']:.0f}, 95 % up to {per_image['95']:.0f}; "
            f"brightness: median {gray['50']:.0f} of 255"
            if gray
            else f"{name}: {numbers['images'][name]} images, none of which can be decoded"
        )
    ratio = numbers["aspect_ratio"]
    if ratio:
        lines.append(f"width over height of a box: median {ratio['50']:.2f}, 5 to 95 %: {_span(ratio)}")
    height, width = numbers["image_height_px"], numbers["image_width_px"]
    lines.append(f"images: {width['50']:.0f}x{height['50']:.0f} px (medians)")
    damaged = sum(numbers["images_not_decoded"].values())
    if damaged:
        lines.append(
            f"images that cannot be decoded, left out of brightness and samples: {damaged} of "
            f"{len(stats.image_sizes_hw)}; tools/data.py check names them"
        )
    return [*lines, "", *(numbers["advice"] or ["Nothing stands out."])]


def _span(percentiles: Mapping[str, float]) -> str:
    return f"{percentiles['5']:.2f} to {percentiles['95']:.2f}"


def _percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.percentile(values, PERCENTILES)
    return {str(key): round(float(value), 3) for key, value in zip(PERCENTILES, found, strict=True)}


def _boxes_of(
    split: CocoSplit,
    position: int,
    input_size_hw: tuple[int, int],
    resize: Literal["stretch", "letterbox"],
    tile_size: int | None,
) -> BoxTable:
    image_index = np.repeat(np.arange(len(split)), np.diff(split.first_box))
    sizes_wh = split.sizes_hw[image_index][:, ::-1].astype(np.float64)
    low = np.clip(split.boxes_xywh[:, :2], 0, sizes_wh)
    high = np.clip(split.boxes_xywh[:, :2] + split.boxes_xywh[:, 2:], 0, sizes_wh)
    shown_wh = sizes_wh if tile_size is None else np.minimum(sizes_wh, tile_size)
    scale = np.array(input_size_hw[::-1]) / shown_wh
    if resize == "letterbox":
        scale = scale.min(axis=1, keepdims=True)
    sides = high - low
    kept = ~split.is_crowd
    column = np.searchsorted(np.array(split.category_ids), split.box_category_ids)
    return BoxTable(
        split_index=np.full(int(kept.sum()), position, dtype=np.int64),
        image_index=image_index[kept],
        class_index=column[kept],
        sides_wh=(sides * scale)[kept],
        original_sides=np.sqrt(sides.prod(axis=1))[kept],
        centers_xy=((low + high) / 2 / sizes_wh)[kept],
        aspect_ratios=(sides[:, 0] / np.maximum(sides[:, 1], 1e-9))[kept],
    )
