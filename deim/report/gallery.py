"""Pictures of the worst errors: what is there, what was found, how the classes scored."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from deim.inference.detection_table import SplitResults
from deim.metrics.assignment import iou_with
from deim.metrics.tide import ErrorKind, ErrorKinds
from deim.report.draw import (
    EMPTY,
    FAINT,
    INK,
    LONGEST_NAME,
    PAPER,
    Color,
    Font,
    draw_boxes,
    fit_text,
    shown_names,
    write_line,
)
from deim.report.worst_errors import GalleryEntry

RIGHT_COLOR: Color = (0, 90, 181)
WRONG_COLOR: Color = (220, 50, 32)
"""Blue and red that color-blind readers tell apart."""
NEUTRAL_COLOR: Color = (120, 120, 120)
MARK_COLOR: Color = (255, 214, 0)
"""The frame around the box that a picture is about."""

PICTURE_SIDE, BARS_WIDTH, GAP = 390, 300, 10
ENTRY_WIDTH = 2 * PICTURE_SIDE + BARS_WIDTH + 2 * GAP
TITLE_HEIGHT, PLACE_HEIGHT, CAPTION_HEIGHT, BOTTOM = 28, 22, 22, 14
ENTRY_HEIGHT = TITLE_HEIGHT + PLACE_HEIGHT + CAPTION_HEIGHT + PICTURE_SIDE + BOTTOM
TITLE_SIZE, CAPTION_SIZE, TAG_SIZE, BAR_TEXT_SIZE = 18, 14, 13, 12
LINE_WIDTH, MARK_WIDTH = 3, 4
PICTURE_MARGIN = LINE_WIDTH + MARK_WIDTH + 3
"""Around the picture in its panel, so that the mark of a box at the edge of the image is seen."""
LEAST_CONTEXT, MOST_CONTEXT = 3.0, 9.0
"""Side of the part that is shown, in multiples of the longer side of the box."""
SHARE_OF_IMAGE = 0.25
"""Between these two, that part is a quarter of the longer side of the image."""
LEAST_PART = 32
"""Least side of that part, in pixels of the image."""
MAX_TAGS = 12
"""Further boxes of a panel get no tag."""
MAX_BARS = 20
LEAST_NAME = 10
"""Letters that stay of a name beside its bar."""

Rectangle = tuple[float, float, float, float]


def draw_entry(
    entry: GalleryEntry,
    image: Image.Image,
    *,
    shipped: SplitResults,
    kinds: ErrorKinds,
    score_thresholds: Sequence[float] | NDArray[np.float64],
) -> Image.Image:
    """Draw an entry: the ground truth, the detections that count, and the scores of the classes on its box.

    Both pictures show the surroundings of the box, enlarged or reduced. Blue is right and red is wrong; a
    yellow frame marks the place in both. Boxes of crowd regions, and detections in them, are gray.

    Args:
        entry: From `choose_gallery`.
        image: The image of the entry, upright, 8 bits a channel.
        shipped: As given to `choose_gallery`.
        kinds: As given to `choose_gallery`.
        score_thresholds: As given to `choose_gallery`.

    Returns:
        An RGB image 1100 px wide and 476 px high, whatever the entry.
    """
    part = _surroundings(entry.box_xywh, image.size)
    truth, found = shipped.truth, shipped.found
    names = shown_names(shipped.class_names)
    is_hit = np.zeros(len(truth), dtype=np.bool_)
    is_hit[kinds.truth[kinds.kind == ErrorKind.RIGHT]] = True
    boxes = _seen(truth.image, truth.boxes_xywh, entry, part, first="miss")
    truth_picture = _picture(
        image,
        part,
        entry,
        boxes_xywh=truth.boxes_xywh[boxes],
        texts=[names[int(truth.label[box])] + (" (crowd)" if truth.is_crowd[box] else "") for box in boxes],
        colors=[
            NEUTRAL_COLOR if truth.is_crowd[box] else RIGHT_COLOR if is_hit[box] else WRONG_COLOR
            for box in boxes
        ],
    )
    ones = _seen(found.image, found.boxes_xywh, entry, part, first="false alarm")
    found_picture = _picture(
        image,
        part,
        entry,
        boxes_xywh=found.boxes_xywh[ones],
        texts=[f"{names[int(found.label[one])]} {found.scores[one]:.2f}" for one in ones],
        colors=[_color_of_kind(int(kinds.kind[one])) for one in ones],
    )
    x1, y1, x2, y2 = part
    place = (
        f"{shipped.file_names[entry.image]}, {image.width} by {image.height} px; shown are {x2 - x1} by"
        f" {y2 - y1} px at x {x1}, y {y1}"
    )
    bars_title = "Highest score on this box, by class"
    if len(names) > MAX_BARS:
        bars_title += f" ({MAX_BARS} of {len(names)})"
    truth_title = "Ground truth: blue is found, red is missed" if len(boxes) else "Ground truth: no box here"
    found_title = (
        "Detections that count: blue is right, red wrong" if len(ones) else "Detections that count: none here"
    )
    canvas = Image.new("RGB", (ENTRY_WIDTH, ENTRY_HEIGHT), PAPER)
    write_line(
        canvas, (0, 4), _shown_caption(entry.caption, shipped.class_names, names), size=TITLE_SIZE, color=INK
    )
    write_line(canvas, (0, TITLE_HEIGHT), place, size=CAPTION_SIZE, color=FAINT)
    top = TITLE_HEIGHT + PLACE_HEIGHT
    for left, title, panel in (
        (0, truth_title, truth_picture),
        (PICTURE_SIDE + GAP, found_title, found_picture),
        (2 * (PICTURE_SIDE + GAP), bars_title, _bars(entry, shipped.class_names, score_thresholds)),
    ):
        write_line(canvas, (left, top), title, size=CAPTION_SIZE, color=INK)
        canvas.paste(panel, (left, top + CAPTION_HEIGHT))
    return canvas


def _surroundings(box_xywh: Rectangle, image_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners in whole pixels of the part of the image to show: a square where the image has room for it."""
    x, y, width, height = box_xywh
    longer = max(width, height)
    quarter = min(SHARE_OF_IMAGE * max(image_wh), MOST_CONTEXT * longer)
    side = round(max(LEAST_CONTEXT * longer, quarter, LEAST_PART))
    corners = []
    for center, length in ((x + width / 2, image_wh[0]), (y + height / 2, image_wh[1])):
        extent = min(side, length)
        low = min(max(round(center - extent / 2), 0), length - extent)
        corners.append((low, low + extent))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


