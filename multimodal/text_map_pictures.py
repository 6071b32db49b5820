"""Pictures of text maps: the photograph, the detector's score, the cosine with the text, the fused score."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from deim.boxes import clip_boxes, iou, xywh_to_xyxy
from deim.data.formats.coco import CocoSplit, match_classes
from deim.data.images.input_format import build_input_format
from deim.data.images.load import read_preview, read_tiles
from deim.data.images.resize import normalize
from deim.engine.checkpoints import TrainedDetector
from deim.report.draw import draw_boxes, load_font, short_names, write_line
from deim.report.palette import EMPTY, FAINT, INK, PAPER, Color, class_color
from multimodal.text_maps import TextMap, compute_heat, compute_text_map, join_text_maps
from multimodal.wrapper import TextFusedDetector

FITTING_IOU: Final = 0.5
"""Queries whose boxes overlap a true box by as much speak of it."""

PANEL_WIDTH, GAP = 400, 8
MAP_WIDTH: Final = 4 * PANEL_WIDTH + 3 * GAP
"""Width of a picture, in pixels."""
PANEL_HEIGHTS: Final = (140, 400)
"""Least and greatest height of a panel; between them the image decides."""
HEAD_HEIGHT, FOOT_HEIGHT = 48, 64
"""Of the lines above the panels, and of the scales below them."""
MARGIN, TITLE_HEIGHT, ROW_GAP = 20, 72, 26
TITLE_SIZE, CAPTION_SIZE, NOTE_SIZE, TAG_SIZE = 22, 16, 14, 13
LINE_WIDTH: Final = 2
MAX_TAGS: Final = 12
"""Further boxes of a panel get no tag."""
SCALE_INSET, SCALE_HEIGHT, SCALE_BACKDROP = 16, 14, 110
OTHER_COLOR: Color = (150, 150, 150)
"""Frame of the true boxes of other classes in the maps; that of the class itself is white."""

RAMP: Final = np.array(
    [
        # value, red, green, blue, share of the color in the picture
        (-1.0, 16, 40, 120, 0.90),
        (-0.5, 40, 110, 215, 0.75),
        (-0.2, 90, 175, 245, 0.22),
        (0.0, 90, 175, 245, 0.0),
        (0.0, 255, 225, 70, 0.0),
        (0.2, 255, 225, 70, 0.28),
        (0.35, 255, 185, 30, 0.60),
        (0.5, 250, 125, 0, 0.80),
        (1.0, 165, 0, 40, 0.95),
    ]
)
"""Colors of the maps: what is about 0 stays the photograph."""


def write_text_maps(
    trained: TrainedDetector,
    split: CocoSplit,
    class_labels: Sequence[int],
    folder: Path,
    *,
    num_images: int = 4,
) -> list[Path]:
    """Draw the text maps of some classes, one file each.

    A file shows the images with the most boxes of its class, among equals the first of the split, and below
    them the first image without any box, if there is one.

    Args:
        trained: Of phase 2.
        split: Of the same classes.
        class_labels: Class indices.
        folder: Where to put the files; it is made if it does not exist.
        num_images: Images with boxes of the class, at most.

    Returns:
        Path of each file: `text_map_<class index>_<class name>.png`, the name in ASCII letters and digits.

    Raises:
        ValueError: If there is no such class.
        DataError: If an image is missing or damaged, or the split has other classes.
        OSError: If a file cannot be written.
    """
    wrong = [label for label in class_labels if not 0 <= label < len(trained.class_names)]
    if wrong:
        raise ValueError(
            f"class_labels: got {', '.join(map(str, wrong))}. Class indices go from 0 to "
            f"{len(trained.class_names) - 1} ({', '.join(trained.class_names)})."
        )
    class_index = match_classes(split, trained.class_names, trained_on="the detector")
    labels = np.array([class_index[int(category)] for category in split.box_category_ids], dtype=np.int64)
    chosen = {label: _choose_images(split, labels == label, num_images) for label in class_labels}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label, indices in chosen.items():
        rows = [_draw_image(trained, split, labels, index=index, label=label) for index in indices]
        path = folder / _file_name(trained.class_names, label)
        _stack(
            rows, name=short_names(trained.class_names)[label], split_name=split.annotations_path.stem
        ).save(path)
        paths.append(path)
    return paths


def draw_text_map(
    image: Image.Image,
    text_map: TextMap,
    label: int,
    *,
    class_names: Sequence[str],
    boxes_xyxy: Tensor,
    labels: Tensor,
    caption: str = "",
) -> Image.Image:
    """Draw one class of an image: the truth, the detector's score, the cosine with the text, the fused score.

    The maps lie over the photograph in gray. A white frame is a true box of the class, a gray one of another;
    the number at it is the highest value among the queries whose boxes fit it, with an IoU of 0.5 at least.

    Args:
        image: The original image, upright.
        text_map: Of this image.
        label: Class index.
        class_names: C names.
        boxes_xyxy: (N, 4) float, the true boxes in pixels of `image`. N may be 0.
        labels: (N,) int64, their class indices.
        caption: What stands above, such as the file name.

    Returns:
        An RGB image `MAP_WIDTH` px wide; its panels are 400 px wide and as high as the image is at this
        width, within 140 to 400 px. With the lines above and the scales below, it is 112 px higher.

    Raises:
        ValueError: If the image has another size than the one that the map is of.
    """
    if (image.height, image.width) != text_map.orig_size_hw:
        raise ValueError(
            f"image: got {image.height}x{image.width} px for the map of an image of "
            f"{text_map.orig_size_hw[0]}x{text_map.orig_size_hw[1]} px. Both must be of the same image."
        )
    low, high = PANEL_HEIGHTS
    panel_height = min(max(low, round(PANEL_WIDTH * image.height / image.width)), high)
    scale = min(PANEL_WIDTH / image.width, panel_height / image.height)
    photograph = image.convert("RGB").resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    )
    # Boxes of the class choose the places of their tags first and lie on top.
    order = (labels != label).long().argsort(stable=True)
    truth = _Truth(
        boxes_xyxy=boxes_xyxy[order].float(), labels=labels[order].tolist(), label=label, scale=scale
    )
    name = short_names(class_names)[label]
    row = Image.new("RGB", (MAP_WIDTH, HEAD_HEIGHT + panel_height + FOOT_HEIGHT), PAPER)
    num_own = truth.labels.count(label)
    counted = f"true boxes of {name}: {num_own} of {len(truth.labels)}"
    size = f"{image.width} by {image.height} px"
    first = ", ".join(part for part in (caption, size, counted) if part)
    write_line(row, (0, 2), first, size=CAPTION_SIZE, color=INK)
    _paste_panel(row, 0, _truth_picture(photograph, truth, class_names), "Photograph with the true boxes")
    parts = (
        ("Detector alone: its score for the class", text_map.detector_scores, 0.0),
        ("Text: cosine with the text of the class", text_map.cosines, -1.0),
        ("Fused: score for the class", text_map.fused_scores, 0.0),
    )
    for column, (title, values, least) in enumerate(parts, start=1):
        own = values[:, label]
        picture = _heat_picture(photograph, text_map.boxes_xyxy, own, truth)
        most = f"highest {float(own.max()):.2f}" if len(own) else "no query"
        _paste_panel(row, column, picture, f"{title} ({most})")
        _draw_scale(row, column, least=least, name=name)
    _draw_legend(row)
    return row


@dataclass(frozen=True, kw_only=True, slots=True)
class _Truth:
    """True boxes as the panels show them."""

    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of the original image, those of the class first."""
    labels: list[int]
    label: int
    """The class that the picture is about."""
    scale: float
    """Factor from the original image to the panel."""


