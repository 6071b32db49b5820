"""`deim data`: its actions, exit codes and files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deim.config.loader import config_to_yaml
from tests.data.small_sets import noise, write_small_set


def test_a_clean_set_ends_with_0_and_one_with_a_shared_image_with_1(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    code, out, _ = call("data", "check", root, "--image-size", 30, 40)
    assert code == 0
    assert "0 errors, 0 warnings\nissues  outputs/data_check.json\n" in out
    shutil.copy(root / "images" / "t1.png", root / "images" / "v1.png")
    code, out, _ = call("data", "check", root, "--quick", "--image-size", 60, "--output", "found.json")
    assert code == 1
    assert "val.json: image 'v1.png' (val) has the same bytes as 't1.png' (train)." in out
    report = json.loads((tmp_path / "found.json").read_text())
    assert (report["format"], report["num_errors"]) == ("coco", 1)
    assert [entry["rule"] for entry in report["issues"]] == ["duplicate_across"]


def test_groups_across_splits_are_reported_and_fixed_by_a_new_split(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    by_number = ("--group-regex", r"(\d)\.png")
    code, out, _ = call("data", "check", root, "--image-size", 60, *by_number)
    assert code == 1
    assert "group '0' is in split train (such as 't0.png') and in val (such as 'v0.png')" in out
    code, out, _ = call("data", "split", root, *by_number, "--ratios", 60, 40, 0, "--output", "new")
    assert code == 0
    assert "dataset  new" in out
    code, out, _ = call("data", "check", "new", "--image-size", 60, *by_number)
    assert (code, "0 errors" in out) == (0, True)


def test_images_of_the_same_name_are_grouped_as_the_check_groups_them(call: Callable, tmp_path: Path) -> None:
    call("data", "convert", write_small_set(tmp_path / "set"), "--to", "yolo", "--output", "yolo")
    for path in ("images/val/v0.png", "labels/val/v0.txt"):
        old = tmp_path / "yolo" / path
        old.rename(old.with_stem("t0"))
    by_name = ("--group-regex", r"^(\w\d)\.")
    code, out, _ = call("data", "check", "yolo", "--quick", "--image-size", 60, *by_name)
    assert "group 't0' is in split train (such as 't0.png') and in val (such as 't0.png')" in out
    code, _, err = call("data", "split", "yolo", *by_name, "--ratios", 60, 40, 0, "--output", "new")
    assert (code, err) == (0, "")
    paths = sorted(path.relative_to(tmp_path / "new").as_posix() for path in tmp_path.glob("new/**/*t0.png"))
    assert [path.split("images/")[-1].split("/")[0] for path in paths] in (["train"] * 2, ["val"] * 2)
    assert {path.split("/", 2)[-1] for path in paths} == {"train/t0.png", "val/t0.png"}


def test_a_set_is_converted_and_the_new_one_is_checked(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    code, out, _ = call("data", "convert", root, "--to", "yolo", "--output", "yolo")
    assert code == 0
    assert out.startswith("coco to yolo: 5 images and 12 boxes in train, val\n5 image ids are dropped")
    code, out, _ = call("data", "check", "yolo/data.yaml", "--image-size", 60)
    assert (code, "0 errors, 0 warnings" in out) == (0, True)
    code, _, err = call("data", "convert", root, "--to", "yolo", "--output", "yolo")
    assert (code, err) == (2, "yolo: exists already. Name a folder that does not exist, or remove it.\n")


@pytest.mark.slow
def test_a_set_is_described_in_numbers_and_charts(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    tiles = ("--tile-size", 32)
    assert call("data", "stats", root, "--image-size", 60, *tiles, "--output", "tiled")[0] == 0
    assert json.loads((tmp_path / "tiled" / "stats.json").read_text())["tile_size"] == 32
    code, out, _ = call("data", "stats", root, "--image-size", 60, "--output", "charts")
    assert code == 0
    assert "Class 'pit' has only 4 boxes, under 30." in out
    assert json.loads((tmp_path / "charts" / "stats.json").read_text())["images"] == {"train": 3, "val": 2}
    assert len(list((tmp_path / "charts").glob("*.png"))) == 5


def test_file_names_that_are_not_unicode_are_printed_and_written(call: Callable, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder in ("images", "labels"):
        (root / folder / "train").mkdir(parents=True)
    name = os.fsdecode(b"pr\xfcf")  # as old archives hold it
    noise(1).save(root / "images" / "train" / "good.png")
    (root / "images" / "train" / "good.png").rename(root / "images" / "train" / f"{name}.png")
    (root / "labels" / "train" / f"{name}.txt").write_text("0 0.5 0.5 x 0.2\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [pit]\n")
    code, out, _ = call("data", "check", root, "--output", "check.json")
    assert code == 1
    assert "labels/train/pr\\udcfcf.txt: line 1 is no box" in out
    report = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert report["issues"][0]["file"] == f"labels/train/{name}.txt"


def test_bad_input_ends_with_code_2_and_one_line(call: Callable, tmp_path: Path) -> None:
    code, out, err = call("data", "check", "lost")
    assert (code, out) == (2, "")
    assert err.startswith("lost: no such folder (looked in ")
    root = write_small_set(tmp_path / "set")
    code, _, err = call("data", "stats", root, "--image-size", 1, 2, 3)
    assert (code, err) == (2, "--image-size: got 1 2 3. Give one side, or height and width.\n")
    code, _, err = call("data", "split", root, "--ratios", "nan", 10, 10, "--output", "new")
    assert (code, err.split(".")[0]) == (2, "--ratios: got nan 10 10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("command", ["split", "stats"])
def test_a_negative_seed_is_refused(command: str, call: Callable, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        call("data", command, "set", "--seed", -1, "--output", "new")
    assert "argument --seed: got -1, needs at least 0" in capsys.readouterr().err


def test_a_preview_has_a_sheet_for_each_stage(
    call: Callable, tmp_path: Path, tiny_set: Path, tiny_config: Callable
) -> None:
    options = ("epochs=10", "image_size=96", "augment={mosaic: 1.0, photometric: 0.5, multi_scale: 0.5}")
    path = tmp_path / "config.yml"
    path.write_text(config_to_yaml(tiny_config(tiny_set, tmp_path / "run", *options)), encoding="utf-8")
    code, out, _ = call("data", "preview", "-c", path, "--set", "schedule.no_aug_epochs=2", "--images", 5)
    assert code == 0
    lines = [
        "stage 1  epochs 1 to 4: mosaic, colors, flips, several sizes",
        "stage 2  epochs 5 to 8: colors, flips, several sizes",
        "stage 3  epochs 9 to 10: flips",
    ]
    assert [line for line in out.splitlines() if line.startswith("stage")] == lines
    for number in (1, 2, 3):
        with Image.open(tmp_path / "outputs" / "data_preview" / f"stage_{number}.png") as sheet:
            assert sheet.width > 4 * 360
    code, _, err = call("data", "preview", "-c", tmp_path / "lost.yml")
    assert code == 2
    assert "lost.yml" in err


def test_a_preview_shows_pixels_and_boxes_as_the_network_gets_them(
    call: Callable, tmp_path: Path, tiny_set: Path, tiny_config: Callable
) -> None:
    path = tmp_path / "config.yml"
    config = tiny_config(
        tiny_set, tmp_path / "run", "epochs=1", "augment={horizontal_flip: 0, photometric: 0}"
    )
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert call("data", "preview", "-c", path, "--images", 1)[0] == 0
    sheet = Image.open(tmp_path / "outputs" / "data_preview" / "stage_1.png").convert("RGB")
    assert sheet.size == (24 + 384, 64 + 424)
    tile = np.asarray(sheet)[104 + 40 : 104 + 320, 24 + 40 : 24 + 320]
    assert 60 < tile.mean() < 200
