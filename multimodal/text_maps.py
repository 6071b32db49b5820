"""Maps of the queries that respond to the text of a class in an image, beside the scores of the detector.

Maps show queries, not cells of the encoder: the cosine with a query is the number that moves the logits.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from deim.boxes import clip_boxes, clip_to_window, cxcywh_to_xyxy, to_original_pixels
from deim.data.formats.split import CocoSplit, match_classes
from deim.data.images.input_format import build_input_format
from deim.data.images.load import read_preview, read_tiles
from deim.data.images.resize import normalize
from deim.engine.trained_detector import TrainedDetector
from deim.language import ENGLISH, Language
from deim.report.charts import chart_figure, chart_names, write_figure
from deim.report.draw import short_names
from deim.structures import Placement
from multimodal.wrapper import TextFusedDetector

PANELS: Final = ("detector score", "cosine with the text", "fused score")
PANEL_INCHES, DPI, LONGEST_SIDE = 4.0, 100, 800
"""Side of a panel, pixels per inch, and longest side of the images in it, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextMap:
    """Responses of all queries of one image, on the CPU."""

    boxes_xyxy: Tensor
    """(Q, 4) float32, pixels of the original image, clipped to it."""
    responses: Tensor
    """(3, Q, C) float32 to the text of each class, in the order of `PANELS`: the score of the frozen detector
    in [0, 1], the cosine in [-1, 1], and the score after the fusion in [0, 1]."""


@torch.no_grad()
def compute_text_map(model: TextFusedDetector, image_input: Tensor, placement: Placement) -> TextMap:
    """Compare the queries of one image with the text of every class.

    Args:
        model: The fused detector, on any device.
        image_input: (channels, H, W) float, normalized, on the same device; H and W multiples of 32.
        placement: Position of the input in the original image.
    """
    detector_outputs = model.run_detector(image_input[None])
    fused = model(detector_outputs)
    boxes_xyxy = to_original_pixels(cxcywh_to_xyxy(fused["pred_boxes"][0].float().cpu()), placement)
    if placement.tile_xyxy is not None:
        boxes_xyxy = clip_to_window(boxes_xyxy, placement.tile_xyxy)
    responses = [
        fused["detector_logits"].float().sigmoid(),
        model.head.cosines(detector_outputs.query_features),
        fused["pred_logits"].float().sigmoid(),
    ]
    return TextMap(
        boxes_xyxy=clip_boxes(boxes_xyxy, placement.orig_size_hw), responses=torch.cat(responses).cpu()
    )