def _truth_picture(photograph: Image.Image, truth: _Truth, class_names: Sequence[str]) -> Image.Image:
    names = short_names(class_names)
    return draw_boxes(
        photograph,
        truth.boxes_xyxy * truth.scale,
        texts=_tags([names[one] for one in truth.labels]),
        colors=[class_color(one) for one in truth.labels],
        line_width=LINE_WIDTH,
        font_size=TAG_SIZE,
    )


def _heat_picture(photograph: Image.Image, boxes_xyxy: Tensor, values: Tensor, truth: _Truth) -> Image.Image:
    """The photograph in gray below the heat, with the true boxes and the highest value at each."""
    heat = compute_heat(
        clip_boxes(boxes_xyxy * truth.scale, (photograph.height, photograph.width)),
        values,
        (photograph.height, photograph.width),
    )
    gray = np.asarray(photograph.convert("L").convert("RGB"), dtype=np.float64)
    fits = iou(boxes_xyxy[:, None], truth.boxes_xyxy[None]) >= FITTING_IOU
    texts = [f"{float(values[fit].max()):.2f}" if bool(fit.any()) else "none" for fit in fits.T]
    return draw_boxes(
        Image.fromarray(_blend(gray, heat.numpy())),
        truth.boxes_xyxy * truth.scale,
        texts=_tags(texts),
        colors=[PAPER if one == truth.label else OTHER_COLOR for one in truth.labels],
        line_width=LINE_WIDTH,
        font_size=TAG_SIZE,
    )


