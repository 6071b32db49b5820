"""Changes of light, lens, sensor and position: boxes stay on what they frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deim.data.augment import industrial
from deim.data.augment.industrial import Industrial, IndustrialOptions
from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import Sample
from deim.errors import ConfigError
from tests.data.building import make_pipeline
from tests.data.colored import (
    assert_boxes_frame_their_color,
    assert_boxes_inside,
    colored_sample,
    random_colored_sample,
    same,
    some,
)

STILL = IndustrialOptions(
    rotation=0.0, max_degrees=8.0, perspective=0.0, lighting=0.0, exposure=0.0, blur=0.0, noise=0.0, jpeg=0.0
)
ALL = replace(STILL, rotation=1.0, perspective=1.0, lighting=1.0, exposure=1.0, blur=1.0, noise=1.0, jpeg=1.0)


def change(sample: Sample, options: IndustrialOptions, *, rng: np.random.Generator) -> Sample:
    return Industrial(options=options).change(sample, rng=rng)


@pytest.fixture(scope="module", autouse=True)
def _albumentations() -> None:
    pytest.importorskip("albumentations")


def test_an_image_without_boxes_goes_through() -> None:
    actual = change(colored_sample([], (60, 90)), ALL, rng=np.random.default_rng(0))
    assert_boxes_inside(actual)
    assert actual.boxes_xyxy.shape == (0, 4)
    assert actual.image.shape == (3, 60, 90)


def test_without_any_change_nothing_changes() -> None:
    sample = random_colored_sample(2)
    actual = change(sample, STILL, rng=np.random.default_rng(0))
    assert torch.equal(actual.image, sample.image)
    assert torch.equal(actual.labels, sample.labels)
    torch.testing.assert_close(actual.boxes_xyxy, sample.boxes_xyxy)


@pytest.mark.parametrize("seed", some(4, of=30))
@pytest.mark.parametrize("kind", ["rotation", "perspective"])
def test_turned_and_tilted_boxes_frame_their_pixels(kind: str, seed: int) -> None:
    sample = colored_sample([(40, 40, 70, 60), (80, 70, 95, 100)], (140, 130), first=seed)
    changes = replace(STILL, **{kind: 1.0})
    actual = change(sample, changes, rng=np.random.default_rng(seed))
    assert not torch.equal(actual.image, sample.image)
    assert_boxes_inside(actual)
    assert torch.equal(actual.labels, sample.labels)
    assert_boxes_frame_their_color(actual, tolerance=3)


@pytest.mark.parametrize("kind", ["lighting", "exposure", "blur", "noise", "jpeg"])
def test_what_changes_pixels_alone_leaves_boxes_alone(kind: str) -> None:
    sample = random_colored_sample(5)
    actual = change(sample, replace(STILL, **{kind: 1.0}), rng=np.random.default_rng(1))
    assert not torch.equal(actual.image, sample.image)
    assert torch.equal(actual.labels, sample.labels)
    torch.testing.assert_close(actual.boxes_xyxy, sample.boxes_xyxy)


def test_jpeg_is_for_eight_bits_alone() -> None:
    sample = random_colored_sample(5)
    gray = replace(sample, image=sample.image[:1])
    deep = replace(sample, image=sample.image.float() / 255)
    jpeg = replace(STILL, jpeg=1.0)
    changed = [
        not torch.equal(change(item, jpeg, rng=np.random.default_rng(1)).image, item.image)
        for item in (sample, gray, deep)
    ]
    assert changed == [True, True, False]


@pytest.mark.parametrize("seed", some(2, of=20))
def test_the_same_seed_gives_the_same_sample(seed: int) -> None:
    sample = random_colored_sample(seed)
    first, second, other = (
        change(sample, ALL, rng=np.random.default_rng([seed, number])) for number in (0, 0, 1)
    )
    assert_boxes_inside(first)
    assert same(first, second)
    assert not same(first, other)


def test_lighting_of_deep_images_does_not_depend_on_the_place_in_memory() -> None:
    sample = Sample(
        image=torch.full((3, 300, 400), 0.5), boxes_xyxy=torch.zeros(0, 4), labels=torch.zeros(0).long()
    )
    lighting = replace(STILL, lighting=1.0)
    for seed in range(6):
        kept, images = [], []
        for number in range(20):
            kept.append(np.empty(1000 + 777 * number, dtype=np.uint8))
            images.append(change(sample, lighting, rng=np.random.default_rng(seed)).image)
        assert all(torch.equal(image, images[0]) for image in images)


def test_the_missing_package_is_named_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(industrial.importlib.util, "find_spec", lambda name: None)
    config = AugmentOptions(industrial=IndustrialOptions())
    with pytest.raises(ConfigError) as caught:
        make_pipeline(augment=config)
    assert str(caught.value) == (
        "augment.industrial: needs albumentations, which is not installed. Install it with "
        "pip install 'deim-defects[augment]', or set augment.industrial=null."
    )
