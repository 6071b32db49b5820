"""Zoom-out and crop: which window of an image, or of a canvas around it, becomes the input."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.boxes import box_area, iou
from deim.data.transforms import Sample, gray_canvas, keep_visible

LEAST_SHARE = 0.25
"""Share of a box that a window must hold; with less of it, the box is dropped. What has its center in the
window, SSD's condition, has at least as much."""
CROP_SCALES = (0.3, 1.0)
"""Sides of a crop, as shares of the sides that it is taken from."""
CROP_ASPECTS = (0.5, 2.0)
"""Width by height of a crop."""
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""IoU that a crop needs with one of the boxes whose center it holds; 1 leaves the image whole."""
CROP_TRIALS = 40
CROP_ROUNDS = 5
"""Overlaps that are drawn, `CROP_TRIALS` windows each, before the image is left whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle in pixels of an image; it may reach beyond it."""

    top: int
    left: int
    height: int
    width: int


def draw_zoom_out(size_hw: tuple[int, int], max_scale: float, *, rng: np.random.Generator) -> Window:
    """Draw a canvas of the image's shape around it, up to `max_scale` times as high and wide.

    Args:
        size_hw: Of the image, in pixels.
        max_scale: At least 1.
        rng: Source of all draws.

    Source:
        The expansion of SSD (arXiv:1512.02325), as in torchvision.
    """
    scale, share_y, share_x = rng.uniform(1, max_scale), rng.random(), rng.random()
    height, width = int(size_hw[0] * scale), int(size_hw[1] * scale)
    return Window(
        top=-int((height - size_hw[0]) * share_y),
        left=-int((width - size_hw[1]) * share_x),
        height=height,
        width=width,
    )


def draw_crop(
    window: Window, boxes_xyxy: Tensor, size_hw: tuple[int, int], *, rng: np.random.Generator
) -> Window:
    """Draw a part of a window that holds the center of a box and overlaps one such box enough.

    An image without boxes counts as one box, so that a crop always shows something of it.

    Args:
        window: What to crop.
        boxes_xyxy: (N, 4) float, in pixels of the image.
        size_hw: Of the image, in pixels.
        rng: Source of all draws.

    Returns:
        `window` itself if the draw says so or no trial fits.

    Source:
        The sampling of SSD (arXiv:1512.02325), as in torchvision.
    """
    height, width = size_hw
    boxes = boxes_xyxy if len(boxes_xyxy) else torch.tensor([[0.0, 0.0, width, height]])
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).numpy()
    for _ in range(CROP_ROUNDS):
        least_overlap = CROP_OVERLAPS[rng.integers(len(CROP_OVERLAPS))]
        if least_overlap >= 1:
            return window
        for _ in range(CROP_TRIALS):
            part = _draw_part(window, rng)
            if part is None:
                continue
            right, bottom = part.left + part.width, part.top + part.height
            inside = ((centers > (part.left, part.top)) & (centers < (right, bottom))).all(axis=-1)
            corners = torch.tensor([part.left, part.top, right, bottom]).float()
            if inside.any() and iou(boxes[torch.from_numpy(inside)], corners).max() >= least_overlap:
                return part
    return window


def _draw_part(window: Window, rng: np.random.Generator) -> Window | None:
    """A random part of a window; None if it is too long for its height or the reverse."""
    height = int(window.height * rng.uniform(*CROP_SCALES))
    width = int(window.width * rng.uniform(*CROP_SCALES))
    share_y, share_x = rng.random(), rng.random()
    if min(height, width) < 1 or not CROP_ASPECTS[0] <= width / height <= CROP_ASPECTS[1]:
        return None
    return Window(
        top=window.top + int((window.height - height) * share_y),
        left=window.left + int((window.width - width) * share_x),
        height=height,
        width=width,
    )


def show_window(
    sample: Sample, window: Window, size_hw: tuple[int, int], *, resize: Literal["stretch", "letterbox"]
) -> Sample:
    """Resize what a window shows to the network input, in one step from the image's own pixels.

    What lies beyond the image is black. Boxes are clipped to the window; those of which it holds less than a
    quarter (`LEAST_SHARE`), or a side under a pixel, are dropped.

    Args:
        sample: An image in its own size.
        window: Of this image; some of it lies in the image.
        size_hw: Size of the network input, in pixels.
        resize: As in `fit_to_input`.
    """
    canvas_hw, offset_yx = size_hw, (0, 0)
    if resize == "letterbox":
        scale = min(size_hw[0] / window.height, size_hw[1] / window.width)
        canvas_hw = (max(1, round(window.height * scale)), max(1, round(window.width * scale)))
        offset_yx = ((size_hw[0] - canvas_hw[0]) // 2, (size_hw[1] - canvas_hw[1]) // 2)
    canvas = sample.image.new_zeros(sample.image.shape[0], *canvas_hw)
    height, width = sample.image.shape[-2:]
    rows = _placed_span(window.top, window.height, height, canvas_hw[0])
    columns = _placed_span(window.left, window.width, width, canvas_hw[1])
    part = sample.image[:, rows.start : rows.end, columns.start : columns.end]
    canvas[:, rows.placed_start : rows.placed_end, columns.placed_start : columns.placed_end] = TF.resize(
        part, [rows.placed_end - rows.placed_start, columns.placed_end - columns.placed_start], antialias=True
    )
    factors = torch.tensor([columns.scale, rows.scale] * 2)
    starts = torch.tensor([columns.start, rows.start] * 2)
    placed = torch.tensor([columns.placed_start, rows.placed_start] * 2)
    boxes = (sample.boxes_xyxy - starts) * factors + placed
    shown = keep_visible(canvas, boxes, sample.labels, whole_area=box_area(boxes), least_share=LEAST_SHARE)
    if canvas_hw == size_hw:
        return shown
    padded = gray_canvas(canvas, size_hw)
    top, left = offset_yx
    padded[:, top : top + canvas_hw[0], left : left + canvas_hw[1]] = shown.image
    return Sample(
        image=padded,
        boxes_xyxy=shown.boxes_xyxy + torch.tensor([left, top, left, top]),
        labels=shown.labels,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """The part of an axis of the image that a window shows, and where it lies in the canvas."""

    start: int
    end: int
    placed_start: int
    placed_end: int

    @property
    def scale(self) -> float:
        return (self.placed_end - self.placed_start) / (self.end - self.start)


def _placed_span(window_start: int, window_length: int, image_length: int, canvas_length: int) -> _Span:
    start, end = max(0, window_start), min(image_length, window_start + window_length)
    scale = canvas_length / window_length
    placed_start = min(round((start - window_start) * scale), canvas_length - 1)
    placed_end = max(round((end - window_start) * scale), placed_start + 1)
    return _Span(start=start, end=end, placed_start=placed_start, placed_end=min(placed_end, canvas_length))
