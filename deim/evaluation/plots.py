"""Pictures of ground truth and detections, drawn with Pillow alone."""

import math
import unicodedata
from collections.abc import Sequence
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
"""Okabe and Ito, Color Universal Design (2008), without black: distinct to colour-blind readers."""

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
    """What the model found, in pixels of `image`."""


def class_color(label: int) -> Color:
    """Colour of a class, the same in every picture; the palette repeats after seven classes.

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
) -> Image.Image:
    """Draw boxes with label tags on a copy of an image.

    Boxes are clipped to the image; lines and letters grow with it. A tag stands above its box, or below or
    inside where there is no room, and never leaves the image. The first boxes choose first and lie on top.
    Pillow's bundled font has ASCII only: accents are dropped, other characters become question marks.

    Args:
        image: Any mode; more than 8 bits are stretched between darkest and brightest pixel.
        boxes_xyxy: (N, 4) float, pixels of the image. N may be 0.
        texts: N labels, cut if wider than the image.
        colors: N colours.
        scale: Factor from the image to the picture; enlarge small images so that tags leave room.

    Returns:
        A new RGB image, `scale` times the size.

    Raises:
        ValueError: If boxes, texts and colours differ in number.
    """
    canvas = _to_rgb(image)
    if scale != 1:
        canvas = canvas.resize((max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale))))
    draw = ImageDraw.Draw(canvas)
    line_width = max(2, round(max(canvas.size) / 350))
    font = ImageFont.load_default(size=min(max(12, min(canvas.size) // 40), 40))
    rectangles = [_clip(box, canvas.size) for box in (boxes_xyxy * scale).tolist()]
    entries = list(zip(rectangles, texts, colors, strict=True))
    for (x1, y1, x2, y2), _, color in reversed(entries):
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK, width=line_width + 2)
        draw.rectangle((x1, y1, x2, y2), outline=color, width=line_width)
    shown = [_cut(text, font, canvas.width - 6) for text in texts]
    tags: list[Rectangle] = []
    for rectangle, text in zip(rectangles, shown, strict=True):
        tags.append(_place_tag(rectangle, _tag_size(text, font), canvas.size, tags))
    for tag, text, color in reversed(list(zip(tags, shown, colors, strict=True))):
        _draw_tag(draw, tag, text, color, font)
    return canvas


def draw_detections(
    image: Image.Image,
    detections: Detections,
    *,
    class_names: Sequence[str],
    score_threshold: float,
    scale: float = 1.0,
) -> Image.Image:
    """Draw the detections of one image with class and score.

    Args:
        image: The original image, any mode.
        detections: In pixels of `image`, best score first. K may be 0.
        class_names: Name of each class index.
        score_threshold: In [0, 1]; detections below it are left out.
        scale: As in `draw_boxes`.

    Returns:
        A new RGB image, `scale` times the size.
    """
    keep = detections.scores >= score_threshold
    labels = detections.labels[keep].tolist()
    scores = detections.scores[keep].tolist()
    return draw_boxes(
        image,
        detections.boxes_xyxy[keep],
        texts=[
            f"{_name(class_names, label)} {score:.2f}" for label, score in zip(labels, scores, strict=True)
        ],
        colors=[class_color(label) for label in labels],
        scale=scale,
    )


def contact_sheet(
    samples: Sequence[SheetEntry], *, title: str, class_names: Sequence[str], score_threshold: float
) -> Image.Image:
    """Show samples on one page: ground truth on the left, detections on the right of each.

    Images are scaled into panels 360 px wide, all of the same height; two samples stand side by side.

    Args:
        samples: At most 12; 0 gives a page that says so.
        title: The line at the top.
        class_names: Name of each class index.
        score_threshold: In [0, 1]; detections below it are left out.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there are more than 12 samples.
    """
    if len(samples) > MAX_SAMPLES:
        raise ValueError(f"contact_sheet: too many samples, got {len(samples)}. At most {MAX_SAMPLES} fit.")
    heights = [math.ceil(PANEL_WIDTH * sample.image.height / sample.image.width) for sample in samples]
    low, high = PANEL_HEIGHTS
    panel_height = min(max([low, *heights]), high)
    cells = [_cell(sample, class_names, score_threshold, panel_height) for sample in samples]
    columns, rows = min(2, max(1, len(cells))), math.ceil(len(cells) / 2)
    step_x, step_y = CELL_WIDTH + MARGIN, 2 * LINE_HEIGHT + panel_height + MARGIN
    top = MARGIN + 2 * LINE_HEIGHT
    sheet = Image.new(
        "RGB", (MARGIN + columns * step_x, top + max(rows * step_y, LINE_HEIGHT + MARGIN)), PAPER
    )
    _write(sheet, (MARGIN, MARGIN), title, size=TITLE_SIZE, color=INK)
    if not cells:
        _write(sheet, (MARGIN, top), "No samples.", size=CAPTION_SIZE, color=FAINT)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (MARGIN + column * step_x, top + row * step_y))
    return sheet


def _cell(
    sample: SheetEntry, class_names: Sequence[str], score_threshold: float, panel_height: int
) -> Image.Image:
    """One sample with its captions; pictures are centred in panels of equal size."""
    scale = min(PANEL_WIDTH / sample.image.width, panel_height / sample.image.height)
    labels = sample.labels.tolist()
    truth = draw_boxes(
        sample.image,
        sample.boxes_xyxy,
        texts=[_name(class_names, label) for label in labels],
        colors=[class_color(label) for label in labels],
        scale=scale,
    )
    found = draw_detections(
        sample.image,
        sample.detections,
        class_names=class_names,
        score_threshold=score_threshold,
        scale=scale,
    )
    num_found = int((sample.detections.scores >= score_threshold).sum())
    cell = Image.new("RGB", (CELL_WIDTH, 2 * LINE_HEIGHT + panel_height), PAPER)
    _write(cell, (0, 0), sample.caption, size=CAPTION_SIZE, color=INK)
    for left, picture, caption in (
        (0, truth, f"ground truth: {len(labels)}"),
        (PANEL_WIDTH + GAP, found, f"predictions, score >= {score_threshold:.2f}: {num_found}"),
    ):
        _write(cell, (left, LINE_HEIGHT), caption, size=CAPTION_SIZE, color=FAINT)
        panel = Image.new("RGB", (PANEL_WIDTH, panel_height), EMPTY)
        panel.paste(picture, ((PANEL_WIDTH - picture.width) // 2, (panel_height - picture.height) // 2))
        cell.paste(panel, (left, 2 * LINE_HEIGHT))
    return cell


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


def _cut(text: str, font: Font, width: float) -> str:
    folded = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    ascii_text = "".join(one if one.isascii() else "?" for one in folded if not unicodedata.combining(one))
    text = " ".join(ascii_text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _name(class_names: Sequence[str], label: int) -> str:
    name = class_names[label]
    if not any(one.isascii() for one in unicodedata.normalize("NFKD", name)):
        return f"class {label}"  # in a script that the font lacks: it would be nothing but question marks
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


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


def _write(sheet: Image.Image, at_xy: tuple[int, int], text: str, *, size: int, color: Color) -> None:
    font = ImageFont.load_default(size=size)
    shown = _cut(text, font, sheet.width - at_xy[0])
    ImageDraw.Draw(sheet).text(at_xy, shown, font=font, fill=color)