def _seen(
    images: NDArray[np.int64],
    boxes_xywh: NDArray[np.float64],
    entry: GalleryEntry,
    part: tuple[int, int, int, int],
    *,
    first: str,
) -> NDArray[np.int64]:
    """Boxes in the part shown: the entry's own if its kind is `first`, then by falling overlap with it."""
    x, y, width, height = boxes_xywh.T
    x1, y1, x2, y2 = part
    inside = (images == entry.image) & (x < x2) & (x + width > x1) & (y < y2) & (y + height > y1)
    positions = np.flatnonzero(inside)
    is_own = (positions == entry.position) & (entry.kind == first)
    # Then what overlaps it most: the first get the tags.
    overlap = iou_with(boxes_xywh[positions], np.array(entry.box_xywh))
    return positions[np.lexsort((-overlap, ~is_own))]


def _picture(
    image: Image.Image,
    part: tuple[int, int, int, int],
    entry: GalleryEntry,
    *,
    boxes_xywh: NDArray[np.float64],
    texts: Sequence[str],
    colors: Sequence[Color],
) -> Image.Image:
    """A square panel with a part of an image, its boxes, and the mark of the entry."""
    x1, y1, x2, y2 = part
    scale = (PICTURE_SIDE - 2 * PICTURE_MARGIN) / max(x2 - x1, y2 - y1)
    width, height = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    left, top = (PICTURE_SIDE - width) // 2, (PICTURE_SIDE - height) // 2
    panel = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), EMPTY)
    panel.paste(image.crop(part).convert("RGB").resize((width, height)), (left, top))

    def to_panel(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
        low = (boxes_xywh[:, :2] - (x1, y1)) * scale + (left, top)
        return np.concatenate([low, low + boxes_xywh[:, 2:] * scale], axis=1)

    reach = LINE_WIDTH + MARK_WIDTH - 1
    own = to_panel(np.array([entry.box_xywh]))[0] + (-reach, -reach, reach, reach)
    x1_mark, y1_mark, x2_mark, y2_mark = np.clip(own, 1, PICTURE_SIDE - 2).tolist()
    draw = ImageDraw.Draw(panel)
    outline = (x1_mark - 1, y1_mark - 1, x2_mark + 1, y2_mark + 1)
    draw.rectangle(outline, outline=INK, width=MARK_WIDTH + 2)
    draw.rectangle((x1_mark, y1_mark, x2_mark, y2_mark), outline=MARK_COLOR, width=MARK_WIDTH)
    return draw_boxes(
        panel,
        torch.from_numpy(to_panel(boxes_xywh)),
        texts=[text if number < MAX_TAGS else "" for number, text in enumerate(texts)],
        colors=colors,
        line_width=LINE_WIDTH,
        font_size=TAG_SIZE,
    )


def _color_of_kind(kind: int) -> Color:
    if kind == ErrorKind.RIGHT:
        return RIGHT_COLOR
    return NEUTRAL_COLOR if kind == ErrorKind.IGNORED else WRONG_COLOR


def _bars(
    entry: GalleryEntry,
    class_names: Sequence[str],
    score_thresholds: Sequence[float] | NDArray[np.float64],
) -> Image.Image:
    """A panel with one bar for each class; names stand above their bars, or beside them if there are many."""
    labels = _labels_of_bars(entry)
    panel = Image.new("RGB", (BARS_WIDTH, PICTURE_SIDE), PAPER)
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(size=BAR_TEXT_SIZE)
    legend_height, number_width = 60, 34
    row_height = min(44.0, (PICTURE_SIDE - legend_height) / max(1, len(labels)))
    is_stacked = row_height >= 34
    bar_left = 4 if is_stacked else 134
    bar_width = BARS_WIDTH - bar_left - number_width - 4
    name_width = BARS_WIDTH - 8 if is_stacked else bar_left - 10
    names = _names_within(class_names, font, name_width)
    for row, label in enumerate(labels):
        score, threshold = entry.class_scores[label], float(score_thresholds[label])
        if label == entry.right_label:
            color = RIGHT_COLOR
        else:
            color = WRONG_COLOR if score > 0 and score >= threshold else NEUTRAL_COLOR
        top, bottom = row * row_height, (row + 1) * row_height - 4
        name = fit_text(names[label], font, name_width)
        if is_stacked:
            draw.text((bar_left, top), name, font=font, fill=INK)
            top += 17
        else:
            draw.text((bar_left - 6, (top + bottom) / 2), name, font=font, fill=INK, anchor="rm")
        draw.rectangle((bar_left, top, bar_left + bar_width, bottom), fill=EMPTY)
        if score > 0:
            draw.rectangle((bar_left, top, bar_left + max(1.0, score * bar_width), bottom), fill=color)
        if threshold <= 1:
            at = bar_left + threshold * bar_width
            draw.rectangle((at - 2, top - 2, at + 1, bottom + 2), fill=INK, outline=PAPER)
        draw.text((BARS_WIDTH - 4, (top + bottom) / 2), f"{score:.2f}", font=font, fill=INK, anchor="rm")
    axis = len(labels) * row_height + 1
    for tick in (0.0, 0.5, 1.0):
        at = bar_left + tick * bar_width
        draw.line((at, axis, at, axis + 4), fill=INK)
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[tick]
        draw.text((at, axis + 5), f"{tick:g}", font=font, fill=INK, anchor=anchor)
    draw.line((bar_left, axis, bar_left + bar_width, axis), fill=INK)
    right = "no box here" if entry.right_label is None else "blue: class of the box"
    for line, text in enumerate((f"score; {right}", "red: wrong, above its threshold (black mark)")):
        write_line(panel, (4, round(axis) + 22 + 17 * line), text, size=BAR_TEXT_SIZE, color=FAINT)
    return panel


def _labels_of_bars(entry: GalleryEntry) -> list[int]:
    """All classes, or the entry's own and those with the highest scores, in the order of the classes."""
    own = {entry.label, entry.right_label}
    ranked = sorted(
        range(len(entry.class_scores)), key=lambda label: (label not in own, -entry.class_scores[label])
    )
    return sorted(ranked[:MAX_BARS])


def _names_within(class_names: Sequence[str], font: Font, width: float) -> tuple[str, ...]:
    """Names so short that all fit a width, and still differ; a few letters at least stay."""
    longest = LONGEST_NAME
    names = shown_names(class_names, longest=longest)
    while longest > LEAST_NAME and max(map(font.getlength, names), default=0.0) > width:
        longest -= 1
        names = shown_names(class_names, longest=longest)
    return names


def _shown_caption(caption: str, class_names: Sequence[str], names: Sequence[str]) -> str:
    shown = {name: short for name, short in zip(class_names, names, strict=True) if name}
    # The longest first: a name may be part of another one.
    pattern = "|".join(re.escape(name) for name in sorted(shown, key=len, reverse=True))
    return re.sub(pattern, lambda match: shown[match[0]], caption) if shown else caption
