"""Names in data lead only to regular files below the folder that the user named, or with permission."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.data.formats.read import find_dataset, read_all, to_splits
from deim.data.images.folder import ImageIndex
from deim.data.images.read import read_header
from deim.errors import DataError
from tests.data.small_sets import make_contents, noise, write_contents, write_images, write_small_set


def write_coco_with(root: Path, name: str) -> None:
    write_images(root)
    contents = make_contents()
    contents["train"]["images"][0]["file_name"] = name
    write_contents(root, contents)


@pytest.mark.parametrize("form", ["relative", "absolute", "dots_inside"])
def test_coco_reads_images_outside_only_if_allowed(form: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret" / "private.png"
    secret.parent.mkdir()
    noise(99).save(secret)
    names = {
        "relative": "../../secret/private.png",
        "absolute": str(secret),
        "dots_inside": "x/../../../secret/private.png",
    }
    (tmp_path / "set" / "images" / "x").mkdir(parents=True)
    (tmp_path / "set" / "images").rename(tmp_path / "kept")
    write_coco_with(tmp_path / "set", names[form])
    (tmp_path / "set" / "images" / "x").mkdir()
    with pytest.raises(DataError, match=r"--allow-outside, or data\.allow_outside=true"):
        to_splits(read_all(find_dataset(tmp_path / "set")))
    allowed = find_dataset(tmp_path / "set", allow_outside=True)
    assert to_splits(read_all(allowed))["train"].image_path(0).samefile(secret)


@pytest.mark.parametrize("kind", ["fifo", "device", "link_to_device", "link_to_fifo"])
def test_what_is_no_regular_file_is_never_opened(kind: str, tmp_path: Path) -> None:
    name = {"device": "/dev/zero"}.get(kind, "pipe.png")
    write_coco_with(tmp_path / "set", name)
    place = tmp_path / "set" / "images" / "pipe.png"
    match kind:
        case "fifo":
            os.mkfifo(place)
        case "link_to_device":
            place.symlink_to("/dev/zero")
        case "link_to_fifo":
            os.mkfifo(tmp_path / "pipe")
            place.symlink_to(tmp_path / "pipe")
    for allow_outside in (False, True):
        with pytest.raises(DataError, match="is listed but not in"):
            to_splits(read_all(find_dataset(tmp_path / "set", allow_outside=allow_outside)))
    if kind != "device":
        with pytest.raises(DataError, match="not a regular file"):
            read_header(place)


def write_yolo_with(root: Path, **lines: str) -> None:
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        noise(len(split)).save(root / "images" / split / f"{split}.png")
        (root / "labels" / split / f"{split}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    content = {"train": "images/train", "val": "images/val", "names": ["pit"], **lines}
    (root / "data.yaml").write_text(json.dumps(content))


@pytest.mark.parametrize("lines", [{"train": "../other/pics"}, {"path": "../other", "train": "pics"}])
def test_yolo_reads_folders_outside_only_if_allowed(lines: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other" / "pics").mkdir(parents=True)
    (tmp_path / "other" / "images").mkdir()
    noise(5).save(tmp_path / "other" / "pics" / "a.png")
    write_yolo_with(tmp_path / "set", **lines)
    with pytest.raises(DataError, match=r"allow-outside|there is no"):
        find_dataset(tmp_path / "set").read("train")
    raw = find_dataset(tmp_path / "set", allow_outside=True).read("train")
    assert [Path(image["file_name"]).name for image in raw.images] == ["a.png"]


def test_roboflow_paths_of_another_place_need_no_permission(tmp_path: Path) -> None:
    write_yolo_with(tmp_path / "set", train="../images/train", val="../images/val")
    (tmp_path / "images" / "train").mkdir(parents=True)  # of another set
    raw = find_dataset(tmp_path / "set").read("train")
    assert [image["file_name"] for image in raw.images] == ["train.png"]


def test_yolo_lists_name_files_outside_only_if_allowed(tmp_path: Path) -> None:
    noise(5).save(tmp_path / "private.png")
    write_yolo_with(tmp_path / "set", train="train.txt")
    (tmp_path / "set" / "train.txt").write_text("../private.png\nimages/train/train.png\n")
    raw = find_dataset(tmp_path / "set").read("train")
    assert [image["file_name"] for image in raw.images] == ["images/train/train.png"]
    assert "--allow-outside" in raw.issues[0].message
    assert len(find_dataset(tmp_path / "set", allow_outside=True).read("train").images) == 2


@pytest.mark.parametrize("form", ["../../private", "{}/private"])
def test_voc_lists_name_files_outside_only_if_allowed(form: str, call: Callable, tmp_path: Path) -> None:
    write_small_set(tmp_path / "coco")
    assert call("data", "convert", "coco", "--to", "voc", "--output", "set")[0] == 0
    (tmp_path / "private.xml").write_text((tmp_path / "set" / "Annotations" / "t0.xml").read_text())
    noise(3).save(tmp_path / "set" / "JPEGImages" / "private.png")
    stem = form.format(tmp_path)
    (tmp_path / "set" / "ImageSets" / "Main" / "train.txt").write_text(f"{stem}\nt1\n")
    code, out, _ = call("data", "check", "set", "--output", "check.json")
    assert (code, "--allow-outside" in out) == (1, True)
    assert len(find_dataset(tmp_path / "set", allow_outside=True).read("train").images) == 2


def test_links_in_the_folder_are_those_of_the_user(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "far.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "near.png").symlink_to(tmp_path / "far.png")
    assert ImageIndex(tmp_path / "set").find("near.png").path == "near.png"
    assert ImageIndex(tmp_path / "set").find("../far.png").is_outside
