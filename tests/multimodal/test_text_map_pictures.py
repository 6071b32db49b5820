"""Pictures of text maps: their size, what differs in them, and which images are shown."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.data.formats.coco import CocoSplit
from deim.data.images.input_format import build_input_format
from deim.data.images.load import read_image
from deim.data.images.resize import fit_to_input, normalize
from deim.data.splits import read_split
from deim.report.draw import draw_boxes
from multimodal.text_map_pictures import FOOT_HEIGHT, HEAD_HEIGHT, MAP_WIDTH, draw_text_map, write_text_maps
from multimodal.text_maps import TextMap, compute_text_map
from tests.multimodal.fused import trained_fused

NAMES = ("pit", "scratch", "crack")
ROWS_TOP, ROWS_MARGIN = 72, 20


def gray_image(width: int = 100, height: int = 60) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 120, 120))


def small_map(height: int = 60, width: int = 100) -> TextMap:
    """One query over the left half, another over the lower right quarter; they mean different classes."""
    half, quarter = (0, 0, width / 2, height), (width / 2, height / 2, width, height)
    values = torch.tensor([[0.9, -0.8, 0.0], [0.1, 0.6, 0.0]])
    return TextMap(
        orig_size_hw=(height, width),
        boxes_cxcywh=torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.75, 0.5, 0.5]]),
        boxes_xyxy=torch.tensor([half, quarter], dtype=torch.float32),
        cosines=values,
        detector_scores=values.clamp(min=0),
        fused_scores=(values + 0.05).clamp(min=0),
    )


def draw(label: int = 0, *, boxes=((0, 0, 50, 60),), labels=(0,), names=NAMES, **options) -> Image.Image:
    return draw_text_map(
        options.pop("image", gray_image()),
        options.pop("text_map", small_map()),
        label,
        class_names=names,
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        **options,
    )


def panel(picture: Image.Image, column: int) -> np.ndarray:
    left = column * 408
    area = (left, HEAD_HEIGHT, left + 400, picture.height - FOOT_HEIGHT)
    return np.asarray(picture.crop(area), dtype=np.int64)


@pytest.mark.parametrize(
    ("width", "height", "panel_height"), [(100, 60, 240), (60, 100, 400), (600, 50, 140), (1600, 1200, 300)]
)
def test_the_size_follows_the_image(width, height, panel_height):
    picture = draw(image=gray_image(width, height), text_map=small_map(height, width))
    assert picture.mode == "RGB"
    assert picture.size == (MAP_WIDTH, panel_height + 112) == (1624, panel_height + 112)


def test_color_lies_where_the_queries_are():
    picture = draw(boxes=(), labels=())
    photograph, detector, text, fused = (panel(picture, column) for column in range(4))
    assert (photograph == 120).all()
    for heat in (detector, text, fused):
        assert (heat[40:200, 20:180, 0] > heat[40:200, 20:180, 2] + 50).all(), "0.9 is red"
        assert (heat[10:110, 210:390] == 120).all(), "no query is over the upper right quarter"
    text = panel(draw(1, boxes=(), labels=()), 2)
    assert (text[40:200, 20:180, 2] > text[40:200, 20:180, 0] + 50).all(), "-0.8 is blue"


def test_classes_differ_and_the_photograph_does_not():
    one, other = draw(0), draw(1)
    assert np.array_equal(panel(one, 0), panel(other, 0))
    for column in (1, 2, 3):
        assert not np.array_equal(panel(one, column), panel(other, column))


def test_frames_of_the_class_are_white_those_of_others_gray():
    # The right edge of the box lies at 200 px of 400.
    own, other = panel(draw(2, labels=(2,)), 1), panel(draw(2, labels=(0,)), 1)
    assert own[120, 200].tolist() == [255, 255, 255]
    assert other[120, 200].tolist() == [150, 150, 150]


def test_the_number_at_a_frame_is_the_highest_of_the_queries_that_fit_it(monkeypatch):
    tags = []

    def note(image, boxes_xyxy, *, texts, **rest):
        tags.append(list(texts))
        return draw_boxes(image, boxes_xyxy, texts=texts, **rest)

    monkeypatch.setattr("multimodal.text_map_pictures.draw_boxes", note)
    one = small_map()
    twice = replace(
        one,
        boxes_xyxy=torch.cat([one.boxes_xyxy, one.boxes_xyxy]),
        cosines=torch.cat([one.cosines, one.cosines - 0.1]),
        detector_scores=torch.cat([one.detector_scores, one.detector_scores / 2]),
        fused_scores=torch.cat([one.fused_scores, one.fused_scores / 2]),
    )
    # The second box has an IoU of 0.42 with the query on the right, the third one of 0.67.
    boxes = ((0, 0, 50, 50), (50, 5, 100, 53), (50, 20, 100, 65))
    draw(1, text_map=twice, boxes=boxes, labels=(0, 2, 1))
    assert tags == [
        ["scratch", "pit", "crack"],
        ["0.60", "0.00", "none"],
        ["0.60", "-0.80", "none"],
        ["0.65", "0.00", "none"],
    ]


def test_images_without_boxes_and_detectors_without_queries_are_drawn():
    nothing = TextMap(
        orig_size_hw=(60, 100),
        boxes_cxcywh=torch.zeros(0, 4),
        boxes_xyxy=torch.zeros(0, 4),
        cosines=torch.zeros(0, 3),
        detector_scores=torch.zeros(0, 3),
        fused_scores=torch.zeros(0, 3),
    )
    bare = draw(text_map=nothing, boxes=(), labels=())
    assert all((panel(bare, column) == 120).all() for column in range(4))
    draw(text_map=nothing)


def test_names_that_the_font_lacks_become_their_index():
    strange = ("裂纹", "Kratzer für Prüfer", "ثقب")
    assert (
        draw(0, names=strange).tobytes()
        == draw(0, names=("class 0", "Kratzer fur Prufer", "class 2")).tobytes()
    )


def test_the_picture_of_another_image_is_refused():
    message = "image: got 30x40 px for the map of an image of 60x100 px. Both must be of the same image."
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(image=gray_image(40, 30))


@pytest.fixture
def captions(monkeypatch) -> list[tuple[str, int]]:
    """File name and class of every row, which is not drawn."""
    rows = []

    def note(image, text_map, label, *, caption, **rest):
        rows.append((caption, label))
        return Image.new("RGB", (MAP_WIDTH, 10))

    monkeypatch.setattr("multimodal.text_map_pictures.draw_text_map", note)
    return rows


def val_split(config: Config) -> CocoSplit:
    return read_split(config.data, "val")


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_file_shows_the_rows_of_its_images(
    resize, tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path
):
    config = tiny_config(tiny_set, tmp_path, f"data.resize={resize}")
    split, trained = val_split(config), trained_fused(config)
    (path,) = write_text_maps(trained, split, (0,), tmp_path, num_images=0)
    # Without boxes, so that only the photograph and what the detector finds in it are drawn.
    form = build_input_format(config.data, config.image_size_hw)
    image = read_image(split.image_path(3))
    fitted, placement = fit_to_input(image, replace(form, resize=resize))
    row = draw_text_map(
        Image.fromarray(image.permute(1, 2, 0).numpy()),
        compute_text_map(trained.model, normalize(fitted, form)[None], placement),
        0,
        class_names=NAMES,
        boxes_xyxy=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        caption="val_3.png",
    )
    with Image.open(path) as sheet:
        shown = sheet.crop((ROWS_MARGIN, ROWS_TOP, ROWS_MARGIN + MAP_WIDTH, ROWS_TOP + row.height))
        assert shown.tobytes() == row.tobytes()
        assert sheet.width == MAP_WIDTH + 2 * ROWS_MARGIN


def test_true_boxes_but_no_crowd_regions_are_framed(tiny_set: Path, tiny_config, tmp_path: Path, monkeypatch):
    given = []

    def note(image, text_map, label, *, boxes_xyxy, labels, **rest):
        given.append((boxes_xyxy, labels))
        return Image.new("RGB", (MAP_WIDTH, 10))

    monkeypatch.setattr("multimodal.text_map_pictures.draw_text_map", note)
    config = tiny_config(tiny_set, tmp_path)
    split = val_split(config)
    # The second image has two boxes, here one of them and a crowd region.
    own, other = range(*split.first_box[1:3].tolist())
    is_crowd = split.is_crowd.copy()
    is_crowd[other] = True
    label = NAMES.index(split.class_names[split.category_ids.index(split.box_category_ids[own])])
    others = np.flatnonzero(np.arange(len(is_crowd)) != own)
    split.box_category_ids[others] = split.category_ids[split.class_names.index(NAMES[label - 1])]
    write_text_maps(trained_fused(config), replace(split, is_crowd=is_crowd), (label,), tmp_path)
    x, y, width, height = split.boxes_xywh[own].tolist()
    (boxes, labels), (no_boxes, _) = given
    assert boxes.tolist() == [[x, y, x + width, y + height]]
    assert labels.tolist() == [label]
    assert len(no_boxes) == 0


def test_each_class_has_a_file(tiny_set: Path, tiny_config, tmp_path: Path, captions):
    config = tiny_config(tiny_set, tmp_path)
    folder = tmp_path / "new" / "maps"
    paths = write_text_maps(trained_fused(config), val_split(config), (2, 0), folder, num_images=1)
    assert paths == [folder / "text_map_2_crack.png", folder / "text_map_0_pit.png"]
    assert all(path.is_file() for path in paths)
    # Of the four images the last one has no box.
    assert [label for _, label in captions] == [2, 2, 0, 0]
    assert captions[1][0] == captions[3][0] == "val_3.png"


def test_images_with_most_boxes_of_the_class_come_first(tiny_set, tiny_config, tmp_path: Path, captions):
    config = tiny_config(tiny_set, tmp_path)
    split = val_split(config)
    write_text_maps(trained_fused(config), split, (0, 1, 2), tmp_path)
    owner = np.repeat(split.file_names, np.diff(split.first_box))
    for label, category in enumerate(split.category_ids):
        counts = {
            name: int(((owner == name) & (split.box_category_ids == category)).sum())
            for name in split.file_names
        }
        expected = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
        assert [name for name, own in captions if own == label] == [*expected, "val_3.png"]


def test_crowd_regions_do_not_count(tiny_set: Path, tiny_config, tmp_path: Path, captions):
    config = tiny_config(tiny_set, tmp_path)
    split = val_split(config)
    crowds = replace(split, is_crowd=np.ones_like(split.is_crowd))
    write_text_maps(trained_fused(config), crowds, (0,), tmp_path)
    assert captions == [("val_3.png", 0)]


def test_a_split_without_such_images_gives_a_page_that_says_so(
    write_coco: Callable[..., Path], tiny_config, tmp_path: Path, captions
):
    # One image with one box of the first class by name.
    root = write_coco(tmp_path / "set", num_images={"train": 1, "val": 1})
    config = tiny_config(root, tmp_path)
    split = val_split(config)
    missing = next(
        label for label, category in enumerate(split.category_ids) if category not in split.box_category_ids
    )
    (path,) = write_text_maps(trained_fused(config), split, (missing,), tmp_path)
    assert captions == []
    with Image.open(path) as sheet:
        assert sheet.width == MAP_WIDTH + 2 * ROWS_MARGIN


def test_file_names_are_safe_and_differ(
    write_coco: Callable[..., Path], tiny_config, tmp_path: Path, captions
):
    names = {"裂纹": 1, "../Größe a/b": 2, "x" * 300: 3}
    root = write_coco(tmp_path / "set", categories=names, num_images={"train": 1, "val": 1})
    config = tiny_config(root, tmp_path)
    split = val_split(config)
    paths = write_text_maps(trained_fused(config, class_names=tuple(names)), split, (0, 1, 2), tmp_path)
    assert [path.name for path in paths] == [
        "text_map_0.png",
        "text_map_1_Groe_a_b.png",
        f"text_map_2_{'x' * 40}.png",
    ]
    assert all(path.parent == tmp_path for path in paths)


def test_a_class_that_does_not_exist_is_refused(tiny_set, tiny_config, tmp_path: Path):
    config = tiny_config(tiny_set, tmp_path)
    message = "class_labels: got 3, -1. Class indices go from 0 to 2 (pit, scratch, crack)."
    with pytest.raises(ValueError, match=re.escape(message)):
        write_text_maps(trained_fused(config), val_split(config), (0, 3, -1), tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
