"""Numbers of a dataset by hand, the advice they give, and charts for every kind of set."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from deim.curation import charts
from deim.curation.charts import draw_stats
from deim.curation.preview import sample_rows
from deim.curation.scan import ImageFacts, scan_images
from deim.curation.stats import DatasetStats, advise, compute_stats, describe_stats
from deim.data.formats.read import find_dataset, read_all, to_splits
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.data.images.tiling import TilesOptions
from deim.errors import DataError
from tests.data.small_sets import make_contents, write_contents, write_images

CHARTS = ["classes", "box_sizes", "positions", "brightness"]


def make_format(
    *, input_size_hw: tuple[int, int] = (60, 40), resize: Any = "stretch", tile_size: int | None = None
) -> InputFormat:
    tiles = None if tile_size is None else TilesOptions(size=tile_size)
    return InputFormat(size_hw=input_size_hw, resize=resize, tiles=tiles)


def measured(
    root: Path, change: Callable[[dict[str, Any]], object] = lambda contents: None, **options: Any
) -> tuple[DatasetStats, dict[str, CocoSplit]]:
    contents = make_contents()
    write_images(root)
    change(contents)
    write_contents(root, contents)
    return measured_as_it_is(root, **options)


def measured_as_it_is(root: Path, **options: Any) -> tuple[DatasetStats, dict[str, CocoSplit]]:
    splits = to_splits(read_all(find_dataset(root, "coco")))
    facts: dict[str, list[ImageFacts]] = {
        name: scan_images([split.image_path(index) for index in range(len(split))], decode=True)
        for name, split in splits.items()
    }
    return compute_stats(splits, facts, input_format=make_format(**options)), splits


def without_boxes(contents: dict[str, Any]) -> None:
    for content in contents.values():
        content["annotations"] = []


def test_numbers_are_those_of_the_hand(tmp_path: Path) -> None:
    def change(contents: dict[str, Any]) -> None:
        contents["train"]["annotations"] = contents["train"]["annotations"][:2]
        contents["train"]["annotations"][0]["bbox"] = [30, 20, 20, 20]
        contents["train"]["annotations"][1].update(bbox=[0, 0, 8, 4], iscrowd=0)
        contents["val"]["annotations"] = [{**contents["val"]["annotations"][0], "iscrowd": 1}]

    stats, splits = measured(tmp_path, change)
    assert stats.class_names == ("pit", "scratch", "vein")
    assert stats.counts().tolist() == [[1, 1, 0], [0, 0, 0]]
    # Clipped to 10x10 px, and twice as high at 40x60; the second is 8x4 px.
    assert stats.boxes.sides_wh.tolist() == [[10, 20], [8, 8]]
    assert stats.box_sides().tolist() == pytest.approx([200**0.5, 8])
    assert stats.boxes.aspect_ratios.tolist() == [1, 2]
    assert stats.boxes.centers_xy.tolist() == [[35 / 40, 25 / 30], [4 / 40, 2 / 30]]
    assert [of_split.tolist() for of_split in stats.boxes_per_image] == [[2, 0, 0], [0, 0]]
    with Image.open(splits["val"].image_path(1)) as image:
        mean = np.asarray(image.convert("L")).mean()
    assert stats.brightness[1][1] == pytest.approx(mean, abs=0.5)
    numbers = json.loads(json.dumps(stats.to_dict()))
    assert numbers["images_without_boxes"] == {"train": 2, "val": 2}
    assert numbers["boxes"]["train"] == {"pit": 1, "scratch": 1, "vein": 0}
    assert numbers["box_side_px_by_class"]["vein"] is None
    assert numbers["image_width_px"]["50"] == 40


def test_letterboxing_keeps_the_shape_of_boxes(tmp_path: Path) -> None:
    stats, _ = measured(tmp_path, resize="letterbox", input_size_hw=(60, 60))
    assert stats.boxes.sides_wh[0].tolist() == pytest.approx([10.25 * 1.5, 12 * 1.5])


def test_small_boxes_are_told_the_size_at_which_they_are_not(tmp_path: Path) -> None:
    stats, _ = measured(tmp_path, input_size_hw=(15, 20))
    (line, *_) = advise(stats)
    side = float(np.median(stats.box_sides()))
    assert side == pytest.approx(5.77, abs=0.01)
    assert line.startswith(
        "The median box has a side of 5.8 px at 20x15, under 8 px. Use a larger size, 32x32 or"
    )
    assert "tiles" in line


def test_sizes_in_tiles_are_those_at_the_scale_of_the_tiles(tmp_path: Path) -> None:
    whole, _ = measured(tmp_path / "whole", input_size_hw=(64, 64), resize="letterbox")
    tiled, _ = measured(tmp_path / "tiled", input_size_hw=(64, 64), resize="letterbox", tile_size=32)
    # Images of 40x30 px: whole they grow by 64 / 40, tiles of 32x30 px by 64 / 32.
    assert tiled.boxes.sides_wh == pytest.approx(whole.boxes.sides_wh * 2 / 1.6)
    assert tiled.to_dict()["tile_size"] == 32


def test_small_boxes_are_told_the_tiles_in_which_they_are_not(tmp_path: Path) -> None:
    stats, _ = measured(tmp_path)
    sides = np.full_like(stats.boxes.original_sides, 5.0)
    table = replace(stats.boxes, original_sides=sides, sides_wh=np.full_like(stats.boxes.sides_wh, 2.5))
    stats = replace(stats, boxes=table, input_format=make_format(input_size_hw=(640, 640)))
    assert advise(stats)[0] == (
        "The median box has a side of 2.5 px at 640x640, under 8 px. Use a larger size, 2048x2048 or more, "
        "or cut the images into tiles, data.tiles.size=384 or less."
    )
    assert advise(replace(stats, input_format=make_format(input_size_hw=(640, 640), tile_size=1280)))[0] == (
        "The median box has a side of 2.5 px at 640x640 in tiles of 1280 px, under 8 px. Use a larger size, "
        "2048x2048 or more, or smaller tiles, data.tiles.size=384 or less."
    )
    # In tiles of that size the box of 5 px has 8.3 px.
    assert 5 * 640 / 384 > 8


def test_rare_classes_and_classes_of_one_split_are_named(tmp_path: Path) -> None:
    def change(contents: dict[str, Any]) -> None:
        contents["val"]["annotations"] = [
            row for row in contents["val"]["annotations"] if row["category_id"] != 3
        ]
        contents["train"]["annotations"] += [
            {**contents["train"]["annotations"][1], "id": 100 + number} for number in range(30)
        ]
        rows = contents["train"]["annotations"]
        contents["train"]["annotations"] = [row for row in rows if row["category_id"] != 40]

    lines = advise(measured(tmp_path, change)[0])
    assert lines[0].startswith("Class 'pit' has only 2 boxes, under 30.")
    assert lines[1].startswith("Class 'pit' has boxes in train only.")
    assert lines[2].startswith("Class 'vein' has only 2 boxes, under 30.")
    assert lines[3].startswith("Class 'vein' has boxes in val only.")
    assert not any("'scratch'" in line for line in lines)


def test_a_split_of_another_brightness_is_named(tmp_path: Path) -> None:
    stats, splits = measured(tmp_path)
    dark = [ImageFacts(brightness=30.0, thumbnail=np.full((32, 32), 30, dtype=np.float32))] * 2
    light = [ImageFacts(brightness=90.0, thumbnail=np.full((32, 32), 90, dtype=np.float32))] * 3
    advice = advise(compute_stats(splits, {"train": light, "val": dark}, input_format=make_format()))
    assert "differs between splits: train 90, val 30." in advice[-1]
    assert not any("brightness" in line for line in advise(stats))


def test_damaged_images_are_counted_and_not_drawn(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_contents(tmp_path, make_contents())
    path = tmp_path / "images" / "t1.png"
    path.write_bytes(path.read_bytes()[:60])
    stats, splits = measured_as_it_is(tmp_path)
    assert stats.to_dict()["images_not_decoded"] == {"train": 1, "val": 0}
    line = (
        "images that cannot be decoded, not part of brightness and samples: 1 of 5; "
        "deim data check names them"
    )
    assert line in describe_stats(stats)
    captions = [row.caption for row in sample_rows(stats, splits, seed=0)]
    assert sorted(captions) == ["train: t0.png", "train: t2.png", "val: v0.png", "val: v1.png"]


def drawn(
    stats: DatasetStats,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> dict[str, Figure]:
    """Some charts, without the time that writing them takes."""
    figures = {}

    def keep(draw: Callable[[Figure], None], path: Path, *, height: float) -> Path:
        if path.stem in names:
            figures[path.stem] = Figure(figsize=(8, height), layout="constrained")
            draw(figures[path.stem])
        return path

    monkeypatch.setattr(charts, "_save", keep)
    draw_stats(stats, folder)
    return figures


@pytest.mark.parametrize("number", [12, 53])
def test_rare_classes_share_a_legend_entry_and_a_bar(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(contents: dict[str, Any]) -> None:
        for content in contents.values():
            content["categories"] = [{"id": index, "name": f"c{index}"} for index in range(number)]
            # Those with the highest numbers have two boxes in each split, the others one.
            labels = [*range(number), *range(number - 12, number)]
            content["annotations"] = [
                {"id": index, "image_id": 50, "category_id": label, "bbox": [1, 2, 9, 8]}
                for index, label in enumerate(labels)
            ]

    stats, _ = measured(tmp_path / "set", change)
    figures = drawn(stats, tmp_path, monkeypatch, ("classes", "box_sizes"))
    (legend,) = figures["box_sizes"].legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert [entry.split(":")[0] for entry in entries[:2]] == ["median area", "a side of 8 px"]
    frequent = [f"c{index}" for index in range(number - 12, number)]
    assert entries[2:] == [*frequent[:7], f"{number - 7} other classes"]
    colors = {tuple(points.get_facecolor()[0]) for points in figures["box_sizes"].axes[0].collections[1:]}
    assert len(colors) == len(entries[2:])
    (axes,) = figures["classes"].axes
    bars = [label.get_text() for label in axes.get_yticklabels()]
    if number == 12:
        assert bars == frequent
    else:
        assert bars == [*(f"c{index}" for index in range(28)), *frequent, "13 other classes"]
        last = [bar for bar in axes.patches if bar.get_y() > len(bars) - 1.5]
        assert [bar.get_width() for bar in last] == [13, 13]
    assert figures["classes"].get_figheight() < 30


def test_names_that_no_file_can_hold_are_refused_at_the_door(tmp_path: Path) -> None:
    def change(contents: dict[str, Any]) -> None:
        contents["train"]["categories"][1] = {**contents["train"]["categories"][1], "name": "pr\udcfcf"}

    with pytest.raises(DataError, match=r"train\.json: not a JSON file \(.*surrogates not allowed\)"):
        measured(tmp_path, change)


@pytest.mark.parametrize(
    "change",
    [pytest.param(lambda contents: None, marks=pytest.mark.slow), without_boxes],
    ids=["boxes", "no boxes"],
)
def test_all_charts_are_drawn_and_described(change: Callable[..., object], tmp_path: Path) -> None:
    stats, splits = measured(tmp_path / "set", change)
    paths = draw_stats(stats, tmp_path / "charts")
    assert [path.stem for path in paths] == CHARTS
    assert len(sample_rows(stats, splits, seed=0)) == 5
    for path in paths:
        with Image.open(path) as chart:
            pixels = np.asarray(chart.convert("L"))
        assert min(pixels.shape) >= 350
        assert pixels.std() > 2
    lines = describe_stats(stats)
    assert lines[0].split()[:3] == ["class", "train", "val"]
    assert any(line.startswith("train: 3 images, ") for line in lines)
