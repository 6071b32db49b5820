"""Images that are there twice are found, and images that merely look alike are not."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from deim.curation.duplicates import (
    Duplicate,
    count_plain,
    find_copies,
    find_exact,
    find_near,
    hash_equal_lengths,
)
from deim.curation.scan import ImageFacts, scan_image, scan_images
from deim.files import sha256_of_file
from tests.data.sensor_files import write_png
from tests.data.small_sets import noise


def facts_of(folder: Path, images: list[Image.Image]) -> list[ImageFacts]:
    paths = []
    for index, image in enumerate(images):
        paths.append(folder / f"{index}.png")
        image.save(paths[-1])
    return scan_images(paths, decode=True)


def held_part(seed: int, defect: tuple[int, int] | None = None) -> Image.Image:
    """A part that always lies the same way, with the noise of the camera and perhaps a dark spot."""
    rows, columns = np.mgrid[0:128, 0:128]
    gray = 120 + 60 * np.sin(rows / 9) * np.cos(columns / 13)
    gray += np.random.default_rng(seed).normal(0, 4, gray.shape)
    if defect is not None:
        top, left = defect
        gray[top : top + 14, left : left + 14] -= 70
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=60)
    return Image.open(stream)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved as JPEG": as_jpeg,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "gray": lambda image: image.convert("L"),
}


def test_equal_bytes_are_linked_to_one_in_another_split_if_there_is_one() -> None:
    actual = find_exact(["a", "", "b", "a", "", "a"], ["train", "train", "train", "train", "val", "val"])
    assert actual == [
        Duplicate(index=3, earlier=0, is_exact=True),
        Duplicate(index=5, earlier=0, is_exact=True),
    ]
    third = find_exact(["a", "a", "a"], ["train", "val", "val"])[1]
    assert (third.index, third.earlier) == (2, 0)
    assert find_exact([], []) == []


def test_only_files_of_one_length_are_hashed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abcd"]
    for path, content in zip(paths, (b"same", b"some", b"longer"), strict=False):
        path.write_bytes(content)
    assert hash_equal_lengths(paths) == [sha256_of_file(paths[0]), sha256_of_file(paths[1]), "", ""]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.slow
def test_a_changed_copy_is_found_and_no_other(
    change: Callable[[Image.Image], Image.Image], tmp_path: Path
) -> None:
    images = [noise(seed, 96, 80) for seed in range(24)]
    facts = facts_of(tmp_path, [*images, change(images[5])])
    (actual,) = find_near(facts, ["train"] * 24 + ["val"])
    assert (actual.index, actual.earlier, actual.is_exact) == (24, 5, False)


@pytest.mark.parametrize("number", [4, 24], ids=["few", "many"])
def test_parts_in_one_holder_with_other_defects_are_not_copies(number: int, tmp_path: Path) -> None:
    images = [held_part(seed, (7 * seed % 100, 31 * seed % 100)) for seed in range(number)]
    facts = facts_of(tmp_path, [*images, as_jpeg(images[2])])
    assert [(actual.index, actual.earlier) for actual in find_near(facts, ["a"] * (number + 1))] == [
        (number, 2)
    ]


def test_equal_bytes_are_not_reported_as_likeness_and_bound_with_it(tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(3)]
    facts = facts_of(tmp_path, [*images, images[1], as_jpeg(images[1])])
    assert [(actual.index, actual.earlier) for actual in find_near(facts, ["a"] * 5)] == [(4, 1)]
    assert set(find_copies(facts)) == {(3, 1), (4, 1), (4, 3)}


def test_nothing_is_said_of_plain_and_of_damaged_images(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [Image.new("L", (40, 30), 9), Image.new("L", (40, 40), 9)])
    facts.append(scan_image(tmp_path / "lost.png", decode=True))
    assert find_near(facts, ["a"] * 3) == []
    assert count_plain(facts) == 2
    assert find_near([], []) == []


def test_a_turned_image_has_the_thumbnail_of_the_upright_one(tmp_path: Path) -> None:
    image = noise(1)
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = scan_images([tmp_path / "upright.png", tmp_path / "turned.png"], decode=True)
    assert (upright.orientation, turned.orientation) == (1, 6)
    assert upright.size_hw == turned.size_hw == (30, 40)
    np.testing.assert_array_equal(upright.thumbnail, turned.thumbnail)
    quick = scan_image(tmp_path / "turned.png", decode=False)
    assert (quick.size_hw, quick.orientation, quick.thumbnail.size, quick.sha256) == ((30, 40), 6, 0, "")


def test_copies_of_deep_images_with_channels_are_found(tmp_path: Path) -> None:
    """Values of 12 bits, of which the high bytes are all but the same everywhere."""
    values = np.stack([np.asarray(noise(seed).convert("L")) for seed in (1, 2, 3)], axis=-1).astype(np.uint16)
    write_png(tmp_path / "first.png", values * 16)
    write_png(tmp_path / "copy.png", values * 16 + 1)
    write_png(tmp_path / "other.png", values[::-1] * 16)
    facts = [scan_image(tmp_path / f"{name}.png", decode=True) for name in ("first", "copy", "other")]
    assert count_plain(facts) == 0
    (actual,) = find_near(facts, ["train", "val", "val"])
    assert (actual.index, actual.earlier, actual.is_exact) == (1, 0, False)


def test_sixteen_bits_are_stretched_to_what_they_hold(tmp_path: Path) -> None:
    values = np.linspace(1000, 1255, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    facts = scan_image(tmp_path / "deep.png", decode=True)
    assert facts.brightness == pytest.approx(127.5, abs=0.5)
    assert (facts.thumbnail.min(), facts.thumbnail.max()) == (0, 255)


def test_progress_counts_every_file(tmp_path: Path) -> None:
    seen: list[int] = []
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    facts = scan_images(paths, decode=False, progress=seen.append)
    assert seen == [1, 2, 3, 4]
    assert all("no such image" in fact.header_problem for fact in facts)
