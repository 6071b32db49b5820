"""`deim predict` on folders as people have them: subfolders, damaged and odd files, lists of any origin."""

import codecs
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from deim.files import JsonListFile
from tests.shared_cases import CASES, needs_cases

RAW = ("--score-threshold", "0", "--output", "found")


def noise(seed: int, size: tuple[int, int] = (70, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(90, 160, size=(*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def save(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path)


def read(path: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(path.read_text())
    return content


def test_folders_below_are_predicted_and_kept_in_the_copies(
    call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    for name in ("shift_1/a.png", "shift_1/cam/b.jpg", "shift_2/a.png", ".trash/a.png", "__MACOSX/._a.png"):
        save(tmp_path / "lots" / name)
    (tmp_path / "lots" / "shift_1" / "notes.txt").write_text("none")
    code, out, err = call("predict", tiny_run, "lots", *RAW)
    assert (code, err) == (0, "")
    names = ["shift_1/a.png", "shift_1/cam/b.jpg", "shift_2/a.png"]
    images = read(tmp_path / "found" / "images.json")
    assert [(entry["id"], entry["file_name"]) for entry in images] == list(enumerate(names, start=1))
    assert {entry["file_name"] for entry in read(tmp_path / "found" / "predictions.json")} == set(names)
    assert all((tmp_path / "found" / "annotated" / name).is_file() for name in names)
    assert "1 file of other types: 1 .txt" in out
    code, _, err = call("predict", tiny_run, "lots", "--no-recursive")
    assert (code, "3 images lie in the folders below" in err) == (2, True)
    save(tmp_path / "lots" / "top.png")
    code, out, _ = call("predict", tiny_run, "lots", "--no-recursive", *RAW)
    assert (code, "3 images in the folders below" in out) == (0, True)
    assert [entry["file_name"] for entry in read(tmp_path / "found" / "images.json")] == ["top.png"]


@pytest.mark.parametrize("output", ["lots", "lots/out", "link/out", "lots/sub/../../lots/new/deeper", "x"])
def test_nothing_is_written_to_a_folder_that_is_read(
    output: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    save(tmp_path / "lots" / "a.png")
    save(tmp_path / "lots" / "sub" / "b.png")
    (tmp_path / "link").symlink_to("lots")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "annotated").symlink_to(tmp_path / "lots" / "sub")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    code, _, err = call("predict", tiny_run, "lots", "--output", output)
    assert code == 2
    assert "which is read" in err
    assert "--output" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("image", ["x/annotated", "x/annotated/a.png"])
def test_images_in_the_folder_of_copies_are_not_replaced(
    image: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    save(tmp_path / "x" / "annotated" / "a.png")
    before = (tmp_path / "x" / "annotated" / "a.png").read_bytes()
    assert call("predict", tiny_run, image, "--output", "x")[0] == 2
    assert (tmp_path / "x" / "annotated" / "a.png").read_bytes() == before
    assert call("predict", tiny_run, image, "--output", "x/annotated/../y")[0] == 0


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_at_the_place_of_a_copy_is_replaced_and_not_followed(
    link: Callable, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    save(tmp_path / "lots" / "a.png")
    (tmp_path / "found" / "annotated").mkdir(parents=True)
    link(tmp_path / "lots" / "a.png", tmp_path / "found" / "annotated" / "a.png")
    before = (tmp_path / "lots" / "a.png").read_bytes()
    assert call("predict", tiny_run, "lots", "--output", "found")[0] == 0
    assert (tmp_path / "lots" / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("size", "suffix"), [((16, 16_400), "webp"), ((16_390, 20), "WEBP"), ((65_600, 8), "jpg")]
)
def test_an_image_too_large_for_the_format_of_its_copy_becomes_png(
    size: tuple[int, int], suffix: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "lots").mkdir()
    Image.new("RGB", size).save(tmp_path / "lots" / f"long.{suffix}", format="png")
    save(tmp_path / "lots" / f"long.{suffix}.png")
    code, _, err = call("predict", tiny_run, "lots", "--output", "found")
    assert (code, err) == (0, "")
    copies = sorted(path.name for path in (tmp_path / "found" / "annotated").iterdir())
    assert copies == [f"_long.{suffix}.png", f"long.{suffix}.png"]


def test_names_of_any_length_and_bytes_do_not_stop_the_others(
    call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    save(tmp_path / "lots" / "a.png")
    noise(0).save(tmp_path / "lots" / f"{'x' * 251}.gif")
    noise(1).save(tmp_path / "lots" / f"{'é' * 125}.jpg")
    noise(2).save(os.fsencode(tmp_path / "lots") + b"/bad\xff.png")
    code, out, err = call("predict", tiny_run, "lots", "--output", "found")
    assert (code, "bad\\udcff.png" in err) == (1, True)
    assert " in 3 images\n" in out
    names = {entry["file_name"] for entry in json.loads((tmp_path / "found" / "images.json").read_text())}
    assert {"a.png", "bad\\udcff.png"} < names


def test_listed_images_that_are_not_there_are_counted(call: Callable, tiny_run: Path, tmp_path: Path) -> None:
    save(tmp_path / "lots" / "a.png")
    images = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate("abc")]
    (tmp_path / "list.json").write_text(json.dumps({"images": images}))
    code, out, _ = call("predict", tiny_run, "lots", "--annotations", "list.json", "--output", "found")
    assert code == 0
    assert "missing    2 images of list.json, not in lots" in out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.jpg", b"\xff\xd8\xff\xe0 no more"),
        ("a.png", b""),
        ("sub/z.webp", b"RIFF\x10\0\0\0WEBPVP8 "),
        ("c.gif", b"GIF89a\x01"),
    ],
)
def test_a_damaged_image_is_listed_and_the_others_are_predicted(
    name: str, content: bytes, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    good = ["aa.png", "d.png", "sub/e.png"]
    for seed, other in enumerate(good):
        save(tmp_path / "lots" / other, seed)
    (tmp_path / "lots" / name).write_bytes(content)
    code, out, err = call("predict", tiny_run, "lots", *RAW)
    assert code == 1
    assert f"failed     1 image: {name}\n" in out
    assert err.startswith(f"lots/{name}: the image is damaged")
    assert len(err.splitlines()) == 1
    images = {entry["file_name"]: entry for entry in read(tmp_path / "found" / "images.json")}
    assert list(images) == sorted([*good, name])
    assert name in images[name]["error"]
    assert [images[other]["num_detections"] for other in good] == [20, 20, 20]
    results = read(tmp_path / "found" / "predictions.json")
    assert {row["file_name"]: row["image_id"] for row in results} == {
        other: images[other]["id"] for other in good
    }


def test_images_without_detections_are_named(call: Callable, tiny_run: Path, tmp_path: Path) -> None:
    for name in ("x.png", "y.png"):
        save(tmp_path / "lots" / name)
    code, out, _ = call("predict", tiny_run, "lots", "--score-threshold", "1", "--output", "found")
    assert (code, "2 images without a detection" in out) == (0, True)
    assert read(tmp_path / "found" / "predictions.json") == []
    images = read(tmp_path / "found" / "images.json")
    assert [(entry["file_name"], entry["num_detections"]) for entry in images] == [("x.png", 0), ("y.png", 0)]


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".jp2", ".avif"])
def test_formats_that_pillow_reads_are_predicted(
    suffix: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    codec = {".jp2": "jpg_2000", ".avif": "avif"}.get(suffix)
    if codec and not features.check(codec):
        pytest.skip(f"this build of Pillow cannot read {suffix}")
    save(tmp_path / "lots" / f"part{suffix}")
    code, _, err = call("predict", tiny_run, "lots", *RAW)
    assert (code, err) == (0, "")
    assert (tmp_path / "found" / "annotated" / f"part{suffix}.png").is_file()


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_of_several_pages_the_first_is_used_with_a_word(
    suffix: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    first, *others = (noise(seed) for seed in range(3))
    save(tmp_path / "lots" / "plain.png")
    first.save(tmp_path / "lots" / f"scan.{suffix}", save_all=True, append_images=others)
    code, out, _ = call("predict", tiny_run, "lots", *RAW)
    assert code == 0
    assert out.count("pages or frames") == 1
    assert f"scan.{suffix}: has 3 pages or frames; only the first is used." in out


@pytest.mark.parametrize("size", [(200, 60), (110, 100)])
def test_a_large_image_names_the_option_and_is_not_called_damaged(
    size: tuple[int, int], call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    noise(0, size).save(tmp_path / "wide.png")
    limit = "data.max_image_megapixels=0.01"
    code, _, err = call("predict", tiny_run, "wide.png", *RAW, "--set", limit)
    assert code == 1
    assert f"wide.png: too large, got {size[0]}x{size[1]} px, {size[0] * size[1] / 1e6:.5g} megapixels" in err
    assert "raise data.max_image_megapixels" in err
    assert "damaged" not in err
    assert call("predict", tiny_run, "wide.png", *RAW)[0] == 0


def coco(*names: str) -> str:
    images = [{"id": 7 * number, "file_name": name} for number, name in enumerate(names, start=1)]
    return json.dumps({"images": images}, ensure_ascii=False)


@pytest.mark.parametrize(
    "names",
    [
        ("day/a.png", "night/a.png"),
        (r"C:\data\day\a.png", r"C:\data\night\a.png"),
        ("/mnt/x/day/a.png", "../night/a.png"),
        ("day%2Fa.png", "./night/a.png"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_annotations_give_each_image_its_id_by_its_path(
    names: tuple[str, str], encoding: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("day/a.png", "night/a.png", "night/b.png")):
        save(tmp_path / "lots" / name, seed)
    (tmp_path / "ids.json").write_bytes(coco(*names).encode(encoding))
    code, out, err = call("predict", tiny_run, "lots", "--annotations", "ids.json", *RAW)
    assert (code, err) == (0, "")
    assert "skipped    1 image that ids.json does not list" in out
    results = read(tmp_path / "found" / "predictions.json")
    assert {(row["file_name"], row["image_id"]) for row in results} == {("day/a.png", 7), ("night/a.png", 14)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.png", "night/a.png"), "image 'a.png' (id 7) may be day/a.png or night/a.png in lots"),
        (("x/a.png",), "image 'x/a.png' (id 7) may be day/a.png or night/a.png in lots"),
        (("day/a.png", r"D:\day\a.png"), "(id 14) is day/a.png, which also has id 7"),
    ],
)
def test_annotations_that_may_mean_several_images_are_refused(
    names: tuple[str, ...], message: str, call: Callable, tiny_run: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("day/a.png", "night/a.png")):
        save(tmp_path / "lots" / name, seed)
    (tmp_path / "ids.json").write_bytes(codecs.BOM_UTF8 + coco(*names).encode())
    code, _, err = call("predict", tiny_run, "lots", "--annotations", "ids.json")
    assert (code, message in err) == (2, True), err


def test_a_list_is_whole_after_each_addition(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    entries = JsonListFile(path)
    assert read(path) == []
    expected: list[Any] = []
    for number, name in enumerate(["a", "缺陷", "\udcff"]):
        entries.add([])
        entries.add([{"name": name}] * number)
        expected += [{"name": name}] * number
        assert read(path) == expected


@pytest.mark.slow
def test_a_killed_prediction_leaves_what_it_did(tiny_run: Path, tmp_path: Path) -> None:
    for number in range(400):
        save(tmp_path / "lots" / f"{number:03}.png", number)
    command = [sys.executable, "-m", "deim", "predict", str(tiny_run), "lots", *RAW]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
        images = tmp_path / "found" / "images.json"
        for _ in range(600):
            time.sleep(0.1)
            if images.is_file() and len(read(images)) > 8:
                break
        process.kill()
    done = read(images)
    assert 8 < len(done) < 400
    by_name = {row["file_name"] for row in read(tmp_path / "found" / "predictions.json")}
    assert {entry["file_name"] for entry in done} <= by_name


@needs_cases
def test_the_shared_case_of_a_damaged_file(call: Callable, tiny_run: Path, tmp_path: Path) -> None:
    code, out, _ = call("predict", tiny_run, CASES / "28-predict-broken" / "in", *RAW)
    assert (code, "failed     1 image: 1b.jpg" in out) == (1, True)
    assert len(read(tmp_path / "found" / "images.json")) == 4


@needs_cases
@pytest.mark.parametrize("name", ["ann.json", "ann_bom.json", "ann_windows.json"])
def test_the_shared_case_of_annotations(name: str, call: Callable, tiny_run: Path, tmp_path: Path) -> None:
    data = CASES / "29-predict-annotations" / "data"
    code, _, err = call("predict", tiny_run, data, "--annotations", data / name, *RAW)
    assert (code, err) == (0, "")
    listed = json.loads((data / name).read_text(encoding="utf-8-sig"))["images"]
    ids = {"/".join(image["file_name"].replace("\\", "/").split("/")[-2:]): image["id"] for image in listed}
    actual = {row["file_name"]: row["image_id"] for row in read(tmp_path / "found" / "predictions.json")}
    assert actual == ids
