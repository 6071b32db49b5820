"""Drawings of boxes with labels, and sheets of them: for reports, previews and predictions."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.font_manager import get_font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deim.boxes import xywh_to_xyxy
from deim.files import write_bytes
from deim.inference.detection_table import GroundTruthTable
from deim.language import ENGLISH, Language
from deim.report.palette import EMPTY, FAINT, INK, PAPER, Color, class_color
from deim.structures import Detections

Rectangle = tuple[float, float, float, float]

FONT_PATH = str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
LONGEST_NAME = 24
PANEL_WIDTH = 360
PANEL_HEIGHTS = (120, 360)
GAP, MARGIN, LINE_HEIGHT = 6, 24, 20
TITLE_SIZE, CAPTION_SIZE = 22, 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One drawing of an image with N boxes, their labels and colors."""

    caption: str
    """Line above the panel."""
    boxes_xyxy: Tensor
    """(N, 4) float, pixels of the image."""
    texts: Sequence[str]
    """N labels, cut if wider than the image; an empty one gives no tag."""
    colors: Sequence[Color]


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelRow:
    """One image in several panels with different boxes."""

    image: Image.Image
    """The original image, any mode."""
    caption: str
    """Line above all panels, such as the file name."""
    panels: Sequence[Panel]


def draw_panel(image: Image.Image, panel: Panel, *, scale: float = 1.0) -> Image.Image:
    """Draw the boxes of a panel with label tags on a copy of an image.

    Boxes are clipped to the image; lines and letters grow with it. A tag stands above its box, or below or
    inside it where there is no room, and never leaves the image. The first boxes lie on top.

    Args:
        image: 8 bits per channel, any mode.
        panel: Boxes in pixels of the image.
        scale: Factor from the image to the drawing; enlarge small images so that tags fit.

    Returns:
        A new RGB image, `scale` times the size.

    Raises:
        ValueError: If boxes, texts and colors differ in number.
    """
    canvas = image.convert("RGB")
    if scale != 1:
        canvas = canvas.resize((max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale))))
    draw = ImageDraw.Draw(canvas)
    line_width = max(2, round(max(canvas.size) / 350))
    font = _load_font(min(max(12, min(canvas.size) // 40), 40))
    rectangles = [_clip(box, canvas.size) for box in (panel.boxes_xyxy * scale).tolist()]
    entries = list(zip(rectangles, panel.texts, panel.colors, strict=True))
    for (x1, y1, x2, y2), _, color in reversed(entries):
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=line_width + 2)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line_width)
    tags: list[tuple[Rectangle, str, Color]] = []
    for rectangle, text, color in entries:
        if text:
            shown = _fit_text(text, font, canvas.width - 6)
            size = font.getlength(shown) + 6, sum(font.getmetrics()) + 2
            tags.append((_place_tag(rectangle, size, canvas.size, [tag for tag, *_ in tags]), shown, color))
    for (x1, y1, x2, y2), text, color in reversed(tags):
        is_dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 130
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color)
        draw.text((x1 + 3, (y1 + y2) / 2), text, font=font, fill=PAPER if is_dark else INK, anchor="lm")
    return canvas


