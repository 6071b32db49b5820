"""Pictures of ground truth and detections, drawn with Pillow alone."""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deim.structures import Detections

Color = tuple[int, int, int]
"""Red, green, blue in 0..255."""
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito, Color Universal Design (2008), without black: distinct to color-blind readers."""

MAX_SAMPLES = 12
"""The most samples that a contact sheet holds."""
PANEL_WIDTH = 360
PANEL_HEIGHTS = (120, 360)
GAP, MARGIN = 6, 24
CELL_WIDTH = 2 * PANEL_WIDTH + GAP
LONGEST_NAME = 24
TITLE_SIZE, CAPTION_SIZE = 22, 14
LINE_HEIGHT = 20
PAPER, INK, FAINT, EMPTY = (255, 255, 255), (25, 25, 25), (105, 105, 105), (232, 232, 232)


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetEntry:
    """One image of a contact sheet."""

    image: Image.Image
    """The original image, any mode."""
    caption: str
    """What stands above it, such as the file name."""
    boxes_xyxy: Tensor
    """(N, 4) float, ground truth in pixels of `image`."""
    labels: Tensor
    """(N,) int64, 0-based class index of the ground truth."""
    detections: Detections
    """Those to be drawn, in pixels of `image`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture of an image with some boxes."""

    caption: str
    """What stands above it."""
    boxes_xyxy: Tensor
    """(N, 4) float, pixels of the image."""
    texts: Sequence[str]
    """N labels."""
    colors: Sequence[Color]
    """N colors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelRow:
    """One image, several times, with different boxes."""

    image: Image.Image
    """The original image, any mode."""
    caption: str
    """What stands above all panels, such as the file name."""
    panels: Sequence[Panel]


