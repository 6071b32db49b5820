"""Zoom-out and crop: a part of an image, or of a canvas around it, becomes the input."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.boxes import iou
from deim.data.augment.colors import Colors
from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import ComposeTransform, ImageSource, Sample, keep_visible
from deim.data.images.input_format import InputFormat
from deim.data.images.resize import inner_size, pad_to_input

MIN_SHARE = 0.25
"""Share of a box that must lie in the window; other boxes are dropped. A box whose center lies in the window,
which is SSD's condition, has at least as much."""
CROP_SCALES = (0.3, 1.0)
"""Range of the sides of a crop, as shares of the window's sides."""
CROP_ASPECTS = (0.5, 2.0)
"""Range of a crop's width divided by its height."""
CROP_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Minimum IoU of a crop with one of the boxes whose center it contains; 1 leaves the image whole."""
CROP_TRIALS = 40
CROP_ROUNDS = 5
"""Number of overlaps to draw, with `CROP_TRIALS` windows each, before the image is left whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle in pixels of an image; it may reach beyond the image."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomCrop(ComposeTransform):
    """Shows an image smaller on a black canvas, or a crop of it, or both."""

    options: AugmentOptions
    colors: Colors
    """Applied to the image before it is put on the canvas, so that the canvas stays black."""

    def compose(self, source: ImageSource, *, rng: np.random.Generator) -> Sample | None:
        """Return the part of the image that the draw chooses."""
        zooms, crops = rng.random() < self.options.zoom_out, rng.random() < self.options.crop
        if not zooms and not crops:
            return None
        sample = source.read(source.index)
        window = whole_window(sample)
        if zooms:
            window = draw_zoom_out(sample.size_hw, self.options.zoom_out_max_scale, rng=rng)
            sample = self.colors.change(sample, rng=rng)
        if crops:
            window = draw_crop(window, sample.boxes_xyxy, sample.size_hw, rng=rng)
        shown = show_window(sample, window, source.input_format)
        return replace(shown, has_new_colors=sample.has_new_colors)


def whole_window(sample: Sample) -> Window:
    """Return the window that shows exactly the image."""
    height, width = sample.size_hw
    return Window(top=0, left=0, height=height, width=width)


def draw_zoom_out(size_hw: tuple[int, int], max_scale: float, *, rng: np.random.Generator) -> Window:
    """Draw a canvas of the shape of an image around it, up to `max_scale` times as high and wide.

    Source:
        The expansion of SSD (arXiv:1512.02325), as in torchvision.
    """
    scale, share_y, share_x = rng.uniform(1, max_scale), rng.random(), rng.random()
    height, width = int(size_hw[0] * scale), int(size_hw[1] * scale)
    top, left = -int((height - size_hw[0]) * share_y), -int((width - size_hw[1]) * share_x)
    return Window(top=top, left=left, height=height, width=width)


def draw_crop(
    window: Window, boxes_xyxy: Tensor, size_hw: tuple[int, int], *, rng: np.random.Generator
) -> Window:
    """Draw a part of a window that contains the center of a box and overlaps one such box enough.

    It is the window itself if the draw says so or no trial fits. An image without boxes counts as one box, so
    that a crop always shows part of it.

    Source:
        The sampling of SSD (arXiv:1512.02325), as in torchvision.
    """
    height, width = size_hw
    boxes = boxes_xyxy if len(boxes_xyxy) else torch.tensor([[0.0, 0.0, width, height]])
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).numpy()
    for _ in range(CROP_ROUNDS):
        min_overlap = CROP_OVERLAPS[rng.integers(len(CROP_OVERLAPS))]
        if min_overlap >= 1:
            return window
        for _ in range(CROP_TRIALS):
            part = _draw_part(window, rng)
            if part is None:
                continue
            right, bottom = part.left + part.width, part.top + part.height
            inside = ((centers > (part.left, part.top)) & (centers < (right, bottom))).all(axis=-1)
            corners = torch.tensor([part.left, part.top, right, bottom]).float()
            if inside.any() and iou(boxes[torch.from_numpy(inside)], corners).max() >= min_overlap:
                return part
    return window


def _draw_part(window: Window, rng: np.random.Generator) -> Window | None:
    """Draw a part of a window; None if its aspect ratio is out of range."""
    height = int(window.height * rng.uniform(*CROP_SCALES))
    width = int(window.width * rng.uniform(*CROP_SCALES))
    share_y, share_x = rng.random(), rng.random()
    if min(height, width) < 1 or not CROP_ASPECTS[0] <= width / height <= CROP_ASPECTS[1]:
        return None
    top = window.top + int((window.height - height) * share_y)
    left = window.left + int((window.width - width) * share_x)
    return Window(top=top, left=left, height=height, width=width)


def show_window(sample: Sample, window: Window, input_format: InputFormat) -> Sample:
    """Resize a window of an image to the network input, in one step from the original pixels.

    The window must show some of the image; areas beyond it are black. Boxes are clipped to the window. Boxes
    with less than a quarter (`MIN_SHARE`) or a side under a pixel in it are dropped.
    """
    canvas_hw = inner_size((window.height, window.width), input_format)
    canvas = sample.image.new_zeros(sample.image.shape[0], *canvas_hw)
    rows, placed_rows = _place_span(window.top, window.height, sample.size_hw[0], canvas_hw[0])
    columns, placed_columns = _place_span(window.left, window.width, sample.size_hw[1], canvas_hw[1])
    height, width = placed_rows.stop - placed_rows.start, placed_columns.stop - placed_columns.start
    part = sample.image[:, rows, columns]
    canvas[:, placed_rows, placed_columns] = TF.resize(part, [height, width], antialias=True)
    factors = torch.tensor([width / part.shape[2], height / part.shape[1]] * 2)
    starts = torch.tensor([columns.start, rows.start] * 2)
    placed = torch.tensor([placed_columns.start, placed_rows.start] * 2)
    boxes = (sample.boxes_xyxy - starts) * factors + placed
    shown = keep_visible(canvas, boxes, sample.labels, min_share=MIN_SHARE)
    padded, (top, left) = pad_to_input(shown.image, input_format)
    return replace(shown, image=padded, boxes_xyxy=shown.boxes_xyxy + torch.tensor([left, top, left, top]))


def _place_span(
    window_start: int, window_length: int, image_length: int, canvas_length: int
) -> tuple[slice, slice]:
    """Return the visible part of an axis of the image, and where it lies on the canvas, in pixels."""
    start, end = max(0, window_start), min(image_length, window_start + window_length)
    scale = canvas_length / window_length
    placed_start = min(round((start - window_start) * scale), canvas_length - 1)
    placed_end = max(round((end - window_start) * scale), placed_start + 1)
    return slice(start, end), slice(placed_start, min(placed_end, canvas_length))