def detections_panel(
    detections: Detections,
    *,
    class_names: Sequence[str],
    caption: str = "",
    colors: Sequence[Color] | None = None,
    language: Language = ENGLISH,
) -> Panel:
    """Build the panel of the detections of one image; None for the colors of the classes."""
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    names = short_names(class_names, kind=language.text("class"))
    return Panel(
        caption=caption,
        boxes_xyxy=detections.boxes_xyxy,
        texts=[f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=colors or [class_color(label) for label in labels],
    )


def truth_panel(
    ground_truth: GroundTruthTable, image: int, *, color: Color | None = None, language: Language = ENGLISH
) -> Panel:
    """Build the panel of the ground truth of one image, in one color or, if None, in those of the classes."""
    names = short_names(ground_truth.class_names, kind=language.text("class"))
    boxes = ground_truth.image == image
    labels = ground_truth.label[boxes].tolist()
    return Panel(
        caption=language.text("ground truth: {number}", number=len(labels)),
        boxes_xyxy=xywh_to_xyxy(torch.from_numpy(ground_truth.boxes_xywh[boxes])),
        texts=[names[label] for label in labels],
        colors=[color or class_color(label) for label in labels],
    )


def panel_sheet(
    rows: Sequence[PanelRow], *, title: str, columns: int = 1, language: Language = ENGLISH
) -> Image.Image:
    """Draw images on one RGB sheet, each in the same number of panels of 360 px width and common height."""
    heights = [math.ceil(PANEL_WIDTH * row.image.height / row.image.width) for row in rows]
    panel_height = min(max([PANEL_HEIGHTS[0], *heights]), PANEL_HEIGHTS[1])
    cells = [draw_row(row, panel_wh=(PANEL_WIDTH, panel_height)) for row in rows]
    columns = min(columns, max(1, len(cells)))
    step_x = (cells[0].width if cells else 2 * PANEL_WIDTH) + MARGIN
    step_y = (cells[0].height if cells else LINE_HEIGHT) + MARGIN
    top = MARGIN + 2 * LINE_HEIGHT
    height = top + max(1, math.ceil(len(cells) / columns)) * step_y
    sheet = Image.new("RGB", (MARGIN + columns * step_x, height), PAPER)
    _write_line(sheet, (MARGIN, MARGIN), title, size=TITLE_SIZE, color=INK)
    if not cells:
        _write_line(sheet, (MARGIN, top), language.text("No images."), size=CAPTION_SIZE, color=FAINT)
    for index, cell in enumerate(cells):
        y, x = divmod(index, columns)
        sheet.paste(cell, (MARGIN + x * step_x, top + y * step_y))
    return sheet


def draw_row(row: PanelRow, *, panel_wh: tuple[int, int]) -> Image.Image:
    """Draw the panels of an image side by side below its caption, each centered in an area of that size."""
    width, height = panel_wh
    size_wh = len(row.panels) * (width + GAP) - GAP, 2 * LINE_HEIGHT + height
    canvas = Image.new("RGB", size_wh, PAPER)
    _write_line(canvas, (0, 0), row.caption, size=CAPTION_SIZE, color=INK)
    scale = min(width / row.image.width, height / row.image.height)
    for index, panel in enumerate(row.panels):
        cell = Image.new("RGB", (width, LINE_HEIGHT + height), EMPTY)
        cell.paste(PAPER, (0, 0, width, LINE_HEIGHT))
        _write_line(cell, (0, 0), panel.caption, size=CAPTION_SIZE, color=FAINT)
        drawn = draw_panel(row.image, panel, scale=scale)
        cell.paste(drawn, ((width - drawn.width) // 2, LINE_HEIGHT + (height - drawn.height) // 2))
        canvas.paste(cell, (index * (width + GAP), LINE_HEIGHT))
    return canvas


def short_names(names: Sequence[str], *, kind: str = "class", longest: int = LONGEST_NAME) -> tuple[str, ...]:
    """Shorten names for images and charts so that they stay distinct.

    A name that is too long loses its middle. A character that the font lacks becomes a question mark. A name
    without any character that can be shown, or one that looks like another, becomes its kind and index, such
    as `class 3`.

    Args:
        names: Names of all classes, or of all runs, in their order.
        kind: The word for a class or a run.
        longest: Number of characters, at least 10.
    """
    has_glyph = get_font(FONT_PATH).get_char_index
    head, tail = (longest - 1) // 2, longest // 2
    shown = []
    for index, name in enumerate(names):
        readable = "".join(char if has_glyph(ord(char)) else "?" for char in " ".join(name.split()))
        if len(readable) > longest:
            readable = f"{readable[:head]}…{readable[-tail:]}"
        shown.append(readable if readable.strip("? ") else f"{kind} {index}")
    while len(times := Counter(shown)) < len(shown):
        # Repeated in case that a class is called `class 3`.
        shown = [f"{kind} {index}" if times[name] > 1 else name for index, name in enumerate(shown)]
    return tuple(shown)


def _fit_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text to a width in pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _write_line(sheet: Image.Image, at_xy: tuple[int, int], text: str, *, size: int, color: Color) -> None:
    """Write one line on an image, cut at its right edge; `at_xy` is its upper left corner."""
    font = _load_font(size)
    ImageDraw.Draw(sheet).text(at_xy, _fit_text(text, font, sheet.width - at_xy[0]), font=font, fill=color)


@cache
def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """Load the font of all drawings, DejaVu Sans, which Matplotlib brings along."""
    return ImageFont.truetype(FONT_PATH, size)


def _clip(box_xyxy: Sequence[float], image_wh: tuple[int, int]) -> Rectangle:
    width, height = image_wh
    x1, x2 = (min(max(x, 0.0), width - 1.0) for x in (box_xyxy[0], box_xyxy[2]))
    y1, y2 = (min(max(y, 0.0), height - 1.0) for y in (box_xyxy[1], box_xyxy[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def _place_tag(
    box: Rectangle, tag_wh: tuple[float, float], image_wh: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Choose the place above, below or inside the box that covers the least of other tags and of the box."""
    x1, y1, x2, y2 = box
    width, height = tag_wh
    places = []
    for y in (y1 - height, y2 + 1, y1, y2 - height):
        for x in (x1, x2 - width):
            left = max(0.0, min(x, image_wh[0] - width))
            top = max(0.0, min(y, image_wh[1] - height))
            places.append((left, top, left + width, top + height))
    covered = [(sum(_shared(place, tag) for tag in taken), _shared(place, box)) for place in places]
    # In tenths of the tag's area, so that a pixel or two decide nothing.
    ranks = [[round(10 * area / (width * height)) for area in areas] for areas in covered]
    return places[ranks.index(min(ranks))]


def _shared(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically, in the format of the suffix; see `write_atomically` for the errors."""
    content = io.BytesIO()
    image.save(content, format=Image.registered_extensions()[path.suffix.lower()])
    write_bytes(path, content.getvalue())
