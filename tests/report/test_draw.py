"""Pictures: sizes, pixels, and the inputs that make drawing code fall over."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from deim.report.draw import (
    Panel,
    PanelRow,
    detections_panel,
    draw_panel,
    panel_sheet,
    short_names,
)
from deim.report.palette import CLASS_COLORS, Color, class_color
from deim.structures import Detections

GRAY = (120, 120, 120)
NAMES = ("pit", "scratch", "crack")


def make_image(width: int = 200, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def make_detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
        queries=torch.arange(len(labels)),
    )


def draw_boxes(
    image: Image.Image, boxes: torch.Tensor, *, texts: list[str], colors: Sequence[Color], scale: float = 1.0
) -> Image.Image:
    panel = Panel(caption="", boxes_xyxy=boxes, texts=texts, colors=colors)
    return draw_panel(image, panel, scale=scale)


def count(photo_image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(photo_image) == color).all(axis=-1).sum())


def test_box_is_drawn_where_it_is_and_the_image_is_left_alone() -> None:
    image = make_image()
    photo_image = draw_boxes(
        image, torch.tensor([[40.0, 60.0, 120.0, 140.0]]), texts=["pit"], colors=[CLASS_COLORS[2]]
    )
    assert (photo_image.mode, photo_image.size) == ("RGB", (200, 160))
    for corner in ((40, 60), (120, 60), (40, 140), (120, 140)):
        assert photo_image.getpixel(corner) == CLASS_COLORS[2]
    for outside_or_inside in ((80, 100), (30, 100), (130, 100), (80, 150)):
        assert photo_image.getpixel(outside_or_inside) == GRAY
    assert image.tobytes() == make_image().tobytes()


def test_scale_enlarges_image_and_boxes() -> None:
    boxes = torch.tensor([[40.0, 60.0, 120.0, 140.0]])
    photo_image = draw_boxes(make_image(), boxes, texts=["pit"], colors=[CLASS_COLORS[0]], scale=2.5)
    assert photo_image.size == (500, 400)
    assert photo_image.getpixel((100, 350)) == CLASS_COLORS[0]
    assert photo_image.getpixel((200, 250)) == GRAY


def test_lines_grow_with_the_image() -> None:
    widths = []
    for side in (200, 1024, 2800):
        box = torch.tensor([[side * 0.25, side * 0.25, side * 0.75, side * 0.75]])
        photo_image = draw_boxes(make_image(side, side), box, texts=["pit"], colors=[CLASS_COLORS[1]])
        row = np.asarray(photo_image)[side // 2, : side // 2]
        widths.append(int((row == CLASS_COLORS[1]).all(axis=-1).sum()))
    assert widths == [2, 3, 8]


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 200, 160],
        [0, 0, 10, 10],
        [190, 150, 200, 160],
        [-50, -50, 30, 30],
        [150, 100, 999, 999],
        [-90, -90, -10, -10],
        [500, 500, 600, 600],
        [80, 80, 80, 80],
        [90, 90, 70, 70],
    ],
)
def test_tags_stay_inside_the_image_for_every_box(box: list[float]) -> None:
    boxes = torch.tensor([box], dtype=torch.float32)
    without = draw_boxes(make_image(), boxes, texts=[""], colors=[CLASS_COLORS[0]])
    photo_image = draw_boxes(make_image(), boxes, texts=["scratch 0.87"], colors=[CLASS_COLORS[0]])
    assert photo_image.size == (200, 160)
    # The whole tag is there: 12 letters of 12 px are about 70 × 15 px, most of it background color.
    assert count(photo_image, CLASS_COLORS[0]) - count(without, CLASS_COLORS[0]) > 400


def test_tags_of_equal_boxes_do_not_hide_each_other() -> None:
    boxes = torch.tensor([[50.0, 60.0, 150.0, 120.0]] * 3)
    together = draw_boxes(make_image(), boxes, texts=["pit"] * 3, colors=CLASS_COLORS[:3])
    alone = draw_boxes(make_image(), boxes[:1], texts=["pit"], colors=[CLASS_COLORS[1]])
    lines = draw_boxes(make_image(), boxes[:1], texts=[""], colors=[CLASS_COLORS[1]])
    tag_area = count(alone, CLASS_COLORS[1]) - count(lines, CLASS_COLORS[1])
    assert all(count(together, color) >= 0.9 * tag_area for color in CLASS_COLORS[:3])


@pytest.mark.parametrize("text", ["x" * 500, "Kratzer groß für", "裂纹", "a\nb", "…", ""])
@pytest.mark.parametrize("size", [(200, 160), (12, 9), (1, 1)])
def test_any_text_on_any_image(text: str, size: tuple[int, int]) -> None:
    photo_image = draw_boxes(
        make_image(*size), torch.tensor([[0.0, 0.0, 5.0, 5.0]]), texts=[text], colors=[CLASS_COLORS[0]]
    )
    assert photo_image.size == size


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = make_image().convert(mode)
    photo_image = draw_boxes(image, torch.zeros(0, 4), texts=[], colors=[])
    assert (photo_image.mode, photo_image.size) == ("RGB", image.size)
    assert image.mode == mode


def test_numbers_of_boxes_texts_and_colors_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_boxes(make_image(), torch.zeros(2, 4), texts=["pit"], colors=[CLASS_COLORS[0]] * 2)


def test_class_colors_are_fixed_and_repeat() -> None:
    assert len(set(CLASS_COLORS)) == len(CLASS_COLORS) == 7
    assert [class_color(label) for label in range(8)] == [*CLASS_COLORS, CLASS_COLORS[0]]


def test_each_detection_is_drawn_in_the_color_of_its_class() -> None:
    detections = make_detections([[20, 40, 60, 80], [100, 100, 150, 140]], [0.5, 0.49], [0, 1])
    photo_image = draw_panel(make_image(), detections_panel(detections, class_names=NAMES))
    assert count(photo_image, class_color(0)) > 0
    assert count(photo_image, class_color(1)) > 0


def test_no_detections_is_the_image_itself() -> None:
    photo_image = draw_panel(make_image(), detections_panel(make_detections([], [], []), class_names=NAMES))
    assert photo_image.tobytes() == make_image().tobytes()


def test_names_beyond_the_font_are_replaced_by_the_class_index() -> None:
    detections = make_detections([[20, 40, 60, 80]], [0.5], [0])
    drawn = [
        draw_panel(make_image(), detections_panel(detections, class_names=[name]))
        for name in ("裂纹", "class 0", "Fläche", "Flache")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    assert drawn[2].tobytes() != drawn[3].tobytes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ()),
        (("pit", "", " a\nb "), ("pit", "class 1", "a b")),
        (("裂纹", "凹坑", "RAYÓN"), ("class 0", "class 1", "RAYÓN")),
        # Equal once the letters that the font lacks are gone; a class that is called `class 1`.
        (("a 裂", "a 凹"), ("class 0", "class 1")),
        (("class 1", "裂纹"), ("class 0", "class 1")),
        (("-", "...", "_"), ("-", "...", "_")),
        (("a very long name that ends", "another"), ("a very long…me that ends", "another")),
        (("pit", f"{'x' * 40}1{'y' * 40}", f"{'x' * 40}2{'y' * 40}"), ("pit", "class 1", "class 2")),
    ],
)
def test_short_names(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert short_names(names) == expected


def test_short_names_are_short_and_differ_whatever_the_names() -> None:
    rng = np.random.default_rng(0)
    parts = ("a", "pit ", "class ", "1", "2", "裂", "_", "é", "a long part of a name ", "$", " ")
    for _ in range(300):
        names = {"".join(rng.choice(parts, size=rng.integers(0, 7))) for _ in range(rng.integers(1, 12))}
        for longest in (10, 24):
            shown = short_names(tuple(names), longest=longest)
            assert len(set(shown)) == len(shown) == len(names)
            assert max(map(len, shown)) <= longest
    assert short_names(["运行", "Ж"], kind="run") == ("run 0", "Ж")


def make_row(width: int = 200, height: int = 200, mode: str = "RGB") -> PanelRow:
    truth = Panel(
        caption="ground truth",
        boxes_xyxy=torch.tensor([[40.0, 60.0, 120.0, 150.0]]),
        texts=["scratch"],
        colors=[class_color(1)],
    )
    detections = make_detections([[40, 60, 120, 150], [5, 5, 20, 20]], [0.9, 0.1], [2, 0])
    actual = detections_panel(detections, class_names=NAMES, caption="detections")
    image = make_image(width, height).convert(mode)
    return PanelRow(image=image, caption="image.png", panels=[truth, actual])


@pytest.mark.parametrize(("number", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (12, 2, 6)])
def test_the_grid_of_a_sheet(number: int, columns: int, rows: int) -> None:
    sheet = panel_sheet([make_row()] * number, title="val", columns=2)
    assert sheet.mode == "RGB"
    assert sheet.size == (24 + columns * (726 + 24), 64 + rows * (40 + 360 + 24))


def test_every_panel_shows_its_boxes_where_they_are() -> None:
    sheet = panel_sheet([make_row()], title="val", columns=2)
    truth, actual = sheet.crop((24, 104, 384, 464)), sheet.crop((390, 104, 750, 464))
    for panel, custom, other in (
        (truth, class_color(1), class_color(2)),
        (actual, class_color(2), class_color(1)),
    ):
        assert panel.getpixel((72, 108)) == custom  # 40 and 60 of 200 px are 72 and 108 of 360 px
        assert panel.getpixel((216, 270)) == custom
        assert panel.getpixel((144, 200)) == GRAY
        assert count(panel, other) == 0
    assert count(sheet.crop((0, 0, 774, 60)), (255, 255, 255)) < 774 * 60  # the title


def test_cells_are_equal_whatever_the_images() -> None:
    rows = [make_row(2000, 300), make_row(300, 2000), make_row(160, 90, mode="L"), make_row(1, 1)]
    assert panel_sheet(rows, title="val " * 200, columns=2).size == (24 + 2 * 750, 64 + 2 * 424)
    assert panel_sheet([make_row(400, 200)] * 2, title="val", columns=2).height == 64 + 40 + 180 + 24


def test_a_sheet_of_nothing() -> None:
    sheet = panel_sheet([], title="val", columns=2)
    assert sheet.width > 700
    assert 0 < count(sheet, (255, 255, 255)) < sheet.width * sheet.height


def test_panel_sheet_puts_every_panel_of_a_row_beside_the_other() -> None:
    boxes = torch.tensor([[40.0, 60.0, 120.0, 150.0]])
    panels = [
        Panel(
            caption="run " * 100,
            boxes_xyxy=boxes[:number],
            texts=["pit"][:number],
            colors=[CLASS_COLORS[0]][:number],
        )
        for number in (1, 0, 1)
    ]
    rows = [PanelRow(image=make_image(200, 200), caption="image.png", panels=panels)] * 2
    sheet = panel_sheet(rows, title="runs")
    assert sheet.size == (24 + 3 * 366 - 6 + 24, 64 + 2 * (40 + 360 + 24))
    first, second, third = (sheet.crop((24 + 366 * k, 104, 384 + 366 * k, 464)) for k in range(3))
    assert count(first, CLASS_COLORS[0]) == count(third, CLASS_COLORS[0]) > 0
    assert count(second, CLASS_COLORS[0]) == 0
    assert panel_sheet([], title="nothing").width > 300