def compute_heat(boxes_xyxy: Tensor, values: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Spread the values of queries over their boxes: each pixel takes the highest value that covers it.

    Edges are rounded to whole pixels; a box thinner than a pixel keeps one, a box without area covers none.

    Args:
        boxes_xyxy: (Q, 4) float, in pixels, clipped to `size_hw`. Q may be 0.
        values: (Q,) float, finite.
        size_hw: Height and width of the map, in pixels.

    Returns:
        (*size_hw) float32; 0 where no box is.
    """
    heat = torch.zeros(size_hw)
    middle = ((boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2).floor()
    low = torch.minimum(boxes_xyxy[:, :2].round(), middle)
    high = torch.maximum(boxes_xyxy[:, 2:].round(), middle + 1)
    corners = torch.cat([low, high], dim=1).long().tolist()
    has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)
    order = values.argsort()  # the highest value is painted last
    for query in order[has_area[order]].tolist():
        left, top, right, bottom = corners[query]
        heat[top:bottom, left:right] = values[query]
    return heat


def write_text_maps(
    trained: TrainedDetector,
    split: CocoSplit,
    class_labels: Sequence[int],
    folder: Path,
    *,
    num_images: int = 4,
    language: Language = ENGLISH,
) -> list[Path]:
    """Draw the text maps of some classes, one file each: `text_map_<class index>_<class name>.png`.

    A file shows the images with the most boxes of its class, at most `num_images`, and below them the first
    image without any box.

    Returns:
        Path of each file; the name is in ASCII letters and digits.

    Raises:
        DataError: If an image is missing or damaged, or the split has other classes.
        OSError: If a file cannot be written.
    """
    names = trained.class_names
    class_index = match_classes(split, names, trained_on="the detector")
    labels = np.array([class_index[int(category)] for category in split.box_category_ids], dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for label in class_labels:
        indices = _choose_images(split, labels == label, num_images)
        name = chart_names(names, language=language)[label]

        def draw(figure: Figure, label: int = label, name: str = name, indices: list[int] = indices) -> None:
            title = (
                "Responses to the text of {name}, blue: -1, red: 1; frames: true boxes, white if of {name}"
            )
            if not indices:
                title = "No image of this split shows {name}, and none is empty."
            figure.suptitle(language.text(title, name=name))
            axes: Any = figure.subplots(len(indices), 1 + len(PANELS), squeeze=False) if indices else []
            for row, index in zip(axes, indices, strict=True):
                boxes = np.arange(split.first_box[index], split.first_box[index + 1])
                boxes = boxes[~split.is_crowd[boxes]]
                draw_text_map(
                    row,
                    read_preview(split.image_path(index)),
                    _text_map(trained, split.image_path(index)),
                    label,
                    boxes_xywh=split.boxes_xywh[boxes],
                    labels=labels[boxes],
                    caption=short_names([split.file_names[index]], kind="image")[0],
                    language=language,
                )

        height = PANEL_INCHES * (len(indices) + 0.3)
        paths.append(folder / _file_name(names, label))
        with chart_figure(draw, height=height, width=4 * PANEL_INCHES) as figure:
            write_figure(figure, paths[-1], dpi=DPI)
    return paths


def draw_text_map(
    axes: Sequence[Any],
    image: Image.Image,
    text_map: TextMap,
    label: int,
    *,
    boxes_xywh: NDArray[np.float64],
    labels: NDArray[np.int64],
    caption: str,
    language: Language = ENGLISH,
) -> None:
    """Draw one class of an image: the image, the detector's score, the cosine with the text, the fused score.

    Args:
        axes: Matplotlib axes for the four panels.
        image: The original image, upright.
        text_map: The map of this image.
        label: Class index.
        boxes_xywh: (N, 4) true boxes in pixels of `image`. N may be 0.
        labels: (N,) their class indices.
        caption: Title of the first panel.
        language: Language of the other titles.
    """
    small = image.convert("RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    scale = small.width / image.width
    axes[0].imshow(small)
    axes[0].set_title(caption, fontsize=9)
    for panel, title, responses in zip(axes[1:], PANELS, text_map.responses, strict=True):
        values = responses[:, label]
        size_hw = (small.height, small.width)
        heat = compute_heat(clip_boxes(text_map.boxes_xyxy * scale, size_hw), values, size_hw).numpy()
        panel.imshow(small.convert("L"), cmap="gray", vmin=0, vmax=255)
        # What is about 0 stays the image.
        panel.imshow(heat, cmap="RdBu_r", vmin=-1, vmax=1, alpha=np.minimum(1.5 * np.abs(heat), 0.8))
        heading = language.text(title)
        if len(values):
            heading = language.text("{panel}, highest {score:.2f}", panel=heading, score=values.max())
        panel.set_title(heading, fontsize=9)
    for panel in axes:
        panel.set_axis_off()
        for (x, y, width, height), is_class in zip(boxes_xywh * scale, labels == label, strict=True):
            color = "white" if is_class else "gray"
            panel.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.5))


def _text_map(trained: TrainedDetector, path: Path) -> TextMap:
    model, config = trained.model, trained.config
    assert isinstance(model, TextFusedDetector)
    form = build_input_format(config.data, config.image_size_hw)
    maps = [
        compute_text_map(model, normalize(resized, form).to(trained.device), place)
        for resized, place in read_tiles(path, form)
    ]
    return TextMap(
        boxes_xyxy=torch.cat([tile.boxes_xyxy for tile in maps]),
        responses=torch.cat([tile.responses for tile in maps], dim=1),
    )


def _choose_images(split: CocoSplit, is_of_label: NDArray[np.bool_], num_images: int) -> list[int]:
    """Images with the most boxes of the class, crowds aside; then the first image without any box."""
    image_of_box = np.repeat(np.arange(len(split)), np.diff(split.first_box))
    counts = np.bincount(image_of_box[is_of_label & ~split.is_crowd], minlength=len(split))
    ranked = np.argsort(-counts, kind="stable")[:num_images]
    empty = np.flatnonzero(np.diff(split.first_box) == 0)[:1]
    return [*ranked[counts[ranked] > 0].tolist(), *empty.tolist()]


def _file_name(class_names: Sequence[str], label: int) -> str:
    folded = unicodedata.normalize("NFKD", class_names[label]).encode("ascii", "ignore").decode()
    # The index distinguishes equal remainders; the cut respects the limits of file systems.
    name = re.sub(r"[^0-9A-Za-z]+", "_", folded)[:40].strip("_")
    return f"text_map_{label}_{name}".rstrip("_") + ".png"
