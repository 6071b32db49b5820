"""Mosaics: four images, turned boxes around turned pixels."""

import numpy as np
import pytest
import torch

from deim.data.augment.mosaic import MIN_SHARE, Mosaic, rotate
from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import Sample
from tests.data.colored import (
    COLORS,
    assert_boxes_frame_their_color,
    assert_boxes_inside,
    colored_sample,
    random_colored_sample,
    same,
    some,
)


def mosaic(samples: list[Sample], seed: int = 0, **options: object) -> Sample:
    transform = Mosaic(options=AugmentOptions(mosaic=1.0, **options))
    return transform.make(samples, short_side=48, rng=np.random.default_rng(seed))


STILL = {"mosaic_max_degrees": 0.0, "mosaic_max_shift": 0.0, "mosaic_scales": (1.0, 1.0)}


@pytest.mark.parametrize("seed", range(4))
def test_images_without_boxes_make_a_mosaic_without_boxes(seed: int) -> None:
    actual = mosaic([colored_sample([], (50 + 9 * number, 64)) for number in range(4)], seed)
    assert_boxes_inside(actual)
    assert actual.boxes_xyxy.shape == (0, 4)


def test_each_image_lies_in_the_top_left_corner_of_its_cell() -> None:
    samples = [colored_sample([(0, 0, 48, 48)], (48, 48), first=number) for number in range(3)]
    samples.append(colored_sample([(0, 0, 96, 48)], (48, 96)))
    actual = mosaic(samples, **STILL)
    assert actual.image.shape == (3, 96, 192)
    assert actual.boxes_xyxy.tolist() == [
        [0, 0, 48, 48],
        [96, 0, 144, 48],
        [0, 48, 48, 96],
        [96, 48, 192, 96],
    ]
    assert actual.labels.tolist() == [0, 1, 2, 0]
    for (left, top, right, bottom), label in zip(
        actual.boxes_xyxy.int().tolist(), actual.labels.tolist(), strict=True
    ):
        assert (actual.image[:, top:bottom, left:right] == COLORS[label][:, None, None]).all()
    assert (actual.image[:, :48, 48:96] == 0).all()


def test_images_are_scaled_by_their_shorter_side() -> None:
    samples = [colored_sample([(0, 0, 100, 50)], (100, 200))] + [colored_sample([], (24, 24))] * 3
    actual = mosaic(samples, **STILL)
    assert actual.image.shape == (3, 96, 192)
    assert actual.boxes_xyxy.tolist() == [[0, 0, 48, 24]]


@pytest.mark.parametrize("seed", some(8, of=60))
def test_boxes_stay_on_their_color_in_a_turned_mosaic(seed: int) -> None:
    # One image with boxes, so that each color occurs once.
    samples = [colored_sample([], (60, 80))] * 3
    samples.insert(seed % 4, random_colored_sample(seed, (64, 96), num_boxes=3))
    actual = mosaic(samples, seed)
    assert_boxes_inside(actual)
    cut = (actual.boxes_xyxy <= 0) | (actual.boxes_xyxy >= torch.tensor([*actual.image.shape[:0:-1]] * 2))
    small = (actual.boxes_xyxy[:, 2:] - actual.boxes_xyxy[:, :2]).amin(dim=-1) < 6
    whole = ~cut.any(dim=-1) & ~small  # a turned corner that is cut off leaves its box larger than its pixels
    kept = Sample(image=actual.image, boxes_xyxy=actual.boxes_xyxy[whole], labels=actual.labels[whole])
    assert_boxes_frame_their_color(kept, tolerance=3)
    assert same(actual, mosaic(samples, seed))


@pytest.mark.parametrize("degrees", [-45, -10, 10, 30, 90])
def test_a_turned_box_frames_the_turned_pixels(degrees: float) -> None:
    sample = colored_sample([(30, 40, 70, 52), (75, 70, 85, 90)], (130, 120))
    turned = rotate(sample, degrees=degrees, shift_yx=(4, -7), scale=0.8)
    assert_boxes_inside(turned)
    assert torch.equal(turned.labels, sample.labels)
    assert_boxes_frame_their_color(turned, tolerance=2.5)


def test_a_turned_box_stays_if_a_tenth_of_it_does() -> None:
    sample = colored_sample([(0, 0, 50, 20)], (100, 100))
    assert MIN_SHARE == 0.1
    assert rotate(sample, degrees=0, shift_yx=(0, -45), scale=1.0).boxes_xyxy.tolist() == [[0, 0, 5, 20]]
    assert len(rotate(sample, degrees=0, shift_yx=(0, -46), scale=1.0).labels) == 0
