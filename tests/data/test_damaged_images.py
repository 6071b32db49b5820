"""Images with strange EXIF data or broken headers: read or refused in one message, without warnings."""

import logging
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_input, read_preview
from deim.data.images.read import read_header
from deim.errors import DataError
from tests.data.small_sets import noise

FORMAT = InputFormat(size_hw=(64, 64))


def exif_with(tag: int, kind: int, count: int, value: bytes, data: bytes = b"") -> bytes:
    """Return EXIF data with one entry beside the orientation 6; `data` lies behind the entries."""
    entries = struct.pack("<HHII", 274, 3, 1, 6), struct.pack("<HHI", tag, kind, count) + value
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(entries) + b"\0\0\0\0" + data


STRANGE = {
    "infinite rational": exif_with(282, 5, 1, struct.pack("<I", 38), struct.pack("<II", 1, 0)),
    "undefined rational": exif_with(33434, 10, 1, struct.pack("<I", 38), struct.pack("<ii", 0, 0)),
    "huge tag": exif_with(37500, 7, 2**31 - 1, struct.pack("<I", 38)),
    "huge text": exif_with(270, 2, 2**32 - 1, struct.pack("<I", 2**32 - 1)),
    "unknown type": exif_with(271, 99, 1, b"\0\0\0\0"),
}


@pytest.mark.parametrize("exif", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_strange_exif_data_do_no_harm(
    exif: bytes, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a{suffix}"
    noise(1).save(path, exif=exif)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert read_header(path).orientation == 6
        assert read_preview(path).size == noise(1).size[::-1]
        read_input(path, FORMAT)
    assert not caplog.records


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_unknown_orientation_counts_as_upright(value: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = value
    noise(1).save(tmp_path / "a.jpg", exif=exif)
    assert read_preview(tmp_path / "a.jpg").size == noise(1).size


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp", ".gif"])
@pytest.mark.parametrize("length", [4, 9, 20, 30])
def test_a_header_that_is_cut_off_is_one_message(suffix: str, length: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    noise(1).save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"a\.\w+: the image is damaged or not an image \(.+\)\. Replace or"):
        read_input(path, FORMAT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_every_orientation_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:10, :12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(read_preview(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(shown, np.asarray(ImageOps.exif_transpose(opened)))
