"""Sheets of training batches as the network sees them, with their boxes."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image

from deim.boxes import cxcywh_to_xyxy
from deim.data.batch import Batch
from deim.data.images.input_format import InputFormat
from deim.report.draw import Panel, PanelRow, panel_sheet
from deim.report.palette import class_color
from deim.structures import Target

COLUMNS = 4


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
    rows: list[PanelRow] = []
    for number, batch in enumerate(batches):
        for image, target in zip(batch.images, batch.targets, strict=True):
            if len(rows) < num_images:
                rows.append(_row(image, target, number, class_names, input_format))
        if len(rows) >= num_images:
            break
    return panel_sheet(rows, title=title, columns=COLUMNS)


def _row(
    image: torch.Tensor,
    target: Target,
    batch_number: int,
    class_names: Sequence[str],
    input_format: InputFormat,
) -> PanelRow:
    pixels = image.permute(1, 2, 0).numpy() * np.array(input_format.std) + np.array(input_format.mean)
    # As in `read_preview`: the second of two channels and the fourth of four are not shown.
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
    rgb = Image.fromarray((shown * 255).round().clip(0, 255).astype(np.uint8))
    labels = target["labels"].tolist()
    panel = Panel(
        caption=f"batch {batch_number} · {rgb.height}x{rgb.width} px · boxes: {len(labels)}",
        boxes_xyxy=cxcywh_to_xyxy(target["boxes"]) * torch.tensor(rgb.size * 2),
        texts=[class_names[label] for label in labels],
        colors=[class_color(label) for label in labels],
    )
    return PanelRow(image=rgb, caption=target["file_name"], panels=[panel])