def _blend(backdrop: NDArray[np.float64], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay the colors of values (H, W) in [-1, 1] over a picture (H, W, 3) of 0 to 255."""
    *color, share = (np.interp(values, RAMP[:, 0], column) for column in RAMP[:, 1:].T)
    blended = backdrop + (np.stack(color, axis=-1) - backdrop) * share[..., None]
    return blended.round().clip(0, 255).astype(np.uint8)


def _tags(texts: Sequence[str]) -> list[str]:
    return [text if number < MAX_TAGS else "" for number, text in enumerate(texts)]


def _left_of(column: int) -> int:
    return column * (PANEL_WIDTH + GAP)


def _paste_panel(row: Image.Image, column: int, picture: Image.Image, title: str) -> None:
    """Put a picture into the middle of its panel, below a title that the panel cuts."""
    line = Image.new("RGB", (PANEL_WIDTH, HEAD_HEIGHT // 2), PAPER)
    write_line(line, (0, 2), title, size=NOTE_SIZE, color=FAINT)
    row.paste(line, (_left_of(column), HEAD_HEIGHT // 2))
    panel = Image.new("RGB", (PANEL_WIDTH, row.height - HEAD_HEIGHT - FOOT_HEIGHT), EMPTY)
    panel.paste(picture, ((PANEL_WIDTH - picture.width) // 2, (panel.height - picture.height) // 2))
    row.paste(panel, (_left_of(column), HEAD_HEIGHT))


def _draw_scale(row: Image.Image, column: int, *, least: float, name: str) -> None:
    """Draw the colors from `least` to 1, as they look on a gray photograph, with numbers."""
    width = PANEL_WIDTH - 2 * SCALE_INSET
    left, top = _left_of(column) + SCALE_INSET, row.height - FOOT_HEIGHT + 8
    values = np.linspace(least, 1, width, dtype=np.float32)[None].repeat(SCALE_HEIGHT, axis=0)
    backdrop = np.full((*values.shape, 3), float(SCALE_BACKDROP))
    row.paste(Image.fromarray(_blend(backdrop, values)), (left, top))
    draw, font = ImageDraw.Draw(row), load_font(TAG_SIZE)
    draw.rectangle((left - 1, top - 1, left + width, top + SCALE_HEIGHT), outline=INK)
    below = top + SCALE_HEIGHT
    for tick in np.linspace(least, 1, 5).tolist():
        at = left + (tick - least) / (1 - least) * (width - 1)
        draw.line((at, below, at, below + 4), fill=INK)
        draw.text((at, below + 5), f"{tick:g}", font=font, fill=INK, anchor="ma")
    meaning = f"cosine with {name}, -1 to 1" if least < 0 else f"score of {name}, 0 to 1"
    line = Image.new("RGB", (PANEL_WIDTH, FOOT_HEIGHT - 43), PAPER)
    write_line(line, (SCALE_INSET, 0), meaning, size=TAG_SIZE, color=FAINT)
    row.paste(line, (_left_of(column), row.height - line.height))


def _draw_legend(row: Image.Image) -> None:
    """Say below the photograph what frames and numbers in the maps are."""
    lines = (
        "White frame: true box of this class. Gray frame: of another.",
        f"Number: highest value of the queries that fit it (IoU {FITTING_IOU:g}).",
        "Color: highest value of the queries over a pixel.",
    )
    legend = Image.new("RGB", (PANEL_WIDTH, FOOT_HEIGHT), PAPER)
    for number, text in enumerate(lines):
        write_line(legend, (0, 6 + 18 * number), text, size=TAG_SIZE, color=FAINT)
    row.paste(legend, (0, row.height - FOOT_HEIGHT))


def _choose_images(split: CocoSplit, is_own: NDArray[np.bool_], num_images: int) -> list[int]:
    """Images with the most boxes that `is_own` (A,) marks, crowds aside; then the first without any box."""
    owner = np.repeat(np.arange(len(split)), np.diff(split.first_box))
    counts = np.bincount(owner[is_own & ~split.is_crowd], minlength=len(split))
    ranked = np.argsort(-counts, kind="stable")[:num_images]
    empty = np.flatnonzero(np.diff(split.first_box) == 0)[:1]
    return [*ranked[counts[ranked] > 0].tolist(), *empty.tolist()]


def _draw_image(
    trained: TrainedDetector, split: CocoSplit, labels: NDArray[np.int64], *, index: int, label: int
) -> Image.Image:
    assert isinstance(trained.model, TextFusedDetector)
    form = build_input_format(trained.config.data, trained.config.image_size_hw)
    inputs = read_tiles(split.image_path(index), form)
    text_map = join_text_maps(
        [
            compute_text_map(trained.model, normalize(fitted, form)[None].to(trained.device), placement)
            for fitted, placement in inputs
        ]
    )
    rows = np.arange(split.first_box[index], split.first_box[index + 1])
    rows = rows[~split.is_crowd[rows]]
    boxes_xyxy = xywh_to_xyxy(torch.from_numpy(split.boxes_xywh[rows]).float())
    return draw_text_map(
        read_preview(split.image_path(index)),
        text_map,
        label,
        class_names=trained.class_names,
        boxes_xyxy=clip_boxes(boxes_xyxy, text_map.orig_size_hw),
        labels=torch.from_numpy(labels[rows]),
        caption=split.file_names[index],
    )


def _stack(rows: Sequence[Image.Image], *, name: str, split_name: str) -> Image.Image:
    """Rows below each other, below a title."""
    height = TITLE_HEIGHT + sum(row.height + ROW_GAP for row in rows) + (0 if rows else ROW_GAP)
    sheet = Image.new("RGB", (MAP_WIDTH + 2 * MARGIN, height), PAPER)
    title = f"Where the text of {name} fires, images of {split_name}"
    write_line(sheet, (MARGIN, MARGIN), title, size=TITLE_SIZE, color=INK)
    if not rows:
        note = "No image has a box of this class, and none is without a box."
        write_line(sheet, (MARGIN, TITLE_HEIGHT), note, size=CAPTION_SIZE, color=FAINT)
    top = TITLE_HEIGHT
    for row in rows:
        sheet.paste(row, (MARGIN, top))
        top += row.height + ROW_GAP
    return sheet


def _file_name(class_names: Sequence[str], label: int) -> str:
    folded = unicodedata.normalize("NFKD", class_names[label]).encode("ascii", "ignore").decode()
    # The index tells apart what is left of the names; the cut keeps within what a file system takes.
    parts = ["text_map", str(label), re.sub(r"[^0-9A-Za-z]+", "_", folded)[:40].strip("_")]
    return "_".join(part for part in parts if part) + ".png"
