"""Sheets of training batches as the network sees them, with their boxes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from deim.boxes import cxcywh_to_xyxy
from deim.data.batch import Batch
from deim.data.images.input_format import InputFormat
from deim.report.draw import draw_boxes
from deim.report.palette import INK, PAPER, class_color
from deim.structures import Target

COLUMNS = 4
CELL_SIDE = 360
"""Longer side of an image on the sheet, in pixels."""
TITLE_HEIGHT, CAPTION_HEIGHT, GAP = 34, 20, 8
TITLE_SIZE, CAPTION_SIZE, TAG_SIZE = 18, 12, 11


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cell:
    image: Image.Image
    caption: str


def draw_sheet(
    batches: Iterable[Batch],
    *,
    title: str,
    class_names: Sequence[str],
    input_format: InputFormat,
    num_images: int,
) -> Image.Image:
    """Draw the first images of some batches with boxes and class names.

    Args:
        batches: Batches of the training loader; only as many are loaded as are drawn.
        title: Text above the images.
        class_names: Names by class index.
        input_format: How the images were normalized.
        num_images: Maximum number of images.

    Returns:
        An RGB image.
    """
    cells: list[_Cell] = []
    for number, batch in enumerate(batches):
        for image, target in zip(batch.images, batch.targets, strict=True):
            if len(cells) < num_images:
                cells.append(_draw_cell(image, target, number, class_names, input_format))
        if len(cells) >= num_images:
            break
    side, rows = CELL_SIDE + GAP, -(-len(cells) // COLUMNS)
    size_wh = (COLUMNS * side + GAP, TITLE_HEIGHT + rows * (side + CAPTION_HEIGHT))
    sheet = Image.new("RGB", size_wh, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), title, fill=INK, font=ImageFont.load_default(TITLE_SIZE))
    for number, cell in enumerate(cells):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * side, TITLE_HEIGHT + row * (side + CAPTION_HEIGHT)
        draw.text((left, top + 3), cell.caption, fill=INK, font=ImageFont.load_default(CAPTION_SIZE))
        sheet.paste(cell.image, (left, top + CAPTION_HEIGHT))
    return sheet


def _draw_cell(
    image: torch.Tensor,
    target: Target,
    batch_number: int,
    class_names: Sequence[str],
    input_format: InputFormat,
) -> _Cell:
    pixels = image.permute(1, 2, 0).numpy() * np.array(input_format.std) + np.array(input_format.mean)
    # As in `read_preview`: the second of two channels and the fourth of four are not shown.
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    rgb = Image.fromarray((shown * 255).round().clip(0, 255).astype(np.uint8))
    labels = target["labels"].tolist()
    drawn = draw_boxes(
        rgb,
        cxcywh_to_xyxy(target["boxes"]) * torch.tensor(rgb.size * 2),
        texts=[class_names[label] for label in labels],
        colors=[class_color(label) for label in labels],
        scale=CELL_SIDE / max(rgb.size),
        line_width=2,
        font_size=TAG_SIZE,
    )
    size = f"{rgb.height}x{rgb.width} px"
    caption = f"batch {batch_number} · {target['file_name']} · {size} · boxes: {len(labels)}"
    return _Cell(image=drawn, caption=caption)
