"""JPEG photographs decoded at a part of their size: as large as needed, upright, boxes where they were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from deim.boxes import to_input_fractions
from deim.config.schema import Config
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_image, read_input
from deim.data.images.pixel_format import PixelFormat
from deim.data.images.read import reduce_decoding
from deim.data.splits import read_split
from deim.errors import DataError
from tests.data.building import make_format, make_train_dataset, read_input_of

Resize = Literal["stretch", "letterbox"]


def save(path: Path, size_hw: tuple[int, int], *, orientation: int = 1) -> None:
    """Soft shades with a bright patch, of another place and size in each direction."""
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([60 * rows / height, 60 * columns / width, 30 + 0 * rows], axis=-1)
    pixels[int(0.5 * height) : int(0.8 * height), int(0.1 * width) : int(0.3 * width)] = (220, 210, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif, quality=95)


@pytest.mark.parametrize(
    ("size_hw", "least_hw", "step"),
    [
        ((1350, 1650), (1024, 1024), 1),
        ((1350, 1650), (640, 640), 2),
        ((1280, 1280), (640, 640), 2),
        ((1279, 1280), (640, 640), 1),
        ((259, 515), (64, 64), 4),
        ((515, 1027), (64, 64), 8),
        ((4000, 4000), (64, 64), 8),
    ],
    ids=str,
)
def test_the_smallest_that_is_large_enough(
    size_hw: tuple[int, int], least_hw: tuple[int, int], step: int, tmp_path: Path
) -> None:
    Image.new("RGB", size_hw[::-1]).save(tmp_path / "image.jpg")
    with Image.open(tmp_path / "image.jpg") as image:
        reduction = reduce_decoding(image, least_hw)
        assert (reduction.step, reduction.size_hw) == (step, size_hw)
        assert image.size == (-(-size_hw[1] // step), -(-size_hw[0] // step))
        assert all(side >= least for side, least in zip(image.size[::-1], least_hw, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size_hw", [(512, 768), (515, 773)])
def test_pixels_and_boxes_lie_where_they_do_in_full(
    size_hw: tuple[int, int], resize: Resize, orientation: int, tmp_path: Path
) -> None:
    path = tmp_path / "image.jpg"
    save(path, size_hw, orientation=orientation)
    full, full_placement = read_input(path, InputFormat(size_hw=(64, 64), resize=resize))
    reduced, placement = read_input(path, InputFormat(size_hw=(64, 64), resize=resize, reduced_decode=True))
    upright_hw = size_hw if orientation < 5 else size_hw[::-1]
    assert read_image(path).shape[1:] == upright_hw
    assert placement.orig_size_hw == full_placement.orig_size_hw == upright_hw
    assert reduced.shape == (3, 64, 64)
    # Where no pixel is missing the inputs are all but equal, otherwise up to 5 of 773 pixels apart.
    difference = (full.float() - reduced.float()).abs()
    assert difference.mean() < (0.5 if size_hw == (512, 768) else 1.5)
    # The patch, found in full, and in the input by its placement.
    bright = read_image(path)[0] > 140
    rows, columns = bright.nonzero().unbind(-1)
    box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()[None]
    for image, place in ((full, full_placement), (reduced, placement)):
        left, top, right, bottom = (to_input_fractions(box, place)[0] * 64).tolist()
        # An input pixel counts by the share of it that the patch covers.
        weight = ((image[0].float() - 45) / (220 - 45)).clamp(0, 1)
        weight[weight < 0.4] = 0
        assert weight.sum(dim=1).gt(3).sum() == pytest.approx(bottom - top, abs=1.5)
        assert weight.sum(dim=0).gt(3).sum() == pytest.approx(right - left, abs=1.5)
        center_y = (weight.sum(dim=1) * (torch.arange(64) + 0.5)).sum() / weight.sum()
        center_x = (weight.sum(dim=0) * (torch.arange(64) + 0.5)).sum() / weight.sum()
        assert center_y == pytest.approx((top + bottom) / 2, abs=0.25)
        assert center_x == pytest.approx((left + right) / 2, abs=0.25)


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_what_cannot_be_reduced_is_the_same_to_the_bit(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    save(path, (100, 120) if suffix == "jpg" else (300, 400))
    full, placement = read_input(path, InputFormat(size_hw=(64, 64)))
    reduced, reduced_placement = read_input(path, InputFormat(size_hw=(64, 64), reduced_decode=True))
    assert torch.equal(full, reduced)
    assert placement == reduced_placement


def test_gray_photographs_are_reduced_and_single_channels_are_not(tmp_path: Path) -> None:
    path = tmp_path / "gray.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)).save(path)
    full, reduced = (
        read_input(path, InputFormat(size_hw=(64, 64), reduced_decode=first))[0] for first in (False, True)
    )
    assert not torch.equal(full, reduced)
    assert torch.equal(reduced[0], reduced[2])
    first, other = (
        read_input(
            path, InputFormat(size_hw=(64, 64), pixels=PixelFormat(channels=1), reduced_decode=reduced)
        )[0]
        for reduced in (False, True)
    )
    assert torch.equal(first, other)


def test_a_truncated_photograph_is_named(tmp_path: Path) -> None:
    path = tmp_path / "part_7.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"part_7\.jpg: the image is damaged"):
        read_input(path, InputFormat(size_hw=(64, 64), reduced_decode=True))


def test_the_option_reaches_the_images(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path / "set")
    for path in (root / "images").iterdir():
        # The name stays .png: Pillow goes by the content.
        with Image.open(path) as image:
            large = image.convert("RGB").resize((image.width * 4, image.height * 4))
        large.save(path, format="JPEG")
    annotations = root / "annotations" / "train.json"
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        image |= {"width": image["width"] * 4, "height": image["height"] * 4}
    annotations.write_text(json.dumps(content))
    actual = []
    for value in ("false", "true"):
        config = tiny_config(
            root,
            tmp_path / "run",
            f"data.reduced_decode={value}",
            "image_size=64",
            "augment={photometric: 0, horizontal_flip: 0}",
        )
        assert make_format(config).reduced_decode is (value == "true")
        split = read_split(config.data, "train")
        actual.append(read_input_of(make_train_dataset(config, split), 0, 0))
    (full, full_target), (reduced, target) = actual
    assert not torch.equal(full, reduced)
    assert full_target["placement"].orig_size_hw == target["placement"].orig_size_hw
    torch.testing.assert_close(full_target["boxes"], target["boxes"], atol=0.02, rtol=0)