def class_color(label: int) -> Color:
    """Color of a class, the same in every picture; the palette repeats after seven classes.

    Args:
        label: 0-based class index.

    Returns:
        Red, green, blue in 0..255.
    """
    return PALETTE[label % len(PALETTE)]


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: Tensor,
    *,
    texts: Sequence[str],
    colors: Sequence[Color],
    scale: float = 1.0,
    line_width: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """Draw boxes with label tags on a copy of an image.

    Boxes are clipped to the image; lines and letters grow with it. A tag stands above its box, or below or
    inside where there is no room, and never leaves the image. The first boxes choose first and lie on top.
    Pillow's bundled font has ASCII only: accents are dropped, other characters become question marks.

    Args:
        image: Any mode; more than 8 bits are stretched between darkest and brightest pixel.
        boxes_xyxy: (N, 4) float, pixels of the image. N may be 0.
        texts: N labels, cut if wider than the image; an empty one gives no tag.
        colors: N colors.
        scale: Factor from the image to the picture; enlarge small images so that tags leave room.
        line_width: In pixels of the picture; None follows its size.
        font_size: In pixels of the picture; None follows its size.

    Returns:
        A new RGB image, `scale` times the size.

    Raises:
        ValueError: If boxes, texts and colors differ in number.
    """
    canvas = _to_rgb(image)
    if scale != 1:
        canvas = canvas.resize((max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale))))
    draw = ImageDraw.Draw(canvas)
    line_width = line_width or max(2, round(max(canvas.size) / 350))
    font = ImageFont.load_default(size=font_size or min(max(12, min(canvas.size) // 40), 40))
    rectangles = [_clip(box, canvas.size) for box in (boxes_xyxy * scale).tolist()]
    entries = list(zip(rectangles, texts, colors, strict=True))
    for (x1, y1, x2, y2), _, color in reversed(entries):
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=line_width + 2)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line_width)
    tagged = [
        (rectangle, fit_text(text, font, canvas.width - 6), color)
        for rectangle, text, color in entries
        if text
    ]
    tags: list[Rectangle] = []
    for rectangle, text, _ in tagged:
        tags.append(_place_tag(rectangle, _tag_size(text, font), canvas.size, tags))
    for tag, (_, text, color) in reversed(list(zip(tags, tagged, strict=True))):
        _draw_tag(draw, tag, text, color, font)
    return canvas


def draw_detections(
    image: Image.Image,
    detections: Detections,
    *,
    class_names: Sequence[str],
    scale: float = 1.0,
) -> Image.Image:
    """Draw the detections of one image with class and score.

    Args:
        image: The original image, any mode.
        detections: In pixels of `image`, best score first. K may be 0.
        class_names: Name of each class index.
        scale: As in `draw_boxes`.

    Returns:
        A new RGB image, `scale` times the size.
    """
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    names = shown_names(class_names)
    return draw_boxes(
        image,
        detections.boxes_xyxy,
        texts=[f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=[class_color(label) for label in labels],
        scale=scale,
    )


def contact_sheet(samples: Sequence[SheetEntry], *, title: str, class_names: Sequence[str]) -> Image.Image:
    """Show samples on one page: ground truth on the left, detections on the right of each.

    Images are scaled into panels 360 px wide, all of the same height; two samples stand side by side.

    Args:
        samples: At most 12; 0 gives a page that says so.
        title: The line at the top.
        class_names: Name of each class index.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there are more than 12 samples.
    """
    if len(samples) > MAX_SAMPLES:
        raise ValueError(f"contact_sheet: too many samples, got {len(samples)}. At most {MAX_SAMPLES} fit.")
    panel_height = _panel_height([sample.image for sample in samples])
    names = shown_names(class_names)
    cells = []
    for sample in samples:
        labels = sample.labels.tolist()
        scale = min(PANEL_WIDTH / sample.image.width, panel_height / sample.image.height)
        truth = draw_boxes(
            sample.image,
            sample.boxes_xyxy,
            texts=[names[label] for label in labels],
            colors=[class_color(label) for label in labels],
            scale=scale,
        )
        found = draw_detections(sample.image, sample.detections, class_names=class_names, scale=scale)
        panels = [
            (truth, f"ground truth: {len(labels)}"),
            (found, f"detections: {len(sample.detections.scores)}"),
        ]
        cells.append(_row_of_panels(sample.caption, panels, panel_height))
    return _sheet(cells, title, columns=2)


def panel_sheet(rows: Sequence[PanelRow], *, title: str) -> Image.Image:
    """Show images on one page, one a row, each in several panels.

    Args:
        rows: All with the same number of panels; no row gives a page that says so.
        title: The line at the top.

    Returns:
        An RGB image.
    """
    panel_height = _panel_height([row.image for row in rows])
    cells = []
    for row in rows:
        scale = min(PANEL_WIDTH / row.image.width, panel_height / row.image.height)
        panels = [
            (
                draw_boxes(row.image, panel.boxes_xyxy, texts=panel.texts, colors=panel.colors, scale=scale),
                panel.caption,
            )
            for panel in row.panels
        ]
        cells.append(_row_of_panels(row.caption, panels, panel_height))
    return _sheet(cells, title, columns=1)


def _panel_height(images: Sequence[Image.Image]) -> int:
    """The same for all panels of a sheet."""
    heights = [math.ceil(PANEL_WIDTH * image.height / image.width) for image in images]
    low, high = PANEL_HEIGHTS
    return min(max([low, *heights]), high)


def _sheet(cells: Sequence[Image.Image], title: str, *, columns: int) -> Image.Image:
    """Cells of equal size below a title."""
    columns = min(columns, max(1, len(cells)))
    rows = math.ceil(len(cells) / columns)
    cell_width = cells[0].width if cells else CELL_WIDTH
    cell_height = cells[0].height if cells else 0
    step_x, step_y = cell_width + MARGIN, cell_height + MARGIN
    top = MARGIN + 2 * LINE_HEIGHT
    sheet = Image.new(
        "RGB", (MARGIN + columns * step_x, top + max(rows * step_y, LINE_HEIGHT + MARGIN)), PAPER
    )
    write_line(sheet, (MARGIN, MARGIN), title, size=TITLE_SIZE, color=INK)
    if not cells:
        write_line(sheet, (MARGIN, top), "No samples.", size=CAPTION_SIZE, color=FAINT)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (MARGIN + column * step_x, top + row * step_y))
    return sheet


def _row_of_panels(caption: str, panels: Sequence[tuple[Image.Image, str]], panel_height: int) -> Image.Image:
    """Pictures with their captions side by side, centered in panels of equal size, below a caption of all."""
    width = len(panels) * (PANEL_WIDTH + GAP) - GAP
    row = Image.new("RGB", (width, 2 * LINE_HEIGHT + panel_height), PAPER)
    write_line(row, (0, 0), caption, size=CAPTION_SIZE, color=INK)
    for index, (picture, own_caption) in enumerate(panels):
        left = index * (PANEL_WIDTH + GAP)
        # On an image of its own, which cuts what is too long for the panel.
        line = Image.new("RGB", (PANEL_WIDTH, LINE_HEIGHT), PAPER)
        write_line(line, (0, 0), own_caption, size=CAPTION_SIZE, color=FAINT)
        row.paste(line, (left, LINE_HEIGHT))
        panel = Image.new("RGB", (PANEL_WIDTH, panel_height), EMPTY)
        panel.paste(picture, ((PANEL_WIDTH - picture.width) // 2, (panel_height - picture.height) // 2))
        row.paste(panel, (left, 2 * LINE_HEIGHT))
    return row


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        # Pillow would clip these at 255, so that a 16-bit image comes out white.
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(np.uint8((values - low) * (255 / max(high - low, 1e-12))))
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _clip(box_xyxy: Sequence[float], image_wh: tuple[int, int]) -> Rectangle:
    width, height = image_wh
    x1, x2 = (min(max(x, 0.0), width - 1.0) for x in (box_xyxy[0], box_xyxy[2]))
    y1, y2 = (min(max(y, 0.0), height - 1.0) for y in (box_xyxy[1], box_xyxy[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def fit_text(text: str, font: Font, width: float) -> str:
    """Cut a text to a width, and replace what Pillow's bundled font lacks.

    Args:
        text: Accents are dropped, other characters beyond ASCII become question marks.
        font: What it will be written in.
        width: In pixels.
    """
    text = " ".join("".join(one if one.isascii() else "?" for one in _without_accents(text)).split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def shown_names(
    names: Sequence[str],
    *,
    kind: str = "class",
    longest: int = LONGEST_NAME,
    has_glyph: Callable[[str], bool] | None = None,
) -> tuple[str, ...]:
    """Names as pictures and charts show them: short, in letters that the font has, and all different.

    If some are too long, the words that all begin with or end with are left out of all. A name that is still
    too long is cut at its end, or in its middle if another one would look the same. A name in a script that
    the font lacks, and one that looks like another for all that, becomes its kind and index: `class 3`.

    Args:
        names: Of all classes, or of all runs, in their order.
        kind: What the names are of.
        longest: Characters, at least 10.
        has_glyph: Whether the font has a character; others become question marks. None is Pillow's bundled
            font, for which `fit_text` drops accents.

    Returns:
        As many names.
    """
    stand_ins = [f"{kind} {index}" for index in range(len(names))]
    whole = [
        _readable(name, stand_in, has_glyph or _is_ascii_without_accents)
        for name, stand_in in zip(names, stand_ins, strict=True)
    ]
    if max(map(len, whole), default=0) > longest:
        whole = _without_common_words(whole)
    shown = [name if len(name) <= longest else name[: longest - 1] + "…" for name in whole]
    times = Counter(shown)
    head, tail = (longest - 1) // 2, longest // 2
    shown = [
        f"{name[:head]}…{name[-tail:]}" if len(name) > longest and times[cut] > 1 else cut
        for name, cut in zip(whole, shown, strict=True)
    ]
    while len(times := Counter(shown)) < len(shown):
        # Once more if a class is called `class 3`.
        shown = [
            stand_in if times[name] > 1 else name for name, stand_in in zip(shown, stand_ins, strict=True)
        ]
    return tuple(shown)


def short_name(class_names: Sequence[str], label: int, longest: int = LONGEST_NAME) -> str:
    """Name of one class as `shown_names` has it.

    Args:
        class_names: Name of each class index.
        label: 0-based class index.
        longest: Characters, at least 10.
    """
    return shown_names(class_names, longest=longest)[label]


def _readable(name: str, stand_in: str, has_glyph: Callable[[str], bool]) -> str:
    name = " ".join(name.split())
    if name.isascii() and name.isprintable():
        return name or stand_in
    shown = "".join(one if has_glyph(one) else "?" for one in name)
    is_lost = shown != name and not any(one.isalnum() for one in shown)
    return stand_in if is_lost else shown


def _without_accents(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(one for one in folded if not unicodedata.combining(one))


def _is_ascii_without_accents(character: str) -> bool:
    return _without_accents(character).isascii()


def _without_common_words(names: Sequence[str]) -> list[str]:
    start = _common_words(names)
    end = _common_words([name[start:][::-1] for name in names])
    stripped = [name[start : len(name) - end] for name in names]
    return stripped if len(names) > 1 and all(stripped) else list(names)


def _common_words(names: Sequence[str]) -> int:
    """Number of characters that all names begin with, up to the end of a word."""
    length = 0
    for position, letters in enumerate(zip(*names, strict=False)):
        if len(set(letters)) > 1:
            break
        if letters[0] in " _-./":
            length = position + 1
    return length


def _tag_size(text: str, font: Font) -> tuple[float, float]:
    left, top, _, bottom = font.getbbox("Ag|")
    return font.getlength(text) + 6 - left, bottom - top + 4


def _place_tag(
    box: Rectangle, tag_wh: tuple[float, float], image_wh: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Above, below or inside the box: the first place in the image that covers the least of tags and box."""
    x1, y1, x2, y2 = box
    width, height = tag_wh
    places = []
    for y in (y1 - height, y2 + 1, y1, y2 - height):
        for x in (x1, x2 - width):
            left = max(0.0, min(x, image_wh[0] - width))
            top = max(0.0, min(y, image_wh[1] - height))
            places.append((left, top, left + width, top + height))
    covered = [(sum(_shared(place, tag) for tag in taken), _shared(place, box)) for place in places]
    # In tenths of the tag's area: a pixel or two decide nothing.
    ranks = [[round(10 * area / (width * height)) for area in areas] for areas in covered]
    return places[ranks.index(min(ranks))]


def _shared(a: Rectangle, b: Rectangle) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_tag(draw: ImageDraw.ImageDraw, tag: Rectangle, text: str, color: Color, font: Font) -> None:
    red, green, blue = color
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 130
    draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=color)
    draw.text((tag[0] + 3, (tag[1] + tag[3]) / 2), text, font=font, fill=PAPER if dark else INK, anchor="lm")


def write_line(sheet: Image.Image, at_xy: tuple[int, int], text: str, *, size: int, color: Color) -> None:
    """Write one line on a picture, cut at its right edge.

    Args:
        sheet: Changed in place.
        at_xy: Upper left corner of the line, in pixels.
        text: As for `fit_text`.
        size: Of the font, in pixels.
        color: Of the letters.
    """
    font = ImageFont.load_default(size=size)
    shown = fit_text(text, font, sheet.width - at_xy[0])
    ImageDraw.Draw(sheet).text(at_xy, shown, font=font, fill=color)
