"""What sensors write: nothing of 8 or 16 bits is lost, nothing is scaled that was not asked for."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deim.config.schema import Config
from deim.curation.scan import scan_image
from deim.data.augment.colors import Colors
from deim.data.augment.transform import Sample
from deim.data.dataset import DetectionDataset
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_image, read_preview, to_tensor
from deim.data.images.pixel_format import (
    RGB8,
    PercentileScaling,
    PixelFormat,
    Uint8Scaling,
    WindowScaling,
    compute_percentiles,
    scale_values,
)
from deim.data.images.read import read_header, read_values, turn_upright
from deim.data.images.resize import PADDING_GRAY, fit_to_input, normalize
from deim.data.splits import read_split
from deim.errors import ConfigError, DataError
from tests.data.building import make_format, read_input_of
from tests.data.sensor_files import write_png, write_tiff

WINDOW = WindowScaling(low=1000, high=5000)
PERCENTILE = PercentileScaling()


def random_values(channels: int, bits: int, *, seed: int = 0) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """(20, 33, C) of the whole range."""
    kind = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, (20, 33, channels)).astype(kind)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_gives_its_values_back(channels: int, bits: int, tmp_path: Path) -> None:
    values = random_values(channels, bits)
    path = tmp_path / "part.png"
    write_png(path, values)
    header = read_header(path)
    assert (header.size_hw, header.channels, header.bits) == ((20, 33), channels, bits)
    actual = read_values(path)
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"order": ">"},
        {"deflate": True},
        {"deflate": True, "predictor": True},
        {"deflate": True, "predictor": True, "order": ">"},
        {"tile_px": 16},
        {"tile_px": 16, "deflate": True, "predictor": True},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("channels", "bits"), [(1, 8), (1, 16), (2, 8), (2, 16), (3, 8), (3, 16), (4, 8), (4, 16)]
)
def test_tiff_gives_its_values_back(
    channels: int, bits: int, form: dict[str, object], tmp_path: Path
) -> None:
    values = random_values(channels, bits)
    path = tmp_path / "part.tif"
    write_tiff(path, values, **form)
    header = read_header(path)
    assert (header.size_hw, header.channels, header.bits) == ((20, 33), channels, bits)
    actual = read_values(path)
    assert actual.dtype == values.dtype
    np.testing.assert_array_equal(actual, np.moveaxis(values, -1, 0))


@pytest.mark.parametrize("suffix", ["bmp", "png", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_pillow_writes_is_read_back(mode: str, suffix: str, tmp_path: Path) -> None:
    pixels = random_values(1 if mode == "L" else 3, 8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / f"part.{suffix}")
    np.testing.assert_array_equal(read_values(tmp_path / f"part.{suffix}"), np.moveaxis(pixels, -1, 0))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_is_read_as_pillow_reads_it(mode: str, tmp_path: Path) -> None:
    pixels = random_values(1 if mode == "L" else 3, 8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "part.jpg")
    actual = read_values(tmp_path / "part.jpg")
    expected = np.asarray(Image.open(tmp_path / "part.jpg")).reshape(20, 33, -1)
    np.testing.assert_array_equal(actual, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({262: 5, 338: None}, "colors that are neither gray nor RGB"),
        ({284: 2}, "channels in separate planes"),
        ({259: 7}, "a lossy compression"),
    ],
)
def test_a_tiff_of_another_kind_is_refused(tags: dict[int, int | None], named: str, tmp_path: Path) -> None:
    path = tmp_path / "part.tif"
    write_tiff(path, random_values(4, 16), tags=tags)
    with pytest.raises(DataError, match=rf"part\.tif: .*{named}.*Save it as one of them"):
        read_values(path)


def test_a_tiff_in_which_zero_is_white_is_refused(tmp_path: Path) -> None:
    write_tiff(tmp_path / "part.tif", random_values(1, 16), tags={262: 0})
    with pytest.raises(
        DataError, match=r"part\.tif: cannot be read without loss, got a TIFF with zero as white"
    ):
        read_values(tmp_path / "part.tif")


def test_fractions_and_palettes_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(
        DataError, match=r"float\.tif: cannot be read without loss, got a TIFF with 32 bits per channel"
    ):
        read_values(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: has 32 bits per channel"):
        read_image(tmp_path / "float.tif")
    Image.fromarray(random_values(3, 8)).quantize(8).save(tmp_path / "palette.png")
    with pytest.raises(DataError, match=r"palette\.png: cannot be read without loss, got Pillow's mode P"):
        read_values(tmp_path / "palette.png")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("write", [write_png, write_tiff])
def test_a_deep_file_is_never_cut_without_being_asked(
    write: Callable[..., None], channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "deep.img"
    write(path, random_values(channels, 16))
    for pixels in (RGB8, PixelFormat(channels=channels)):
        with pytest.raises(
            DataError,
            match=r"deep\.img: has more than 8 bits per channel \(16\), .*data\.scaling=\{type: window",
        ):
            read_image(path, pixels)
    with Image.open(path) as opened, pytest.raises(DataError, match="has more than 8 bits per channel"):
        to_tensor(opened)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_truncated_deep_image_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"part.{suffix}"
    {"png": write_png, "tif": write_tiff}[suffix](path, random_values(3, 16))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=rf"part\.{suffix}: the image is damaged"):
        read_values(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_are_turned_as_pillow_turns_them(orientation: int, tmp_path: Path) -> None:
    pixels = random_values(3, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "part.png", exif=exif)
    expected = read_image(tmp_path / "part.png").numpy()
    np.testing.assert_array_equal(read_values(tmp_path / "part.png"), expected)
    np.testing.assert_array_equal(turn_upright(np.moveaxis(pixels, -1, 0), orientation), expected)


def test_a_deep_tiff_is_turned_upright(tmp_path: Path) -> None:
    values = random_values(3, 16)
    write_tiff(tmp_path / "part.tif", values, tags={274: 6})
    assert read_header(tmp_path / "part.tif").size_hw == (33, 20)
    expected = np.rot90(values, -1, axes=(0, 1))
    np.testing.assert_array_equal(read_values(tmp_path / "part.tif"), np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("decode", [False, True])
def test_the_size_of_a_turned_tiff_is_that_of_its_pixels(decode: bool, tmp_path: Path) -> None:
    path = tmp_path / "part.tif"
    write_tiff(path, random_values(3, 8), tags={274: 6})
    assert read_image(path).shape == (3, 33, 20)
    assert read_header(path).size_hw == (33, 20)
    facts = scan_image(path, decode=decode)
    assert (facts.size_hw, facts.orientation) == ((33, 20), 6)


def test_a_window_is_linear_and_clips() -> None:
    values = np.array([[[0, 1000, 2000, 3000, 5000, 65535]]], dtype=np.uint16)
    scaled = scale_values(values, PixelFormat(channels=1, scaling=WINDOW), where="x")
    assert scaled.dtype == torch.float32
    assert scaled.flatten().tolist() == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]


def test_neighboring_values_stay_apart_after_the_resize() -> None:
    values = np.full((1, 40, 40), 3000, dtype=np.uint16)
    values[:, :, 20:] += 1
    scaled = scale_values(
        values, PixelFormat(channels=1, scaling=WindowScaling(low=0, high=65535)), where="x"
    )
    fitted, _ = fit_to_input(scaled, InputFormat(size_hw=(64, 64)))
    assert fitted.dtype == torch.float32
    assert fitted[0, 0, -1] - fitted[0, 0, 0] == pytest.approx(1 / 65535, rel=1e-2)


def test_percentiles_are_those_of_numpy() -> None:
    values = random_values(1, 16)
    percents = (0.0, 0.5, 37.0, 50.0, 99.5, 100.0)
    expected = np.percentile(values, percents, method="inverted_cdf")
    assert compute_percentiles(values, percents) == tuple(expected)


def test_percentiles_are_of_each_channel_and_do_not_see_gain_and_offset() -> None:
    values = (random_values(2, 8).astype(np.uint16) * 11).transpose(2, 0, 1)
    pixels = PixelFormat(channels=2, scaling=PERCENTILE)
    scaled = scale_values(values, pixels, where="x")
    changed = np.stack([values[0] * 3 + 100, values[1] + 7]).astype(np.uint16)
    torch.testing.assert_close(scale_values(changed, pixels, where="x"), scaled, atol=1e-6, rtol=0)
    assert (scaled.amin(dim=(1, 2)), scaled.amax(dim=(1, 2))) == (
        pytest.approx([0, 0]),
        pytest.approx([1, 1]),
    )


def test_a_uniform_image_has_finite_percentiles() -> None:
    values = np.full((1, 4, 4), 777, dtype=np.uint16)
    assert (scale_values(values, PixelFormat(channels=1, scaling=PERCENTILE), where="x") == 0).all()


@pytest.mark.parametrize(
    "scaling", [Uint8Scaling(), WindowScaling(low=0, high=255), PERCENTILE], ids=lambda s: s.type
)
def test_one_channel_repeated_is_what_three_equal_channels_give(
    scaling: Uint8Scaling | WindowScaling | PercentileScaling,
) -> None:
    values = random_values(1, 8).transpose(2, 0, 1)
    pixels = PixelFormat(channels=3, scaling=scaling)
    repeated = scale_values(values.repeat(3, axis=0), pixels, where="x")
    assert torch.equal(scale_values(values, pixels, where="x"), repeated)


def test_a_window_over_all_bytes_is_the_photograph(tmp_path: Path) -> None:
    write_png(tmp_path / "part.png", random_values(3, 8))
    plain = read_image(tmp_path / "part.png")
    scaled = read_image(tmp_path / "part.png", PixelFormat(scaling=WindowScaling(low=0, high=255)))
    form = InputFormat(size_hw=(20, 33))
    torch.testing.assert_close(normalize(scaled, form), normalize(plain, form))


@pytest.mark.parametrize(
    ("channels", "bits", "pixels", "message"),
    [
        (3, 8, PixelFormat(channels=1), "has 3 channels, data.channels is 1. Set data.channels"),
        (1, 16, PixelFormat(channels=4, scaling=WINDOW), "has 1 channels, data.channels is 4"),
        (
            1,
            8,
            PixelFormat(channels=1, scaling=WINDOW),
            "has 8 bits per channel, but data.scaling is a window up",
        ),
    ],
)
def test_other_channels_and_depths_are_refused(
    channels: int, bits: int, pixels: PixelFormat, message: str, tmp_path: Path
) -> None:
    write_png(tmp_path / "part.png", random_values(channels, bits))
    with pytest.raises(DataError, match=rf"part\.png: {message}"):
        read_image(tmp_path / "part.png", pixels)


def test_letterbox_pads_scaled_images_with_the_same_gray() -> None:
    fitted, _ = fit_to_input(torch.full((2, 20, 40), 0.8), InputFormat(size_hw=(64, 64), resize="letterbox"))
    assert fitted[:, 0, 0].tolist() == pytest.approx([PADDING_GRAY / 255] * 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("is_float", [False, True])
def test_colors_of_any_image_stay_in_range(channels: int, is_float: bool) -> None:
    image = torch.from_numpy(random_values(channels, 8).transpose(2, 0, 1).copy())
    image = image / 255 if is_float else image
    sample = Sample(image=image, boxes_xyxy=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    for seed in range(4):
        changed = Colors(probability=1.0).change(sample, rng=np.random.default_rng(seed)).image
        assert (changed.dtype, changed.shape) == (image.dtype, image.shape)
        assert not torch.equal(changed, image)
        assert changed.min() >= 0
        assert changed.max() <= (1 if is_float else 255)
        plain = Colors(probability=0.0).change(sample, rng=np.random.default_rng(seed))
        assert torch.equal(plain.image, image)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_deep_images_use_the_whole_range(channels: int, tmp_path: Path) -> None:
    values = (random_values(channels, 16) >> 6) + 300
    write_png(tmp_path / "deep.png", values)
    photo_image = read_preview(tmp_path / "deep.png")
    assert (photo_image.mode, photo_image.size) == ("RGB", (33, 20))
    assert np.asarray(photo_image).min() == 0
    assert np.asarray(photo_image).max() == 255


def test_pictures_of_photographs_are_the_photographs(tmp_path: Path) -> None:
    pixels = random_values(3, 8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    np.testing.assert_array_equal(np.asarray(read_preview(tmp_path / "part.png")), pixels)


def deepen(root: Path, channels: int) -> None:
    """Replace the images of a set by 16 bits, with 256 values for one of before."""
    for path in (root / "images").iterdir():
        gray = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        path.write_bytes(b"")
        write_png(path, np.repeat((gray * 256 + 5)[..., None], channels, axis=-1))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_deep_set_reaches_the_network(
    channels: int, tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path)
    deepen(root, channels)
    config = tiny_config(
        root,
        root / "run",
        f"data.channels={channels}",
        "data.scaling={type: window, low: 0, high: 65535}",
        f"data.mean={[0.5] * channels}",
        f"data.std={[0.25] * channels}",
    )
    split = read_split(config.data, "train")
    dataset = DetectionDataset(split, {3: 0, 7: 1, 90: 2}, input_format=make_format(config))
    image, _ = read_input_of(dataset, 0, 0)
    assert image.shape == (channels, 64, 64)
    assert image.dtype == torch.float32
    assert -2.01 < float(image.min()) < float(image.max()) < 2.01


def test_all_files_that_need_a_scaling_are_listed_before_training(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path)
    deepen(root, 3)
    with pytest.raises(DataError) as caught:
        read_split(tiny_config(root, root / "run").data, "train")
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert all("has more than 8 bits per channel (16)" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.channels=1"],
            "data.mean: got [0.485, 0.456, 0.406], needs one number for each of 1 channels",
        ),
        (["data.channels=5"], "data.channels: got 5, needs 1 to 4"),
        (["data.mean=[]"], "data.mean: got [], needs a list, each a number"),
        (
            ["data.scaling={type: window, low: 9, high: 9}"],
            "data.scaling.high: got 9, needs to be above low, 9",
        ),
        (["data.scaling={type: percentile, high: 101}"], "data.scaling.high: got 101, needs to be above low"),
    ],
)
def test_options_that_contradict_are_refused(
    overrides: list[str], message: str, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(tmp_path, tmp_path, *overrides)
    assert message in str(caught.value)


def test_a_picture_in_memory_is_known_by_its_mode() -> None:
    deep = Image.fromarray(random_values(1, 16)[..., 0])
    with pytest.raises(DataError, match="image: has more than 8 bits per channel"):
        to_tensor(deep)
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    with pytest.raises(DataError, match="image: has more than 8 bits per channel"):
        to_tensor(Image.open(buffer))
