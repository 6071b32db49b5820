"""Images with their boxes for a sheet: samples of a dataset, or training batches as the network sees them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, xywh_to_xyxy
from deim.config.schema import Config
from deim.curation.stats import DatasetStats, legible
from deim.data.batch import Batch
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.load import read_preview
from deim.engine.step import StepBatch
from deim.report.draw import Panel, PanelRow, panel_sheet
from deim.report.palette import class_color

NUM_SAMPLES = 12


def sample_rows(stats: DatasetStats, splits: Mapping[str, CocoSplit], *, seed: int) -> list[PanelRow]:
    """Choose some images that can be decoded, with their boxes and class names."""
    places = [
        (name, index)
        for name, is_decoded in zip(splits, stats.is_decoded, strict=True)
        for index in np.flatnonzero(is_decoded).tolist()
    ]
    rows = []
    for place in np.random.default_rng(seed).permutation(len(places))[:NUM_SAMPLES]:
        name, index = places[place]
        split = splits[name]
        boxes = slice(split.first_box[index], split.first_box[index + 1])
        labels = [split.category_ids.index(int(category)) for category in split.box_category_ids[boxes]]
        panel = _panel(
            xywh_to_xyxy(torch.from_numpy(split.boxes_xywh[boxes])), labels, stats.class_names, caption=""
        )
        caption = f"{legible(name)}: {legible(Path(split.file_names[index]).name)}"
        image = read_preview(split.image_path(index))
        rows.append(PanelRow(image=image, caption=caption, panels=[panel]))
    return rows


def batch_rows(
    batches: Iterable[Batch], class_names: Sequence[str], *, input_format: InputFormat, num_images: int
) -> list[PanelRow]:
    """Show the first images of some batches with boxes and class names.

    Only as many batches are loaded as are shown; `input_format` says how their images were normalized.
    """
    rows = []
    inputs = (
        (number, image, target)
        for number, batch in enumerate(batches)
        for image, target in zip(batch.images, batch.targets, strict=True)
    )
    for number, image, target in islice(inputs, num_images):
        pixels = image.permute(1, 2, 0).numpy() * np.array(input_format.std) + np.array(input_format.mean)
        # As in `read_preview`: the second of two channels and the fourth of four are not shown.
        shown = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)
        rgb = Image.fromarray((shown * 255).round().clip(0, 255).astype(np.uint8))
        panel = _panel(
            cxcywh_to_xyxy(target["boxes"]) * torch.tensor(rgb.size * 2),
            target["labels"].tolist(),
            class_names,
            caption=f"batch {number} · {rgb.height}x{rgb.width} px · ",
        )
        rows.append(PanelRow(image=rgb, caption=target["file_name"], panels=[panel]))
    return rows


def batch_sheet(batch: StepBatch, *, config: Config, class_names: Sequence[str]) -> NDArray[np.uint8] | None:
    """Draw the first images of a training batch as (H, W, 3); None for a batch that holds no images."""
    if not isinstance(batch, Batch):
        return None
    rows = batch_rows(
        [batch.to(torch.device("cpu"))],
        class_names,
        input_format=build_input_format(config.data, config.image_size_hw),
        num_images=NUM_SAMPLES,
    )
    return np.asarray(panel_sheet(rows, title="training batch, as the network receives it", columns=4))


def _panel(boxes_xyxy: Tensor, labels: Sequence[int], class_names: Sequence[str], *, caption: str) -> Panel:
    """Build a panel whose caption ends with the number of boxes."""
    return Panel(
        caption=f"{caption}boxes: {len(labels)}",
        boxes_xyxy=boxes_xyxy,
        texts=[class_names[label] for label in labels],
        colors=[class_color(label) for label in labels],
    )
