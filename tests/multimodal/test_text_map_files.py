"""Files of text maps: which images they show, what is drawn, and how they are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from deim.config.schema import Config
from deim.data.formats.split import CocoSplit
from deim.data.splits import read_split
from multimodal.text_maps import TextMap, draw_text_map, write_text_maps
from tests.multimodal.fused import trained_fused

NAMES = ("pit", "scratch", "crack")


def small_map(height: int = 60, width: int = 100) -> TextMap:
    """One query over the left half, another over the lower right quarter, of different classes."""
    half, quarter = (0, 0, width / 2, height), (width / 2, height / 2, width, height)
    values = torch.tensor([[0.9, -0.8, 0.0], [0.1, 0.6, 0.0]])
    return TextMap(
        boxes_xyxy=torch.tensor([half, quarter], dtype=torch.float32),
        responses=torch.stack([values.clamp(min=0), values, (values + 0.05).clamp(min=0)]),
    )


def draw(text_map: TextMap, boxes: list[list[float]], labels: list[int]) -> list:
    axes = Figure().subplots(1, 4)
    draw_text_map(
        axes,
        Image.new("RGB", (100, 60), (120, 120, 120)),
        text_map,
        0,
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        caption="a.png",
    )
    return list(axes)


def test_heat_lies_where_the_queries_are_and_frames_show_the_class() -> None:
    image, _, cosine, fused = draw(small_map(), [[0, 0, 50, 60], [50, 0, 10, 10]], [0, 2])
    assert image.get_title() == "a.png"
    assert cosine.get_title() == "cosine with the text, highest 0.90"
    heat = cosine.images[1].get_array()
    assert heat[30, 20] == pytest.approx(0.9)
    assert heat[50, 80] == pytest.approx(0.1)
    assert cosine.images[1].get_alpha()[10, 80] == 0, "no query is over the upper right quarter"
    assert fused.images[1].get_array()[30, 20] == pytest.approx(0.95)
    colors = [patch.get_edgecolor()[:3] for patch in cosine.patches]
    assert colors == [(1.0, 1.0, 1.0), pytest.approx((0.5, 0.5, 0.5), abs=0.01)]


def test_images_without_boxes_and_detectors_without_queries_are_drawn() -> None:
    none = TextMap(boxes_xyxy=torch.zeros(0, 4), responses=torch.zeros(3, 0, 3))
    panels = draw(none, [], [])
    assert panels[1].get_title() == "detector score"
    assert not panels[1].images[1].get_alpha().any()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """File name, class and number of true boxes of every image, which is not drawn."""
    rows = []

    def note(axes, image, text_map, label, *, boxes_xywh, caption, **rest):
        rows.append((caption, label, len(boxes_xywh)))

    monkeypatch.setattr("multimodal.text_maps.draw_text_map", note)
    return rows


def val_split(config: Config) -> CocoSplit:
    return read_split(config.data, "val")


@pytest.mark.parametrize("options", ["data.resize=stretch", "data.tiles={size: 64, overlap: 0.2}"])
def test_each_class_has_a_file(
    options: str, tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(tiny_set, tmp_path, options)
    folder = tmp_path / "new" / "maps"
    paths = write_text_maps(trained_fused(config), val_split(config), (2, 0), folder, num_images=1)
    assert paths == [folder / "text_map_2_crack.png", folder / "text_map_0_pit.png"]
    for path in paths:
        with Image.open(path) as sheet:
            assert sheet.width == 1600


def test_images_with_most_boxes_of_the_class_come_first(tiny_set, tiny_config, tmp_path: Path, drawn):
    config = tiny_config(tiny_set, tmp_path)
    split = val_split(config)
    write_text_maps(trained_fused(config), split, (0, 1, 2), tmp_path)
    image_of_box = np.repeat(split.file_names, np.diff(split.first_box))
    for label, category in enumerate(split.category_ids):
        counts = {
            name: int(((image_of_box == name) & (split.box_category_ids == category)).sum())
            for name in split.file_names
        }
        expected = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
        # Of the four images the last one has no box.
        assert [name for name, other, _ in drawn if other == label] == [*expected, "val_3.png"]


def test_crowd_regions_neither_count_nor_are_framed(tiny_set, tiny_config, tmp_path: Path, drawn):
    config = tiny_config(tiny_set, tmp_path)
    split = val_split(config)
    crowds = replace(split, is_crowd=np.ones_like(split.is_crowd))
    write_text_maps(trained_fused(config), crowds, (0,), tmp_path)
    assert drawn == [("val_3.png", 0, 0)]


def test_a_split_without_such_images_gives_a_file_that_says_so(
    write_coco: Callable[..., Path], tiny_config, tmp_path: Path, drawn
):
    root = write_coco(tmp_path / "set", num_images={"train": 1, "val": 1})
    config = tiny_config(root, tmp_path)
    split = val_split(config)
    missing = next(
        label for label, category in enumerate(split.category_ids) if category not in split.box_category_ids
    )
    (path,) = write_text_maps(trained_fused(config), split, (missing,), tmp_path)
    assert drawn == []
    assert path.is_file()


def test_file_names_are_safe_and_differ(write_coco: Callable[..., Path], tiny_config, tmp_path: Path, drawn):
    names = {"裂纹": 1, "../Größe a/b": 2, "x" * 300: 3}
    root = write_coco(tmp_path / "set", categories=names, num_images={"train": 1, "val": 1})
    config = tiny_config(root, tmp_path)
    trained = trained_fused(config, class_names=tuple(names))
    paths = write_text_maps(trained, val_split(config), (0, 1, 2), tmp_path)
    assert [path.name for path in paths] == [
        "text_map_0.png",
        "text_map_1_Groe_a_b.png",
        f"text_map_2_{'x' * 40}.png",
    ]
