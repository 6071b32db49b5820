"""tools/data.py: its sub-commands, exit codes and what it writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.small_sets import write_small_set


def test_a_clean_set_ends_with_0_and_one_with_a_shared_image_with_1(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    code, out, _ = call("data", "check", root, "--image-size", 30, 40)
    assert code == 0
    assert "0 errors, 0 warnings\nfindings  outputs/data_check.json\n" in out
    shutil.copy(root / "images" / "t1.png", root / "images" / "v1.png")
    code, out, _ = call("data", "check", root, "--quick", "--image-size", 60, "--output", "found.json")
    assert code == 1
    assert "val.json: image 'v1.png' (val) has the bytes of 't1.png' (train)." in out
    report = json.loads((tmp_path / "found.json").read_text())
    assert (report["format"], report["num_errors"]) == ("coco", 1)
    assert [entry["rule"] for entry in report["findings"]] == ["duplicate_across"]


def test_groups_across_splits_are_found_and_mended_by_a_new_split(call: Callable, tmp_path: Path) -> None:
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


def test_a_set_is_converted_and_the_new_one_is_checked(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    code, out, _ = call("data", "convert", root, "--to", "yolo", "--output", "yolo")
    assert code == 0
    assert out.startswith("coco to yolo: 5 images and 12 boxes in train, val\n5 image ids are left out")
    code, out, _ = call("data", "check", "yolo/data.yaml", "--image-size", 60)
    assert (code, "0 errors, 0 warnings" in out) == (0, True)
    code, _, err = call("data", "convert", root, "--to", "yolo", "--output", "yolo")
    assert (code, err) == (2, "yolo: exists already. Name a folder that does not exist, or remove it.\n")


@pytest.mark.slow
def test_a_set_is_described_in_numbers_and_pictures(call: Callable, tmp_path: Path) -> None:
    root = write_small_set(tmp_path / "set")
    code, out, _ = call("data", "stats", root, "--image-size", 60, "--output", "charts")
    assert code == 0
    assert "Class 'pit' has 4 boxes in all, under 30." in out
    assert json.loads((tmp_path / "charts" / "stats.json").read_text())["images"] == {"train": 3, "val": 2}
    assert len(list((tmp_path / "charts").glob("*.png"))) == 7


def test_what_cannot_be_done_ends_with_2_and_one_line(call: Callable, tmp_path: Path) -> None:
    code, out, err = call("data", "check", "lost")
    assert (code, out) == (2, "")
    assert err.startswith("lost: no such folder (looked in ")
    root = write_small_set(tmp_path / "set")
    code, _, err = call("data", "stats", root, "--image-size", 1, 2, 3)
    assert (code, err) == (2, "--image-size: got 1 2 3. Give one side, or height and width.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
