"""Sheets of what the network really sees: images of training batches with their boxes."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy
from deim.data.collate import Batch
from deim.data.dataset import InputFormat
from deim.structures import Target

COLUMNS = 4
TILE_SIDE = 360
"""Longest side of an image on the sheet, in pixels."""
TITLE_HEIGHT, CAPTION_HEIGHT, GAP = 34, 20, 8
TITLE_SIZE, CAPTION_SIZE, TAG_SIZE = 18, 12, 11
PAPER, INK = (250, 250, 248), (30, 30, 30)
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
"""Of the classes in turn; color-blind readers tell them apart (Okabe and Ito)."""


def draw_sheet(
    batches: Iterable[Batch],
    *,
    title: str,
    class_names: Sequence[str],
    input_format: InputFormat,
    num_images: int,
) -> Image.Image:
    """Draw the first images of some batches, as the network gets them, with boxes and names of classes.

    Args:
        batches: Of the training loader; no more are asked for than are drawn.
        title: Above the images.
        class_names: Of the labels.
        input_format: Tells how the images were normalized.
        num_images: On the sheet, at most.

    Returns:
        An RGB image.
    """
    tiles: list[Image.Image] = []
    for number, batch in enumerate(batches):
        for image, target in zip(batch.images, batch.targets, strict=True):
            if len(tiles) < num_images:
                tiles.append(_draw_tile(image, target, number, class_names, input_format))
        if len(tiles) >= num_images:
            break
    cell = TILE_SIDE + GAP
    rows = -(-len(tiles) // COLUMNS)
    size_wh = (COLUMNS * cell + GAP, TITLE_HEIGHT + rows * (cell + CAPTION_HEIGHT))
    sheet = Image.new("RGB", size_wh, PAPER)
    ImageDraw.Draw(sheet).text((GAP, 8), title, fill=INK, font=ImageFont.load_default(TITLE_SIZE))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        sheet.paste(tile, (GAP + column * cell, TITLE_HEIGHT + row * (cell + CAPTION_HEIGHT)))
    return sheet


def _draw_tile(
    image: Tensor, target: Target, batch_number: int, class_names: Sequence[str], input_format: InputFormat
) -> Image.Image:
    """An image under a line that says where it comes from."""
    pixels = image.permute(1, 2, 0).numpy() * np.array(input_format.std) + np.array(input_format.mean)
    # As in `sensors.read_picture`: a second channel of two is left out, and so is a fourth.
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    picture = Image.fromarray((shown * 255).round().clip(0, 255).astype(np.uint8))
    width, height = picture.size
    scale = TILE_SIDE / max(picture.size)
    picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))))
    tile = Image.new("RGB", (TILE_SIDE, TILE_SIDE + CAPTION_HEIGHT), PAPER)
    tile.paste(picture, (0, CAPTION_HEIGHT))
    draw = ImageDraw.Draw(tile)
    name, boxes = target["file_name"], len(target["labels"])
    caption = f"batch {batch_number} · {name} · {height}x{width} px · boxes: {boxes}"
    draw.text((0, 3), caption, fill=INK, font=ImageFont.load_default(CAPTION_SIZE))
    tag_font = ImageFont.load_default(TAG_SIZE)
    corners = cxcywh_to_xyxy(target["boxes"]).numpy() * np.array(picture.size * 2)
    for (left, top, right, bottom), label in zip(corners.tolist(), target["labels"].tolist(), strict=True):
        color = COLORS[label % len(COLORS)]
        low, high = top + CAPTION_HEIGHT, bottom + CAPTION_HEIGHT - 1
        draw.rectangle((left, low, max(left, right - 1), max(low, high)), outline=color, width=2)
        place = (left + 3, low + 2)
        draw.rectangle(draw.textbbox(place, class_names[label], font=tag_font), fill=color)
        draw.text(place, class_names[label], fill=INK, font=tag_font)
    return tile
