"""Zoom-out and crop: boxes stay on what they frame."""

from typing import Literal

import numpy as np
import pytest
import torch

from deim.boxes import iou
from deim.data.augment.transform import Sample
from deim.data.augment.zoom_crop import MIN_SHARE, Window, draw_crop, draw_zoom_out, show_window
from deim.data.images.input_format import InputFormat
from deim.data.images.resize import PADDING_GRAY, fit_to_input
from tests.data.colored import (
    assert_boxes_frame_their_color,
    assert_boxes_inside,
    colored_sample,
    random_colored_sample,
    same,
    some,
)

SIZE_HW = (96, 64)
Resize = Literal["stretch", "letterbox"]


def size_of(sample: Sample) -> tuple[int, int]:
    return sample.image.shape[-2], sample.image.shape[-1]


def zoomed_and_cropped(sample: Sample, seed: int, resize: Resize, *, zooms: bool, crops: bool) -> Sample:
    rng = np.random.default_rng(seed)
    height, width = size_of(sample)
    window = Window(top=0, left=0, height=height, width=width)
    if zooms:
        window = draw_zoom_out((height, width), 3.0, rng=rng)
    if crops:
        window = draw_crop(window, sample.boxes_xyxy, (height, width), rng=rng)
    return show_window(sample, window, InputFormat(size_hw=SIZE_HW, resize=resize))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("zooms", "crops"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_an_image_without_boxes_goes_through(resize: Resize, zooms: bool, crops: bool, seed: int) -> None:
    actual = zoomed_and_cropped(colored_sample([], (70, 90)), seed, resize, zooms=zooms, crops=crops)
    assert_boxes_inside(actual)
    assert actual.boxes_xyxy.shape == (0, 4)
    assert actual.image.shape == (3, *SIZE_HW)
    assert (actual.image > 0).any()  # a crop shows some of the image


@pytest.mark.parametrize("seed", some(6, of=60))
@pytest.mark.parametrize(("zooms", "crops"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_stay_on_their_color(resize: Resize, zooms: bool, crops: bool, seed: int) -> None:
    sample = random_colored_sample(seed, num_boxes=3)
    actual = zoomed_and_cropped(sample, seed, resize, zooms=zooms, crops=crops)
    assert_boxes_inside(actual)
    if not crops:
        assert torch.equal(actual.labels, sample.labels)
    if all(side >= 4 for box in actual.boxes_xyxy for side in (box[2:] - box[:2]).tolist()):
        assert_boxes_frame_their_color(actual)
    assert same(actual, zoomed_and_cropped(sample, seed, resize, zooms=zooms, crops=crops))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_whole_image_is_shown_as_without_augmentation(resize: Resize) -> None:
    sample = random_colored_sample(1)
    height, width = size_of(sample)
    actual = show_window(
        sample, Window(top=0, left=0, height=height, width=width), InputFormat(size_hw=SIZE_HW, resize=resize)
    )
    assert torch.equal(
        actual.image, fit_to_input(sample.image, InputFormat(size_hw=SIZE_HW, resize=resize))[0]
    )


def test_a_zoom_out_is_black_around_the_image_and_gray_where_it_is_padded() -> None:
    sample = colored_sample([(0, 0, 20, 20)], (20, 20))
    shown = show_window(
        sample,
        Window(top=-10, left=-30, height=40, width=80),
        InputFormat(size_hw=(64, 64), resize="letterbox"),
    )
    assert (shown.image[:, :16] == PADDING_GRAY).all()
    assert (shown.image[:, 16:24] == 0).all()
    assert shown.boxes_xyxy.tolist() == [[24, 24, 40, 40]]
    assert_boxes_frame_their_color(shown, tolerance=0)


def test_a_box_stays_if_a_quarter_of_it_does() -> None:
    sample = colored_sample([(0, 0, 40, 10)], (60, 80))
    assert MIN_SHARE == 0.25
    kept = show_window(
        sample, Window(top=0, left=30, height=60, width=50), InputFormat(size_hw=(60, 50), resize="stretch")
    )
    assert kept.boxes_xyxy.tolist() == [[0, 0, 10, 10]]
    assert kept.area.tolist() == [100]
    dropped = show_window(
        sample, Window(top=0, left=31, height=60, width=49), InputFormat(size_hw=(60, 49), resize="stretch")
    )
    assert dropped.labels.shape == (0,)


def test_crops_hold_the_center_of_a_box_and_have_the_stated_shapes() -> None:
    boxes = torch.tensor([[5.0, 5.0, 30.0, 40.0], [50.0, 20.0, 90.0, 60.0]])
    whole = Window(top=0, left=0, height=80, width=100)
    rng = np.random.default_rng(0)
    actual = [draw_crop(whole, boxes, (80, 100), rng=rng) for _ in range(200)]
    parts = [window for window in actual if window != whole]
    assert 100 < len(parts) < 200
    for part in parts:
        corners = torch.tensor([part.left, part.top, part.left + part.width, part.top + part.height]).float()
        assert corners.min() >= 0
        assert (corners[2:] <= torch.tensor([100, 80])).all()
        assert 0.5 <= part.width / part.height <= 2
        assert part.height >= 0.29 * 80 - 1
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centers > corners[:2]) & (centers < corners[2:])).all(dim=-1)
        assert inside.any()
        assert iou(boxes, corners).max() > 0
    assert len(set(parts)) > 90


def test_zoom_out_keeps_shape_and_holds_the_image() -> None:
    rng = np.random.default_rng(0)
    windows = [draw_zoom_out((80, 100), 4.0, rng=rng) for _ in range(200)]
    for window in windows:
        assert window.top <= 0 <= window.top + window.height - 80
        assert window.left <= 0 <= window.left + window.width - 100
        assert window.width / window.height == pytest.approx(100 / 80, abs=0.03)
    heights = [window.height / 80 for window in windows]
    assert min(heights) < 1.2
    assert max(heights) > 3.8
