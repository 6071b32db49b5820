"""Pixels and boxes on their way into the network and back."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from deim.boxes import to_input_fractions, to_original_pixels
from deim.data.augment.colors import Colors
from deim.data.augment.flip import flip_horizontal, flip_vertical
from deim.data.augment.transform import Sample
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_image
from deim.data.images.read import read_size
from deim.data.images.resize import PADDING_GRAY, fit_to_input, normalize
from deim.errors import DataError

Resize = Literal["stretch", "letterbox"]
SIZES_HW = [(48, 80), (101, 37), (64, 64), (500, 20)]


def make_sample(seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return Sample(
        image=torch.from_numpy(rng.integers(0, 256, (3, 64, 96), dtype=np.uint8)),
        boxes_xyxy=torch.tensor([[0.0, 0.0, 96.0, 64.0], [10.5, 4.0, 31.25, 20.0], [90.0, 60.0, 96.0, 64.0]]),
        labels=torch.tensor([2, 0, 1]),
    )


def save_jpeg(path: Path, *, orientation: int | None = None) -> np.ndarray:
    """A 40x24 picture with a red left top corner; returns its pixels."""
    pixels = np.full((24, 40, 3), 60, dtype=np.uint8)
    pixels[:8, :8] = (250, 10, 10)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


@pytest.mark.parametrize("is_behind", [False, True])
def test_exif_data_of_a_png_counts_wherever_it_stands(
    is_behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "turned.png"
    save_jpeg(path, orientation=6)
    if is_behind:
        content = path.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        last = content.index(b"IEND") - 4
        path.write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    assert read_image(path).shape == (3, 40, 24)
    if not is_behind:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_size(path) == (40, 24)


def test_the_size_of_a_png_is_read_without_its_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plain.png"
    save_jpeg(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_size(path) == (24, 40)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_no_boxes_stay_no_boxes(resize: Resize) -> None:
    _, placement = fit_to_input(
        torch.zeros(3, 30, 50, dtype=torch.uint8), InputFormat(size_hw=(64, 96), resize=resize)
    )
    mapped = to_input_fractions(torch.zeros(0, 4), placement)
    assert mapped.shape == to_original_pixels(mapped, placement).shape == (0, 4)
    empty = Sample(
        image=torch.zeros(3, 8, 8, dtype=torch.uint8),
        boxes_xyxy=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    for flip in (flip_horizontal, flip_vertical):
        assert flip(empty).boxes_xyxy.shape == (0, 4)
    assert empty.area.shape == (0,)


@pytest.mark.parametrize("size_hw", SIZES_HW, ids=str)
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_come_back_from_the_input_where_they_were(resize: Resize, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    image, placement = fit_to_input(
        torch.zeros(3, height, width, dtype=torch.uint8), InputFormat(size_hw=(96, 64), resize=resize)
    )
    assert image.shape == (3, 96, 64)
    assert placement.orig_size_hw == size_hw
    fractions = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(1)).sort(dim=1).values.flatten(1)
    boxes = fractions * torch.tensor([width, height] * 2)
    mapped = to_input_fractions(boxes, placement)
    assert mapped.min() >= 0
    assert mapped.max() <= 1
    torch.testing.assert_close(to_original_pixels(mapped, placement), boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_the_box_of_a_bright_patch_lies_on_the_patch_of_the_input(resize: Resize) -> None:
    image = torch.zeros(3, 60, 120, dtype=torch.uint8)
    image[:, 15:45, 30:60] = 255
    fitted, placement = fit_to_input(image, InputFormat(size_hw=(96, 96), resize=resize))
    box = to_input_fractions(torch.tensor([[30.0, 15.0, 60.0, 45.0]]), placement)[0] * 96
    rows, columns = (fitted[0] > 127).nonzero().unbind(-1)
    if resize == "letterbox":  # the padding is gray, darker than half
        assert PADDING_GRAY < 127
    actual = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    torch.testing.assert_close(box, actual.float(), atol=1.0, rtol=0)


def test_letterbox_keeps_the_aspect_ratio_and_pads_with_gray() -> None:
    image = torch.full((3, 20, 40), 200, dtype=torch.uint8)
    fitted, placement = fit_to_input(image, InputFormat(size_hw=(64, 64), resize="letterbox"))
    assert (fitted[:, 16:48] == 200).all()
    assert (fitted[:, :16] == PADDING_GRAY).all()
    assert (fitted[:, 48:] == PADDING_GRAY).all()
    assert placement.span_hw == (40.0, 40.0)
    assert placement.shift_yx == (-10.0, 0.0)


def test_stretch_uses_the_whole_input() -> None:
    _, placement = fit_to_input(
        torch.zeros(3, 20, 40, dtype=torch.uint8), InputFormat(size_hw=(64, 64), resize="stretch")
    )
    assert (placement.span_hw, placement.shift_yx) == ((20.0, 40.0), (0.0, 0.0))


def test_boxes_beyond_the_image_are_clipped_to_the_input() -> None:
    _, placement = fit_to_input(
        torch.zeros(3, 20, 40, dtype=torch.uint8), InputFormat(size_hw=(64, 64), resize="stretch")
    )
    clipped = to_input_fractions(torch.tensor([[-10.0, -5.0, 60.0, 30.0]]), placement)
    assert clipped.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_flipping_twice_changes_nothing(flip) -> None:
    sample = make_sample()
    once, twice = flip(sample), flip(flip(sample))
    assert torch.equal(twice.image, sample.image)
    torch.testing.assert_close(twice.boxes_xyxy, sample.boxes_xyxy)
    assert not torch.equal(once.image, sample.image)
    assert not torch.equal(once.boxes_xyxy, sample.boxes_xyxy)
    for changed in (once, twice):
        assert torch.equal(changed.labels, sample.labels)
        torch.testing.assert_close(changed.area, sample.area)
        assert (changed.boxes_xyxy[:, 2:] > changed.boxes_xyxy[:, :2]).all()


@pytest.mark.parametrize("flip", [flip_horizontal, flip_vertical])
def test_a_flipped_box_holds_the_same_pixels(flip) -> None:
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 5:20, 10:40] = 255
    flipped = flip(
        Sample(image=image, boxes_xyxy=torch.tensor([[10.0, 5.0, 40.0, 20.0]]), labels=torch.tensor([0]))
    )
    left, top, right, bottom = flipped.boxes_xyxy[0].int().tolist()
    assert (flipped.image[:, top:bottom, left:right] == 255).all()
    assert flipped.image.float().sum() == 255 * 3 * 15 * 30


@pytest.mark.parametrize("seed", range(6))
def test_colors_keep_shape_type_and_boxes(seed: int) -> None:
    sample = make_sample()
    changed = Colors(probability=1.0).change(sample, rng=np.random.default_rng(seed))
    assert changed.image.shape == sample.image.shape
    assert changed.image.dtype == torch.uint8
    assert not torch.equal(changed.image, sample.image)
    assert torch.equal(changed.boxes_xyxy, sample.boxes_xyxy)
    again = Colors(probability=1.0).change(sample, rng=np.random.default_rng(seed))
    assert torch.equal(changed.image, again.image)


@pytest.mark.parametrize("seed", range(6))
def test_colors_with_probability_zero_are_the_identity(seed: int) -> None:
    sample = make_sample()
    assert torch.equal(
        Colors(probability=0.0).change(sample, rng=np.random.default_rng(seed)).image,
        sample.image,
    )


def test_area_follows_the_boxes() -> None:
    sample = make_sample()
    assert sample.area.tolist() == [96 * 64, 20.75 * 16, 24]


def test_normalize_gives_zero_at_the_mean_and_one_at_a_deviation_above() -> None:
    image = torch.tensor([51, 102, 255], dtype=torch.uint8)[:, None, None]
    out = normalize(image, InputFormat(size_hw=(1, 1), mean=(0.2, 0.3, 0.5), std=(0.1, 0.1, 0.5)))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 1.0, 1.0]))
    assert out.dtype == torch.float32


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA", "CMYK"])
def test_any_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    pixels = np.zeros((24, 40, 3), dtype=np.uint8)
    pixels[:12] = 255
    Image.fromarray(pixels).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 24, 40)
    assert image.dtype == torch.uint8
    assert (image[:, :12] > 250).all()
    assert (image[:, 12:] < 5).all()


def test_a_16_bit_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    ramp = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    Image.fromarray(ramp).save(path)
    with pytest.raises(DataError, match=r"image\.png: has more than 8 bits per channel \(16\)"):
        read_image(path)


@pytest.mark.parametrize(
    ("orientation", "size_hw", "corner"),
    [(1, (24, 40), (0, 0)), (3, (24, 40), (-1, -1)), (6, (40, 24), (0, -1)), (8, (40, 24), (-1, 0))],
)
def test_photographs_are_read_upright(
    orientation: int, size_hw: tuple[int, int], corner: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    save_jpeg(path, orientation=orientation)
    image = read_image(path)
    assert image.shape == (3, *size_hw)
    assert read_size(path) == size_hw
    assert image[:, corner[0], corner[1]].tolist() == [250, 10, 10]


def test_pixels_of_a_lossless_file_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = save_jpeg(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png").permute(1, 2, 0).numpy(), pixels)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost\.png: no such image\."):
        read_image(tmp_path / "lost.png")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"no image at all", b"\x89PNG\r\n\x1a\n1234"])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "part_7.png"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"part_7\.png: the image is damaged or not an image \(.*\)\. Replace"
    ):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_truncated_image_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"part_7.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=rf"part_7\.{suffix}: the image is damaged"):
        read_image(path)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the image is damaged or not an image"):
        read_image(tmp_path)
