"""Tiles cover their image, hold the boxes they should, and lie where they say."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deim.boxes import cxcywh_to_xyxy, to_original_pixels
from deim.config.schema import Config
from deim.data import dataset as dataset_module
from deim.data.dataset import DetectionDataset
from deim.data.formats.coco import read_coco
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_image
from deim.data.images.pixel_format import PercentileScaling, PixelFormat
from deim.data.images.resize import fit_tiles
from deim.data.images.tiling import TilesOptions, compute_windows, tile_split
from deim.data.loader import build_eval_loader
from deim.data.sampling import compute_repeat_factors
from deim.errors import ConfigError
from deim.structures import Target
from tests.data.building import make_format, make_pipeline, make_sampler, make_train_dataset

HALVES = TilesOptions(size=64, overlap=0.0)
"""Two tiles of the images of `write_split`."""
FORM = InputFormat(size_hw=(64, 64), resize="stretch", mean=(0.0,) * 3, std=(1.0,) * 3, tiles=HALVES)
CLASSES = {3: 0, 7: 1}


def write_split(root: Path, boxes: list[list[float]], *, crowds: tuple[int, ...] = ()) -> CocoSplit:
    """An image of 128x64 px with `boxes` (xywh, in turn of both classes), and one of 40x30 px without."""
    rng = np.random.default_rng(0)
    for name, height, width in (("wide", 64, 128), ("small", 30, 40)):
        pixels = rng.integers(0, 256, size=(height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    annotations = [
        {
            "id": number + 1,
            "image_id": 4,
            "category_id": (3, 7)[number % 2],
            "bbox": box,
            "iscrowd": int(number in crowds),
        }
        for number, box in enumerate(boxes)
    ]
    content = {
        "images": [
            {"id": 4, "file_name": "wide.png", "width": 128, "height": 64},
            {"id": 9, "file_name": "small.png", "width": 40, "height": 30},
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "pit"}, {"id": 7, "name": "scratch"}],
    }
    (root / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return read_coco(root / "train.json", root)


def original_boxes(target: Target) -> list[list[float]]:
    boxes = to_original_pixels(cxcywh_to_xyxy(target["boxes"]), target["placement"])
    return [[round(float(value), 3) for value in box] for box in boxes]


def test_windows_cover_every_pixel_evenly_with_the_overlap_asked_for() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 900, size=2))
        tiling = TilesOptions(
            size=int(rng.integers(32, 400)), overlap=float(rng.uniform(0, 0.9)), keep_fraction=0.5
        )
        windows = compute_windows((height, width), tiling)
        sides = windows[:, 2:] - windows[:, :2]
        assert (sides == [min(width, tiling.size), min(height, tiling.size)]).all()
        for low, side in ((0, width), (1, height)):
            starts = np.unique(windows[:, low])
            steps = np.diff(starts)
            assert starts[0] == windows[:, low].min() == 0
            assert windows[:, low + 2].max() == side
            # Even: steps differ by a pixel at most; and no tile could be left out.
            assert np.ptp(steps) <= 1 if len(steps) else True
            assert (tiling.size - steps >= tiling.overlap * tiling.size - 1e-4).all()
            if len(steps):
                fewer = (side - tiling.size) / max(len(steps) - 1, 1e-9)
                assert fewer > int(tiling.size * (1 - tiling.overlap) + 1e-6)
        assert len(windows) == len(np.unique(windows[:, 0])) * len(np.unique(windows[:, 1]))


@pytest.mark.parametrize(("size_hw", "number"), [((64, 64), 1), ((10, 5), 1), ((65, 64), 2), ((10, 128), 2)])
def test_an_image_that_fits_into_a_tile_is_one(size_hw: tuple[int, int], number: int) -> None:
    windows = compute_windows(size_hw, HALVES)
    assert len(windows) == number
    if number == 1:
        assert windows.tolist() == [[0, 0, size_hw[1], size_hw[0]]]


def test_overlaps_that_binary_fractions_miss_are_met_exactly() -> None:
    windows = compute_windows((100, 130), TilesOptions(size=100, overlap=0.9, keep_fraction=0.5))
    assert windows[:, 0].tolist() == [0, 10, 20, 30]


def test_each_tile_has_its_boxes_clipped_in_the_pixels_of_the_whole_image(tmp_path: Path) -> None:
    # Left; across the border, 6 of 20 px on the left; a crowd; exactly one half on each side.
    boxes = [[10.0, 5, 20, 10], [58, 20, 20, 8], [0, 0, 128, 64], [54, 40, 20, 8]]
    split = write_split(tmp_path, boxes, crowds=(2,))
    dataset = DetectionDataset(split, CLASSES, input_format=FORM)
    assert len(dataset) == 3
    left, right, small = (dataset.read((0, index))[1] for index in range(3))
    assert original_boxes(left) == [[10, 5, 30, 15], [54, 40, 64, 48]]
    assert left["labels"].tolist() == [0, 1]
    assert original_boxes(right) == [[64, 20, 78, 28], [64, 40, 74, 48]]
    assert right["labels"].tolist() == [1, 1]
    assert right["area"].tolist() == [14 * 8, 10 * 8]
    assert small["boxes"].shape == (0, 4)
    assert [target["image_id"] for target in (left, right, small)] == [4, 4, 9]
    assert right["file_name"] == "wide.png"
    assert right["placement"].orig_size_hw == (64, 128)
    assert right["placement"].tile_xyxy == (64, 0, 128, 64)
    assert small["placement"].tile_xyxy is None
    pixels = read_image(tmp_path / "wide.png")
    assert torch.equal(dataset.read((0, 1))[0], pixels[:, :, 64:])


def test_a_box_larger_than_a_tile_counts_by_what_a_tile_can_hold(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[1.0, 5, 126, 4], [30, 20, 90, 4], [0, 0, 128, 64]])
    tiles = tile_split(split, replace(HALVES, keep_fraction=0.8))
    # 63 and 63, 34 and 56, 64 and 64 of at most 64 px.
    assert tiles.rows_of(0).tolist() == [0, 2]
    assert tiles.rows_of(1).tolist() == [0, 1, 2]
    assert tiles.num_lost == 0
    assert tile_split(split, replace(HALVES, keep_fraction=0.9)).num_lost == 1


def test_without_tiling_every_image_is_one_input_with_all_its_boxes(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[10.0, 5, 20, 10], [58, 20, 20, 8]], crowds=(0,))
    tiles = tile_split(split, None)
    assert tiles.windows_xyxy.tolist() == [[0, 0, 128, 64], [0, 0, 40, 30]]
    assert [tiles.window(0), tiles.window(1)] == [None, None]
    assert (tiles.rows_of(0).tolist(), tiles.rows_of(1).tolist()) == ([1], [])
    assert (len(tiles), tiles.num_boxes.tolist(), tiles.num_lost) == (2, [1, 0], 0)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_prediction_cuts_as_a_dataset_does(resize: Any, tmp_path: Path) -> None:
    split = write_split(tmp_path, [[60.0, 5, 20, 10]])
    tiling = TilesOptions(size=48, overlap=0.2, keep_fraction=0.1)
    form = replace(FORM, resize=resize, size_hw=(64, 96), tiles=tiling)
    dataset = DetectionDataset(split, CLASSES, input_format=form)
    made = [
        pair for name in ("wide", "small") for pair in fit_tiles(read_image(tmp_path / f"{name}.png"), form)
    ]
    assert len(made) == len(dataset) == 9
    for index, (fitted, placement) in enumerate(made):
        image, target = dataset.read((0, index))
        assert torch.equal(image, fitted)
        assert target["placement"] == placement
        for left, top, right, bottom in original_boxes(target):
            assert (top, bottom) == pytest.approx((5, 15), abs=1e-3)
            assert 60 - 1e-3 <= left < right <= 80 + 1e-3


def test_an_image_is_decoded_once_for_its_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write_split(tmp_path, [])
    read: list[Path] = []
    monkeypatch.setattr(
        dataset_module, "read_image", lambda path, pixels: read.append(path) or read_image(path, pixels)
    )
    dataset = DetectionDataset(split, CLASSES, input_format=FORM)
    for index in (0, 1, 2):
        dataset.read((0, index))
    assert [path.name for path in read] == ["wide.png"]
    cached = DetectionDataset(split, CLASSES, input_format=FORM, cache_bytes=2**20)
    first, again = ([cached.read((0, index))[0] for index in (0, 2, 1)] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert len(read) == 2


def test_percentiles_are_those_of_the_whole_image(tmp_path: Path) -> None:
    split = write_split(tmp_path, [])
    values = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (64, 1))
    Image.fromarray(values).save(tmp_path / "wide.png")
    pixels = PixelFormat(channels=3, scaling=PercentileScaling(low=0, high=100))
    dataset = DetectionDataset(split, CLASSES, input_format=replace(FORM, pixels=pixels))
    left, right = (dataset.read((0, index))[0] for index in (0, 1))
    assert (float(left.min()), float(right.max())) == (0.0, 1.0)
    assert float(left.max()) == pytest.approx(0.5, abs=0.01)


def test_small_images_are_the_same_items_with_and_without_tiles(
    tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    pairs = []
    for options in ([], ["data.tiles={size: 97, overlap: 0.3}"]):
        config = tiny_config(tiny_set, tiny_set / "run", "augment={mosaic: 0.5, crop: 0.5}", *options)
        split = read_coco(tiny_set / "annotations" / "train.json", tiny_set / "images")
        dataset = make_train_dataset(config, split, stop=9, mix_end=9)
        batches = make_sampler(config, split, batch_size=3)
        assert len(dataset) == len(split) == batches.num_images
        pairs.append([dataset.read((epoch, index)) for epoch in range(3) for index in range(len(split))])
    for (image, target), (other_image, other) in zip(*pairs, strict=True):
        assert torch.equal(image, other_image)
        assert torch.equal(target["boxes"], other["boxes"])
        assert {key: target[key] for key in ("image_id", "placement", "noise_seed")} == {
            key: other[key] for key in ("image_id", "placement", "noise_seed")
        }


def test_mosaics_and_crops_are_made_of_tiles(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[70.0, 5, 20, 10], [100, 30, 20, 20]])
    crops, mosaics = make_pipeline(crop=1.0), make_pipeline(mosaic=1.0)
    for pipeline in (crops, mosaics):
        dataset = DetectionDataset(split, CLASSES, input_format=FORM, pipeline=pipeline)
        made = [dataset.read((epoch, index)) for epoch in range(6) for index in range(len(dataset))]
        assert all(image.shape == (3, 64, 64) for image, _ in made)
        assert any(len(target["boxes"]) for _, target in made)
        placements = [target["placement"] for _, target in made if target["image_id"] == 4]
        assert all(placement.orig_size_hw == (64, 128) for placement in placements)
    # A crop of the right tile never shows a box of the left one.
    dataset = DetectionDataset(split, CLASSES, input_format=FORM, pipeline=crops)
    assert all(len(dataset.read((epoch, 0))[1]["boxes"]) == 0 for epoch in range(6))


def test_repeat_factors_count_tiles(tmp_path: Path) -> None:
    split = write_split(tmp_path, [[10.0, 5, 20, 10], [90, 20, 20, 8]])
    by_image, by_class = compute_repeat_factors(split, 0.75)
    by_tile, _ = compute_repeat_factors(split, 0.75, tiles=tile_split(split, HALVES))
    # Both classes are on one image of two, or on one tile of three.
    assert by_class.tolist() == pytest.approx([1.5**0.5] * 2)
    assert by_image.tolist() == pytest.approx([1.5**0.5, 1])
    assert by_tile.tolist() == pytest.approx([2.25**0.5, 2.25**0.5, 1])


def test_training_says_what_becomes_of_the_images(
    tmp_path: Path, tiny_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    split = write_split(tmp_path, [[10.0, 5, 20, 10], [56, 20, 16, 8]])
    with caplog.at_level(logging.INFO):
        config = tiny_config(tmp_path, tmp_path, "data.tiles={size: 64, overlap: 0, keep_fraction: 0.6}")
        batches = make_sampler(config, split, batch_size=2)
        make_sampler(tiny_config(tmp_path, tmp_path, "data.tiles={size: 128}"), split, batch_size=2)
        make_sampler(tiny_config(tmp_path, tmp_path), split, batch_size=2)
    assert batches.num_images == 3
    assert [record.message for record in caplog.records] == [
        "tiles: 2 images become 3 tiles of at most 64x64 px, 1 with boxes, at 64x64 px in the network",
        "data.tiles: 1 boxes are on no tile and are not learned, since no tile holds the share "
        "data.tiles.keep_fraction of them; lower it, or raise data.tiles.overlap",
        "tiles: 2 images become 2 tiles of at most 128x128 px, 1 with boxes, at 64x64 px in the network",
        "data.tiles: no training image is larger than a tile of 128 px",
    ]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_all_tiles_of_an_image_stay_in_one_process(
    num_ranks: int, tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(tiny_set, tiny_set / "run", "data.tiles={size: 40}", "data.eval_batch_size=4")
    split = read_coco(tiny_set / "annotations" / "train.json", tiny_set / "images")
    classes = {category_id: index for index, category_id in enumerate(split.category_ids)}
    seen = []
    for rank in range(num_ranks):
        loader = build_eval_loader(
            split,
            classes,
            input_format=make_format(config),
            data=config.data,
            rank=rank,
            num_ranks=num_ranks,
        )
        batches = list(loader)
        assert all(len(batch.targets) == 4 for batch in batches[:-1])
        targets = [target for batch in batches for target in batch.targets]
        ids = list(dict.fromkeys(target["image_id"] for target in targets))
        assert ids == split.image_ids[rank::num_ranks].tolist()
        seen += [(target["image_id"], target["placement"].tile_xyxy) for target in targets]
    assert len(set(seen)) == len(seen) == len(tile_split(split, config.data.tiles))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{size: 16}", r"data\.tiles\.size: got 16, needs at least 32"),
        ("{size: 64, overlap: 0.95}", r"data\.tiles\.overlap: got 0\.95, needs \[0, 0\.9\]"),
        ("{size: 64, keep_fraction: 0}", r"data\.tiles\.keep_fraction: got 0, needs \(0, 1\]"),
        ("{overlap: 0.2}", r"missing key 'data\.tiles\.size', which has no default"),
        ("640", r"data\.tiles: got 640, needs a block of options or null"),
    ],
)
def test_wrong_options_are_named(
    options: str, message: str, tiny_set: Path, tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(tiny_set, tiny_set / "run", f"data.tiles={options}")
