"""Statistics of a dataset: classes, box sizes at the training size, positions, brightness; and advice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deim.curation.scan import ImageFacts
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.report.tables import format_table

PERCENTILES: Final = (5, 25, 50, 75, 95)
SMALL_SIDE_PX = 8.0
"""Boxes below this median side are hard to learn: it is one cell of the finest feature map."""
FEW_BOXES = 30
"""Results for a class with fewer boxes are mostly chance."""
UNEVEN_BRIGHTNESS = 20.0
"""Maximum difference between the median brightness of two splits, in gray levels of 255."""
SIZE_STEP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxTable:
    """All boxes of a dataset except crowd regions, clipped to their images. A counts boxes."""

    split_index: NDArray[np.int64]
    """(A,) position of the split."""
    class_index: NDArray[np.int64]
    """(A,) position in the list of classes."""
    sides_wh: NDArray[np.float64]
    """(A, 2) width and height in pixels at the training size, also of boxes that are larger than a tile."""
    original_sides: NDArray[np.float64]
    """(A,) square root of the area in the original image, in pixels."""
    centers_xy: NDArray[np.float64]
    """(A, 2) center as fractions of the image."""
    aspect_ratios: NDArray[np.float64]
    """(A,) width divided by height in the original image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStats:
    """Statistics of a dataset; charts are drawn from its arrays, of which tuples have one per split."""

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    input_format: InputFormat
    boxes: BoxTable
    boxes_per_image: tuple[NDArray[np.int64], ...]
    brightness: tuple[NDArray[np.float64], ...]
    """Mean gray of each image that can be decoded, in [0, 255]."""
    is_decoded: tuple[NDArray[np.bool_], ...]
    image_sizes_hw: NDArray[np.int64]
    """(I, 2) sizes of all images, in pixels."""

    @property
    def tile_size(self) -> int | None:
        """Side of the tiles in pixels of the original; None for whole images."""
        return None if self.input_format.tiles is None else self.input_format.tiles.size

    def counts(self) -> NDArray[np.int64]:
        """Return (splits, classes) numbers of boxes."""
        table = np.zeros((len(self.split_names), len(self.class_names)), dtype=np.int64)
        np.add.at(table, (self.boxes.split_index, self.boxes.class_index), 1)
        return table

    def box_sides(self) -> NDArray[np.float64]:
        """Return (A,) square roots of the area at the training size, in pixels."""
        return np.sqrt(self.boxes.sides_wh.prod(axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics for a JSON file."""
        sides = self.box_sides()
        per_split: dict[str, list[Any]] = {
            "images": [len(counts) for counts in self.boxes_per_image],
            "images_without_boxes": [int((counts == 0).sum()) for counts in self.boxes_per_image],
            "images_not_decoded": [int((~is_decoded).sum()) for is_decoded in self.is_decoded],
            "boxes": [dict(zip(self.class_names, row.tolist(), strict=True)) for row in self.counts()],
            "boxes_per_image": [_percentiles(counts) for counts in self.boxes_per_image],
            "brightness": [_percentiles(values) for values in self.brightness],
        }
        return {
            "input_size_hw": list(self.input_format.size_hw),
            "tile_size": self.tile_size,
            **{key: dict(zip(self.split_names, column, strict=True)) for key, column in per_split.items()},
            "box_side_px": _percentiles(sides),
            "box_side_px_by_class": {
                name: _percentiles(sides[self.boxes.class_index == index])
                for index, name in enumerate(self.class_names)
            },
            "aspect_ratio": _percentiles(self.boxes.aspect_ratios),
            "image_height_px": _percentiles(self.image_sizes_hw[:, 0]),
            "image_width_px": _percentiles(self.image_sizes_hw[:, 1]),
            "advice": advise(self),
        }


def compute_stats(
    splits: Mapping[str, CocoSplit], facts: Mapping[str, Sequence[ImageFacts]], *, input_format: InputFormat
) -> DatasetStats:
    """Compute the statistics of splits with the same classes; their images must be decoded for the facts."""
    parts = list(splits.values())
    split_of = np.repeat(np.arange(len(parts)), [len(split) for split in parts])
    sizes_hw = np.concatenate([split.sizes_hw for split in parts])
    image = np.repeat(np.arange(len(sizes_hw)), np.concatenate([np.diff(split.first_box) for split in parts]))
    kept = ~np.concatenate([split.is_crowd for split in parts])
    image = image[kept]
    boxes = np.concatenate([split.boxes_xywh for split in parts])[kept]
    category_ids = np.concatenate([split.box_category_ids for split in parts])[kept]
    sizes_wh = sizes_hw[image][:, ::-1].astype(np.float64)
    low, high = np.clip(boxes[:, :2], 0, sizes_wh), np.clip(boxes[:, :2] + boxes[:, 2:], 0, sizes_wh)
    sides = high - low
    per_image = np.bincount(image, minlength=len(sizes_hw))
    decoded = [np.array([fact.thumbnail.size > 0 for fact in facts[name]], dtype=bool) for name in splits]
    brightness = [np.array([fact.brightness for fact in facts[name]]) for name in splits]
    return DatasetStats(
        class_names=tuple(map(legible, parts[0].class_names)),
        split_names=tuple(map(legible, splits)),
        input_format=input_format,
        boxes=BoxTable(
            split_index=split_of[image],
            class_index=np.searchsorted(np.array(parts[0].category_ids), category_ids),
            sides_wh=at_input_size(sides, sizes_wh, input_format),
            original_sides=np.sqrt(sides.prod(axis=1)),
            centers_xy=(low + high) / 2 / sizes_wh,
            aspect_ratios=sides[:, 0] / np.maximum(sides[:, 1], 1e-9),
        ),
        boxes_per_image=tuple(per_image[split_of == position] for position in range(len(parts))),
        brightness=tuple(values[mask] for values, mask in zip(brightness, decoded, strict=True)),
        is_decoded=tuple(decoded),
        image_sizes_hw=sizes_hw,
    )


def at_input_size(
    sides_wh: NDArray[np.float64], sizes_wh: NDArray[np.float64], input_format: InputFormat
) -> NDArray[np.float64]:
    """Return (A, 2) width and height of boxes at the training size, in pixels.

    Args:
        sides_wh: (A, 2) width and height in pixels of the image.
        sizes_wh: (A, 2) size of the image of each box.
        input_format: Size, resizing and tiles of training.
    """
    tiles = input_format.tiles
    scale = np.array(input_format.size_hw[::-1]) / (
        sizes_wh if tiles is None else np.minimum(sizes_wh, tiles.size)
    )
    if input_format.resize == "letterbox":
        scale = scale.min(axis=1, keepdims=True)
    return sides_wh * scale


def legible(name: str) -> str:
    """Return the name with a question mark for each character that is not valid Unicode."""
    return name.encode("utf-8", "replace").decode()


def advise(stats: DatasetStats) -> list[str]:
    """Return a sentence for each suggestion that follows from the statistics; empty if nothing stands out."""
    sides, counts = stats.box_sides(), stats.counts()
    median = float(np.median(sides)) if len(sides) else SMALL_SIDE_PX
    lines = []
    if median < SMALL_SIDE_PX:
        height, width = stats.input_format.size_hw
        factor = SMALL_SIDE_PX / median
        larger = [int(-(-side * factor // SIZE_STEP) * SIZE_STEP) for side in (width, height)]
        in_tiles = "" if stats.tile_size is None else f" in tiles of {stats.tile_size} px"
        lines.append(
            f"The median box has a side of {median:.1f} px at {width}x{height}{in_tiles}, under "
            f"{SMALL_SIDE_PX:g} px. Use a larger size, {larger[0]}x{larger[1]} or more, or "
            f"{_tile_advice(stats)}."
        )
    for index, name in enumerate(stats.class_names):
        total = counts[:, index].sum()
        if total < FEW_BOXES:
            lines.append(
                f"Class {name!r} has only {total} boxes, under {FEW_BOXES}. Collect more, or merge it with a "
                f"class that is treated alike."
            )
        by_split = dict(zip(stats.split_names, counts[:, index].tolist(), strict=True))
        present = [split for split, number in by_split.items() if number]
        if len(present) == 1 < len(stats.split_names):
            lines.append(f"Class {name!r} has boxes in {present[0]} only. Split again with deim data split.")
        elif present and by_split.get("train") == 0:
            lines.append(f"Class {name!r} has no box in train and cannot be learned.")
    medians = {
        name: float(np.median(values))
        for name, values in zip(stats.split_names, stats.brightness, strict=True)
        if len(values)
    }
    if medians and max(medians.values()) - min(medians.values()) > UNEVEN_BRIGHTNESS:
        shown = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
        lines.append(
            f"The median brightness differs between splits: {shown}. Check that they are from one camera."
        )
    return lines


def _tile_advice(stats: DatasetStats) -> str:
    """Suggest the tiles in which the median box is large enough."""
    side = float(np.median(stats.boxes.original_sides))
    size = int(min(stats.input_format.size_hw) * side / SMALL_SIDE_PX // SIZE_STEP * SIZE_STEP)
    if size < SIZE_STEP:
        return "take images from a shorter distance, since no tiles are small enough"
    which = "cut the images into tiles" if stats.tile_size is None else "smaller tiles"
    return f"{which}, data.tiles.size={size} or less"


def describe_stats(stats: DatasetStats) -> list[str]:
    """Return the statistics for the terminal, line by line."""
    numbers = stats.to_dict()
    rows = []
    for index, name in enumerate(stats.class_names):
        side = numbers["box_side_px_by_class"][name]
        shown = [f"{side[key]:.1f}" if side else "-" for key in ("5", "50", "95")]
        rows.append([name, *map(str, stats.counts()[:, index]), *shown])
    headers = ["class", *stats.split_names, "side px 5 %", "50 %", "95 %"]
    lines = [*format_table(headers, rows).splitlines(), ""]
    for name in stats.split_names:
        per_image, gray = numbers["boxes_per_image"][name], numbers["brightness"][name]
        lines.append(
            f"{name}: {numbers['images'][name]} images, {numbers['images_without_boxes'][name]} without "
            f"boxes; boxes per image: median {per_image['50']:.0f}, 95th percentile {per_image['95']:.0f}; "
            f"brightness: median {gray['50']:.0f} of 255"
            if gray
            else f"{name}: {numbers['images'][name]} images, none of which can be decoded"
        )
    ratio = numbers["aspect_ratio"]
    if ratio:
        lines.append(
            f"box width divided by height: median {ratio['50']:.2f}, 5th to 95th percentile "
            f"{ratio['5']:.2f} to {ratio['95']:.2f}"
        )
    height, width = numbers["image_height_px"], numbers["image_width_px"]
    lines.append(f"images: {width['50']:.0f}x{height['50']:.0f} px (medians)")
    damaged = sum(numbers["images_not_decoded"].values())
    if damaged:
        lines.append(
            f"images that cannot be decoded, not part of brightness and samples: {damaged} of "
            f"{len(stats.image_sizes_hw)}; deim data check names them"
        )
    return [*lines, "", *(numbers["advice"] or ["Nothing stands out."])]


def _percentiles(values: NDArray[Any]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {str(key): round(float(np.percentile(values, key)), 3) for key in PERCENTILES}
