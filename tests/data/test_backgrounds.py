"""Defects drawn on given images: exact boxes, other images for each split, and what cannot serve is named."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deim.config.schema import Config
from deim.data.options import DataOptions
from deim.data.splits import prepare_root, read_split
from deim.data.synthetic.backgrounds import find_backgrounds, open_scene
from deim.data.synthetic.defects import DEFECT_KINDS, DefectKind, draw_defect
from deim.data.synthetic.make import (
    VISIBLE_CHANGE,
    SyntheticOptions,
    add_defects,
    blend_patch,
    make_synthetic_dataset,
)
from deim.data.synthetic.surface import mask_window
from deim.errors import DataError
from tests.data.sensor_files import write_png

Call = Callable[..., tuple[int, str, str]]
NAMES = [f"part_{number}.png" for number in range(8)]


def texture(seed: int, size_hw: tuple[int, int], *, is_gray: bool = True) -> NDArray[np.uint8]:
    """A cloudy surface of 8 bits, (H, W) gray or (H, W, 3)."""
    rng = np.random.default_rng(seed)
    shape = (size_hw[0] // 8 + 1, size_hw[1] // 8 + 1, 1 if is_gray else 3)
    coarse = rng.integers(90, 170, size=shape).repeat(8, axis=0).repeat(8, axis=1)
    pixels = coarse[: size_hw[0], : size_hw[1]].astype(np.uint8)
    return pixels[..., 0] if is_gray else pixels


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight gray images, two of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "line 2").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        place = folder / "line 2" if number > 5 else folder
        Image.fromarray(texture(number, (150, 180))).save(place / name)
    return folder


def options_of(folder: Path, **changes: Any) -> SyntheticOptions:
    small = SyntheticOptions(train_images=9, val_images=3, test_images=2, max_size_wh=(128, 112), seed=3)
    return replace(small, backgrounds=str(folder), **changes)


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_files_on_any_number_of_threads_and_from_any_copy(
    photos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for path in sorted(photos.rglob("*.png"), reverse=True):
        place = copy / path.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    make_synthetic_dataset(tmp_path / "a", options_of(photos), workers=1)
    make_synthetic_dataset(tmp_path / "b", options_of(copy), workers=3)
    make_synthetic_dataset(tmp_path / "c", options_of(photos, seed=4))
    expected = content_of(tmp_path / "a")
    assert content_of(tmp_path / "b") == expected
    others = content_of(tmp_path / "c")
    assert others.keys() == expected.keys()
    assert not any(others[name] == content for name, content in expected.items() if name.endswith(".jpg"))


def test_boxes_lie_in_their_images_and_good_images_have_the_normal_box(photos: Path, tmp_path: Path) -> None:
    make_synthetic_dataset(tmp_path / "set", options_of(photos, train_images=40))
    content = json.loads((tmp_path / "set" / "annotations" / "train.json").read_text())
    num_good = 0
    for image in content["images"]:
        with Image.open(tmp_path / "set" / "images" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
        assert 64 <= image["width"] <= 128
        assert 64 <= image["height"] <= 112
        rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        assert rows
        for row in rows:
            x, y, width, height = row["bbox"]
            assert min(x, y) >= 0
            assert x + width <= image["width"]
            assert y + height <= image["height"]
        if any(row["category_id"] == 1 for row in rows):
            num_good += 1
            assert [row["bbox"] for row in rows] == [[0, 0, image["width"], image["height"]]]
    assert num_good == pytest.approx(0.22 * 40, abs=2)


@pytest.mark.parametrize("kind", DEFECT_KINDS)
@pytest.mark.parametrize("is_gray", [True, False])
def test_a_box_is_the_extent_of_what_changed_in_the_image(
    kind: DefectKind, is_gray: bool, tmp_path: Path
) -> None:
    path = tmp_path / "part.png"
    Image.fromarray(texture(7, (200, 260), is_gray=is_gray)).save(path)
    rng = np.random.default_rng(11)
    scene = open_scene(rng, path, (200, 240))
    clean = scene.canvas.copy()
    window = None
    while window is None:
        window = blend_patch(scene, draw_defect(rng, kind, scene), taken=[])
    assert window == mask_window(np.abs(scene.canvas - clean).max(axis=2) > VISIBLE_CHANGE)
    outside = np.ones(scene.surface.shape, dtype=bool)
    outside[window[1] : window[3], window[0] : window[2]] = False
    assert np.abs(scene.canvas - clean)[outside].max() <= VISIBLE_CHANGE
    if is_gray:
        assert np.ptp(scene.canvas, axis=2).max() == 0


@pytest.mark.parametrize("level", [0, 20, 128, 240, 255])
def test_defects_show_on_every_brightness(level: int, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    Image.new("L", (300, 90), level).save(path)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        assert 1 <= len(add_defects(rng, open_scene(rng, path, (100, 128)))) <= 6


@pytest.mark.parametrize("size_wh", [(64, 64), (64, 900), (900, 64), (100, 80), (700, 500)])
def test_parts_of_images_are_reduced_but_not_enlarged(size_wh: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    # The value of a pixel tells its column, so that the step between columns can be measured.
    columns = np.linspace(0, 255, size_wh[0]).astype(np.uint8)
    Image.fromarray(np.tile(columns, (size_wh[1], 1))).save(path)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        max_hw = int(rng.integers(64, 200)), int(rng.integers(64, 200))
        height, width = open_scene(rng, path, max_hw).surface.shape
        assert 64 <= height <= min(max_hw[0], size_wh[1])
        assert 64 <= width <= min(max_hw[1], size_wh[0])
        row = open_scene(np.random.default_rng(seed), path, max_hw).canvas[height // 2, :, 0]
        shown = (row[-1] - row[0]) * size_wh[0]
        assert width - 6 <= shown <= size_wh[0]


def test_splits_have_images_of_their_own_in_proportion(photos: Path) -> None:
    for num_images in ({"train": 300, "val": 100, "test": 100}, {"train": 5, "val": 1, "test": 1}):
        parts = find_backgrounds(photos, num_images, seed=0)
        every = [path for part in parts.values() for path in part]
        assert sorted(every) == sorted(photos.rglob("*.png"))
        assert len(parts["train"]) >= 4
        assert min(map(len, parts.values())) >= 1
    without_test = find_backgrounds(photos, {"train": 2, "val": 2, "test": 0}, seed=0)
    assert [len(part) for part in without_test.values()] == [4, 4, 0]
    assert find_backgrounds(photos, num_images, seed=0) == parts
    assert find_backgrounds(photos, num_images, seed=1) != parts


@pytest.mark.parametrize("number", [1, 2])
def test_splits_share_too_few_images_with_a_warning(
    number: int, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in NAMES[:number]:
        (photos / name).rename(few / name)
    make_synthetic_dataset(tmp_path / "set", options_of(few, train_images=2, val_images=1, test_images=1))
    assert f"{few}: {number} background" in caplog.text
    assert "for 3 splits, which share them, so that a detector is validated on images" in caplog.text
    assert len(list((tmp_path / "set" / "images").iterdir())) == 4


def test_images_of_any_format_serve(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    gray = Image.fromarray(texture(0, (90, 120)))
    gray.save(folder / "gray.jpg")
    gray.convert("1").save(folder / "one_bit.png")
    gray.convert("P").save(folder / "palette.gif")
    gray.convert("RGBA").save(folder / "alpha.PNG")
    gray.save(folder / "page.tif")
    write_png(folder / "deep.png", texture(1, (90, 120)).astype(np.uint16)[..., None] * 13)
    turned = Image.Exif()
    turned[274] = 6
    gray.save(folder / "upright.jpg", exif=turned)
    shapes = {
        path.name: open_scene(np.random.default_rng(0), path, (500, 500)).surface.shape
        for path in folder.iterdir()
    }
    assert len(shapes) == 7
    assert set(shapes.values()) == {(90, 90)}
    deep = open_scene(np.random.default_rng(0), folder / "deep.png", (90, 120)).canvas
    assert deep.max() - deep.min() > 0.9
    make_synthetic_dataset(tmp_path / "set", options_of(folder))
    assert len(list((tmp_path / "set" / "images").iterdir())) == 14


def error_of(root: Path, options: SyntheticOptions) -> str:
    """Return the message of a set that is not made; nothing of it is left."""
    before = sorted(root.parent.iterdir())
    with pytest.raises(DataError) as caught:
        make_synthetic_dataset(root, options)
    assert sorted(root.parent.iterdir()) == before
    return str(caught.value)


def test_a_folder_that_cannot_serve_is_named(photos: Path, tmp_path: Path) -> None:
    missing, empty, texts = tmp_path / "gone", tmp_path / "empty", tmp_path / "texts"
    for folder in (empty, texts):
        folder.mkdir()
    (texts / "notes.txt").write_text("no image", encoding="utf-8")
    (texts / ".hidden.png").write_bytes((photos / NAMES[0]).read_bytes())
    root = tmp_path / "set"
    advice = "Name their folder with data.synthetic.backgrounds, or --backgrounds."
    assert error_of(root, options_of(missing)) == (
        f"{missing}: no such folder. Backgrounds are images without defects. {advice}"
    )
    assert error_of(root, options_of(photos / NAMES[0])).startswith(f"{photos / NAMES[0]}: is a file, not a")
    for folder in (empty, texts):
        assert error_of(root, options_of(folder)).startswith(f"{folder}: holds no image (.avif, .bmp, ")
    relative = error_of(root, options_of(Path("nowhere")))
    assert relative.startswith(f"nowhere: no such folder (looked in {Path.cwd()}). ")


def test_images_that_cannot_serve_are_named_together(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "empty.jpg").write_bytes(b"")
    Image.new("L", (63, 200)).save(photos / "narrow.png")
    Image.new("RGB", (200, 10)).save(photos / "strip.bmp")
    lines = error_of(tmp_path / "set", options_of(photos)).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        str(photos / name) for name in ("broken.png", "empty.jpg", "narrow.png", "strip.bmp")
    ]
    assert all("the image is damaged or not an image" in line for line in lines[:2])
    assert lines[2].endswith(
        "too small for a background, got 63x200 px. Each side needs at least 64 px. Remove it, or take a "
        "larger image."
    )


def test_an_image_cut_off_in_the_middle_is_named(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-3000])
    message = error_of(tmp_path / "set", options_of(photos))
    assert re.match(rf"{re.escape(str(photos))}/.*part_\d\.png: the image is damaged", message)


@pytest.mark.parametrize("place", ["photos", "photos/set", "."], ids=["equal", "within", "around"])
def test_a_set_and_its_backgrounds_need_places_of_their_own(
    place: str, photos: Path, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    root = tmp_path / place
    with pytest.raises(
        DataError, match=r"is read.*Outputs need a place of their own. Choose it with data\.root"
    ):
        make_synthetic_dataset(root, options_of(photos))
    config = tiny_config(root, tmp_path / "run", f"data.synthetic={{backgrounds: {json.dumps(str(photos))}}}")
    with pytest.raises(DataError, match=r"Outputs need a place of their own"):
        prepare_root(config.data)
    assert sorted(path.name for path in photos.rglob("*.*")) == NAMES


def test_a_link_does_not_hide_that_places_are_the_same(photos: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos, target_is_directory=True)
    assert "would replace" in error_of(link, options_of(photos))
    assert "lies in" in error_of(photos / "set", options_of(link))


def test_training_makes_the_set_and_does_not_write_into_the_images(
    photos: Path, call: Call, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    made = ("train_images: 6", "val_images: 2", "test_images: 1", "max_size_wh: [128, 96]")
    block = f"data.synthetic={{{', '.join(made)}, backgrounds: photos}}"
    data = tiny_config(tmp_path / "pseudo", tmp_path / "run", block).data
    code, _, error = call(
        "train", "-c", "quickstart", "--set", block, "output_dir=photos/run", "data.root=new"
    )
    assert code == 2
    assert "photos/run" in error
    assert "lies in photos, which is read" in error
    assert not (tmp_path / "new").exists()
    prepare_root(data)
    assert len(read_split(data, "train")) == 6
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    prepare_root(data)  # the set is there, and its backgrounds are not needed again


def test_the_command_draws_on_the_images_of_a_folder(photos: Path, call: Call) -> None:
    sizes = ("--train-images", 4, "--val-images", 2, "--test-images", 1, "--max-size", 128, 128)
    code, output, _ = call("synthetic", "--root", "set", "--backgrounds", "photos", *sizes)
    assert code == 0
    assert "train: 4 images, 0 without a box" in output
    code, _, error = call("synthetic", "--root", "other", "--backgrounds", "photo", *sizes)
    assert code == 2
    assert error.startswith("photo: no such folder (looked in ")


def test_a_set_that_is_there_must_be_made_on_the_backgrounds(photos: Path, tmp_path: Path) -> None:
    def prepare(folder: Path | None, root: str) -> None:
        options = replace(options_of(photos), backgrounds=None if folder is None else str(folder))
        prepare_root(DataOptions(root=str(tmp_path / root), synthetic=options))

    prepare(photos, "made")
    prepare(photos, "made")
    photos.rename(tmp_path / "moved")
    prepare(photos, "made")  # they are gone
    prepare(tmp_path / "moved", "made")
    (tmp_path / "moved" / NAMES[0]).unlink()
    prepare(None, "drawn")
    for folder, root in ((tmp_path / "moved", "made"), (tmp_path / "moved", "drawn"), (photos, "drawn")):
        with pytest.raises(DataError, match=f"{root} exists already and was not made on these images"):
            prepare(folder, root)
