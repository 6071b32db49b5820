"""The synthetic set: same seed same bytes, valid COCO, boxes that fit what is seen."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deim.data.synthetic.defects import CLASS_NAMES, DefectKind, draw_defect, stroke_cover
from deim.data.synthetic.make import (
    VISIBLE_CHANGE,
    SyntheticOptions,
    add_defects,
    blend_patch,
    make_image,
    make_synthetic_dataset,
    render_image,
)
from deim.data.synthetic.surface import Scene, make_scene
from deim.errors import ConfigError, DataError

KINDS: tuple[DefectKind, ...] = ("dent", "crack", "scratch", "hole", "stain")
SMALL: dict[str, Any] = {"max_size_wh": (160, 128), "seed": 3}
SINGLE_IMAGE = SyntheticOptions(train_images=1, val_images=1, test_images=0, **SMALL)


def read_content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "nested" / "set"
    make_synthetic_dataset(root, SyntheticOptions(train_images=60, val_images=5, test_images=0, **SMALL))
    return root


def flat_scene(size_hw: tuple[int, int] = (200, 240)) -> Scene:
    return Scene(
        canvas=np.full((*size_hw, 3), 0.5, dtype=np.float32),
        surface=np.ones(size_hw, dtype=np.float32),
        light_xy=(0.6, -0.8),
    )


@pytest.mark.slow
def test_same_seed_gives_same_bytes_on_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        options = SyntheticOptions(train_images=4, val_images=2, test_images=1, **SMALL)
        make_synthetic_dataset(tmp_path / str(workers), options, workers=workers)
    assert read_content(tmp_path / "1") == read_content(tmp_path / "2")


def test_image_does_not_depend_on_the_size_of_the_set(dataset: Path) -> None:
    assert make_image("train", 7, **SMALL)[1] == (dataset / "images" / "train_00007.jpg").read_bytes()


def test_seed_split_and_index_each_change_the_image() -> None:
    first = make_image("train", 0, max_size_wh=(160, 128), seed=3)[1]
    assert first != make_image("train", 0, max_size_wh=(160, 128), seed=4)[1]
    assert first != make_image("val", 0, max_size_wh=(160, 128), seed=3)[1]
    assert first != make_image("train", 1, max_size_wh=(160, 128), seed=3)[1]


@pytest.mark.parametrize(("split", "count"), [("train", 60), ("val", 5), ("test", 0)])
def test_annotations_are_valid_coco(dataset: Path, split: str, count: int) -> None:
    content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
    assert [(row["id"], row["name"]) for row in content["categories"]] == list(
        enumerate(CLASS_NAMES.values(), start=1)
    )
    assert [image["file_name"] for image in content["images"]] == [
        f"{split}_{i:05d}.jpg" for i in range(count)
    ]
    images = {image["id"]: image for image in content["images"]}
    assert len(images) == count
    assert len({row["id"] for row in content["annotations"]}) == len(content["annotations"])
    for image in images.values():
        with Image.open(dataset / "images" / image["file_name"]) as photo_image:
            assert photo_image.size == (image["width"], image["height"])
            assert photo_image.mode == "RGB"
        assert 64 <= image["width"] <= 160
        assert 64 <= image["height"] <= 128
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        image = images[row["image_id"]]
        assert x >= 0
        assert y >= 0
        assert min(width, height) >= 3
        assert x + width <= image["width"]
        assert y + height <= image["height"]
        assert row["area"] == width * height
        assert row["iscrowd"] == 0
        assert 1 <= row["category_id"] <= 6


def test_every_class_and_images_without_boxes_occur(dataset: Path) -> None:
    content = json.loads((dataset / "annotations" / "train.json").read_text())
    classes: dict[int, list[int]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        classes[row["image_id"]].append(row["category_id"])
    assert {category for actual in classes.values() for category in actual} == {1, 2, 3, 4, 5, 6}
    assert all(actual == [1] for actual in classes.values() if 1 in actual)
    assert sum(actual == [1] for actual in classes.values()) == pytest.approx(6, abs=1)
    assert sum(actual == [] for actual in classes.values()) == pytest.approx(7.2, abs=1.3)


def test_nothing_else_is_left_beside_the_dataset(dataset: Path) -> None:
    assert [path.name for path in dataset.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", KINDS)
def test_box_is_the_extent_of_the_changed_pixels(kind: DefectKind) -> None:
    rng = np.random.default_rng(5)
    scene = flat_scene()
    clean = scene.canvas.copy()
    window = None
    while window is None:
        patch = draw_defect(rng, kind, scene)
        assert np.array_equal(scene.canvas, clean)
        window = blend_patch(scene, patch, taken=[])
    changed = np.abs(scene.canvas - clean).max(axis=2) > VISIBLE_CHANGE
    rows, cols = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert window == (cols[0], rows[0], cols[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_stay_in_range_at_every_size(kind: DefectKind) -> None:
    for size_hw in ((64, 64), (64, 160), (128, 70)):
        for seed in range(5):
            (x0, y0, x1, y1), pixels = draw_defect(np.random.default_rng(seed), kind, flat_scene(size_hw))
            assert 0 <= x0 < x1 <= size_hw[1]
            assert 0 <= y0 < y1 <= size_hw[0]
            assert pixels.shape == (y1 - y0, x1 - x0, 3)
            assert pixels.dtype == np.float32
            assert pixels.min() >= 0
            assert pixels.max() <= 1


def test_patch_off_the_surface_or_on_a_taken_box_is_refused() -> None:
    scene = flat_scene()
    patch = draw_defect(np.random.default_rng(0), "hole", scene)
    x0, _, x1, _ = patch[0]
    clean = scene.canvas.copy()
    assert blend_patch(scene, patch, taken=[patch[0]]) is None
    scene.surface[:, : (x0 + x1) // 2] = 0
    assert blend_patch(scene, patch, taken=[]) is None
    assert np.array_equal(scene.canvas, clean)


def test_defects_stay_on_the_plate() -> None:
    for seed in range(6):
        scene = make_scene(np.random.default_rng(seed), (110, 140), has_part=True)
        clean = scene.canvas.copy()
        assert 1 <= len(add_defects(np.random.default_rng(seed), scene)) <= 6
        assert np.array_equal(scene.canvas[scene.surface == 0], clean[scene.surface == 0])


def test_normal_box_covers_the_visible_surface() -> None:
    boxes = [render_image(np.random.default_rng(seed), (100, 120), "normal")[1] for seed in range(8)]
    assert all(len(actual) == 1 and actual[0].category_id == 1 for actual in boxes)
    windows = [actual[0].window for actual in boxes]
    assert all((x1 - x0) * (y1 - y0) > 0.3 * 100 * 120 for x0, y0, x1, y1 in windows)
    assert any(window == (0, 0, 120, 100) for window in windows)


def test_empty_scene_has_no_surface_and_no_box() -> None:
    assert make_scene(np.random.default_rng(0), (80, 90), has_part=False).surface.max() == 0
    assert render_image(np.random.default_rng(0), (80, 90), "empty")[1] == ()


def test_stroke_cover_is_its_strength_inside_and_zero_outside() -> None:
    stroke = np.array([[10.0, 20.0, 3.0, 0.8], [40.0, 20.0, 3.0, 0.8]])
    cover = stroke_cover([stroke], (5, 10, 55, 30))
    assert cover.shape == (20, 50)
    assert cover[9:11, 10:30] == pytest.approx(0.8)
    assert cover.sum() == pytest.approx(0.8 * (30 * 6 + np.pi * 9), rel=0.02)
    assert cover[:6].max() == 0
    assert cover[:, 40:].max() == 0


def test_existing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"exists already.*Remove it or choose another root"):
        make_synthetic_dataset(tmp_path, SINGLE_IMAGE)


def test_all_problems_are_named_together() -> None:
    with pytest.raises(ConfigError) as error:
        SyntheticOptions(train_images=-1, test_images=0, max_size_wh=(63, 80), seed=-2)
    assert "train_images: got -1" in str(error.value)
    assert "max_size_wh: got [63, 80], each needs at least 96" in str(error.value)
    assert "seed: got -2" in str(error.value)


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deim.data.synthetic.make.write_annotations", fail)
    with pytest.raises(KeyboardInterrupt):
        make_synthetic_dataset(tmp_path / "new", SINGLE_IMAGE)
    assert list(tmp_path.iterdir()) == []


def test_tool_prints_the_result_and_refuses_politely(tmp_path: Path) -> None:
    root = tmp_path / "set"
    command = [sys.executable, "tools/make_synthetic.py", "--root", str(root), "--max-size", "96", "96"]
    command += ["--train-images", "2", "--val-images", "1", "--test-images", "0"]
    repository = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(repository)}
    first = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert first.returncode == 0, first.stderr
    assert str(root) in first.stdout
    assert "train: 2 images" in first.stdout
    second = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert second.stderr.startswith(f"{root}: exists already.")
    assert "Traceback" not in second.stderr
