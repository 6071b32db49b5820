"""From one format to the next and back: the same boxes, classes and ids, and nothing lost without a line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.curation.check import check_before_run
from deim.curation.convert import describe_losses, place_names, write_dataset
from deim.data.dataset import DetectionDataset
from deim.data.formats.read import Format, find_dataset, read_all, to_splits
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.data.splits import build_splits, read_split
from deim.errors import ConfigError, DataError
from deim.files import sha256_of_file
from tests.data.sensor_files import write_png
from tests.data.small_sets import make_contents, noise, write_contents, write_images, write_small_set

FORM = InputFormat(size_hw=(64, 64), resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def read(root: Path, data_format: Format) -> dict[str, CocoSplit]:
    return to_splits(read_all(find_dataset(root, data_format)))


def write_awkward_set(root: Path) -> Path:
    """A folder in a name, a class without boxes, boxes of part pixels and beyond the image, odd names."""
    write_images(root)
    (root / "images" / "lot 1").mkdir()
    (root / "images" / "t1.png").rename(root / "images" / "lot 1" / "t1.b.png")
    contents = make_contents()
    for content in contents.values():
        content["categories"].append({"id": 2, "name": "Riß & <Kratzer>"})
    contents["train"]["images"][1]["file_name"] = "lot 1/t1.b.png"
    contents["train"]["annotations"][0]["bbox"] = [1 / 3, 0.123456, 39.5, 17 / 7]
    contents["train"]["annotations"][1]["bbox"] = [30, 20, 20, 20]
    write_contents(root, contents)
    return root


def by_name(split: CocoSplit) -> dict[str, tuple[Any, ...]]:
    """Size, digest, categories and boxes of each image, whatever their order."""
    actual = {}
    for index, name in enumerate(split.file_names):
        rows = slice(split.first_box[index], split.first_box[index + 1])
        categories = split.box_category_ids[rows].tolist()
        digest = sha256_of_file(split.image_path(index))
        actual[name] = (
            split.sizes_hw[index].tolist(),
            digest,
            categories,
            split.is_crowd[rows].tolist(),
            split.boxes_xywh[rows],
        )
    return actual


def test_sets_of_deep_images_are_read_for_tools(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        pixels = np.asarray(Image.open(path)).astype(np.uint16)
        write_png(path, pixels * 256 + number)
    assert set(read(tmp_path, "coco")) == {"train", "val"}


def assert_same(first: dict[str, CocoSplit], second: dict[str, CocoSplit], *, atol: float) -> None:
    assert list(first) == list(second)
    for name, split in first.items():
        assert split.category_ids == second[name].category_ids
        assert split.class_names == second[name].class_names
        item, other = by_name(split), by_name(second[name])
        assert item.keys() == other.keys()
        for image, (*facts, boxes) in item.items():
            assert facts == list(other[image][:-1])
            np.testing.assert_allclose(boxes, other[image][-1], atol=atol, rtol=0)


def test_coco_to_yolo_to_voc_to_coco_gives_the_same_boxes_and_categories(tmp_path: Path) -> None:
    first = read(write_awkward_set(tmp_path / "start"), "coco")
    assert first["train"].num_empty == 1
    now = first
    for step in ("yolo", "voc", "coco"):
        write_dataset(now, step, tmp_path / step)
        assert find_dataset(tmp_path / step).format == step
        now = read(tmp_path / step, step)
        assert_same(first, now, atol=2e-6)
        assert now["train"].category_ids == (2, 3, 7, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "start", "voc", "yolo"]


@pytest.mark.parametrize("data_format", ["yolo", "voc"])
def test_training_reads_each_format_to_the_same_samples(
    data_format: Format, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    root = write_small_set(tmp_path / "coco")
    write_dataset(read(root, "coco"), data_format, tmp_path / data_format)
    expected = build_splits(tiny_config(root, tmp_path / "run").data)
    config = tiny_config(tmp_path / data_format, tmp_path / "run", f"data.format={data_format}")
    actual = build_splits(config.data)
    assert check_before_run(config).issues == ()
    index = {number: place for place, number in enumerate(expected.train.category_ids)}
    for item, other in ((expected.train, actual.train), (expected.val, actual.val)):
        assert item.file_names == other.file_names
        pairs = zip(
            *(
                [
                    DetectionDataset(split, index, input_format=FORM).read((0, image))
                    for image in range(len(split))
                ]
                for split in (item, other)
            ),
            strict=True,
        )
        for (image, target), (other_image, other_target) in pairs:
            assert torch.equal(image, other_image)
            assert torch.equal(target["labels"], other_target["labels"])
            torch.testing.assert_close(target["boxes"], other_target["boxes"])


@pytest.mark.parametrize("data_format", ["yolo", "voc"])
def test_a_split_that_the_dataset_lacks_is_refused_by_name(
    data_format: Format, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    write_dataset(read(write_small_set(tmp_path / "coco"), "coco"), data_format, tmp_path / "new")
    config = tiny_config(tmp_path / "new", tmp_path / "run", f"data.format={data_format}")
    with pytest.raises(
        DataError, match=r"split 'test': .*new has only train, val\. To divide a dataset .*: deim data split"
    ):
        read_split(config.data, "test")


def test_a_synthetic_set_in_another_format_is_refused(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=r"format: got 'yolo', but the synthetic set is COCO\."):
        tiny_config(tmp_path, tmp_path / "run", "data.format=yolo", "data.synthetic={}")


def test_a_missing_folder_is_told_what_it_must_hold(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(tmp_path / "lost", tmp_path / "run")
    with pytest.raises(DataError, match=r"It must hold a dataset: COCO with .*; YOLO with .*; VOC with"):
        build_splits(config.data)


def test_crowd_regions_survive_in_voc_and_are_refused_by_yolo(tmp_path: Path) -> None:
    contents = make_contents()
    contents["train"]["annotations"][2]["iscrowd"] = 1
    write_images(tmp_path / "coco")
    write_contents(tmp_path / "coco", contents)
    splits = read(tmp_path / "coco", "coco")
    write_dataset(splits, "voc", tmp_path / "voc")
    assert_same(splits, read(tmp_path / "voc", "voc"), atol=1e-6)
    with pytest.raises(
        DataError, match=r"train\.json: 1 annotations have iscrowd 1, which YOLO cannot represent"
    ):
        write_dataset(splits, "yolo", tmp_path / "yolo")
    assert not (tmp_path / "yolo").exists()


def test_what_a_format_has_no_place_for_is_counted(tmp_path: Path) -> None:
    contents = make_contents()
    contents["train"]["annotations"][0].update(area=17.0, segmentation=[[1, 2, 3, 4, 5, 6]])
    contents["val"]["images"][0]["license"] = 3
    contents["val"]["categories"][0] = {**contents["val"]["categories"][0], "supercategory": "defect"}
    write_images(tmp_path)
    write_contents(tmp_path, contents)
    raws = read_all(find_dataset(tmp_path))
    outline = "1 outlines (segmentation) are dropped: the project trains on boxes"
    fields = "2 fields are dropped: license, supercategory"
    assert describe_losses(raws, "coco") == [outline, fields]
    assert describe_losses(raws, "voc") == [
        outline,
        fields,
        "1 areas are dropped: VOC only keeps width and height",
        "5 image ids are dropped: when read again, the images of a split are numbered from 1",
    ]


def test_images_of_one_name_in_two_splits_get_a_folder_each() -> None:
    names = {"train": ["a.png", "b.png"], "val": ["a.jpg"]}
    assert place_names(names, by_stem=False) == names
    assert place_names(names, by_stem=True, has_split_folders=True) == names
    assert place_names(names, by_stem=True) == {
        "train": ["train/a.png", "train/b.png"],
        "val": ["val/a.jpg"],
    }


def test_images_that_would_meet_or_leave_the_folder_are_refused_together() -> None:
    with pytest.raises(DataError) as caught:
        place_names({"train": ["a.png", "a.jpg", "../b.png"]}, by_stem=True)
    assert str(caught.value).splitlines() == [
        "train: 2 images would have the file 'a'. Give each a different name.",
        "train: image '../b.png' lies outside the image folder. Move it into the folder.",
    ]


def test_an_existing_folder_is_never_written_into(tmp_path: Path) -> None:
    splits = read(write_small_set(tmp_path / "coco"), "coco")
    with pytest.raises(DataError, match=r"coco: exists already\."):
        write_dataset(splits, "yolo", tmp_path / "coco")


def test_splits_with_other_lists_of_classes_are_refused(tmp_path: Path) -> None:
    contents = make_contents()
    contents["val"]["categories"].append({"id": 8, "name": "dent"})
    write_images(tmp_path)
    write_contents(tmp_path, contents)
    with pytest.raises(DataError, match=r"^val\.json: the classes are .*8: 'dent'.*Give all splits the same"):
        read(tmp_path, "coco")


def test_the_format_is_known_by_what_lies_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost: no such folder"):
        find_dataset(tmp_path / "lost")
    with pytest.raises(DataError, match=r"no dataset there\. COCO has annotations/\*\.json"):
        find_dataset(tmp_path)
    root = write_small_set(tmp_path / "set")
    assert (find_dataset(root).format, find_dataset(root).splits) == ("coco", ("train", "val"))
    (root / "data.yaml").write_text("names: [a]\ntrain: images\n")
    with pytest.raises(DataError, match=r"looks like yolo and coco"):
        find_dataset(root)
    with pytest.raises(DataError, match=r"no VOC dataset there"):
        find_dataset(root, "voc")


def test_coco_files_beside_the_images_of_each_split_are_found(tmp_path: Path) -> None:
    contents = make_contents()
    for split, folder in (("train", "train"), ("val", "valid")):
        (tmp_path / folder).mkdir()
        write_contents(tmp_path / "scratch", {split: contents[split]})
        source = tmp_path / "scratch" / "annotations" / f"{split}.json"
        source.rename(tmp_path / folder / "_annotations.coco.json")
        for image in contents[split]["images"]:
            noise(image["id"]).save(tmp_path / folder / image["file_name"])
    splits = read(tmp_path, "coco")
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "val": 2}


@pytest.mark.parametrize("data_format", ["voc", "yolo"])
@pytest.mark.parametrize("name", ["a\nb.png", "a\x85b.png", "a\u2028.png", "lot\r/a.png", "a .png", " a.png"])
def test_an_image_name_that_no_line_holds_is_refused(
    name: str, data_format: Format, call: Callable, tmp_path: Path
) -> None:
    write_images(tmp_path / "set")
    contents = make_contents()
    contents["train"]["images"][1]["file_name"] = name
    (tmp_path / "set" / "images" / name).parent.mkdir(exist_ok=True)
    noise(7).save(tmp_path / "set" / "images" / name)
    write_contents(tmp_path / "set", contents)
    code, _, err = call("data", "convert", "set", "--to", data_format, "--output", "new")
    assert (code, f"image {name!r} has a line break" in err) == (2, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("data_format", ["voc", "yolo"])
@pytest.mark.parametrize("name", ["a\nb", "pit\x85", "pit\u2029"])
def test_a_class_name_that_no_line_holds_is_refused(
    name: str, data_format: Format, call: Callable, tmp_path: Path
) -> None:
    write_images(tmp_path / "set")
    contents = make_contents()
    for content in contents.values():
        content["categories"][1] = {"id": 3, "name": name}
    write_contents(tmp_path / "set", contents)
    code, _, err = call("data", "convert", "set", "--to", data_format, "--output", "new")
    assert (code, "cannot represent. Rename" in err) == (2, True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "names", [("A.png", "a.png"), ("é.png", "e\u0301.png"), ("Straße.png", "STRASSE.png")]
)
def test_names_of_one_file_on_other_systems_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="on systems that ignore case and Unicode form"):
        place_names({"train": names}, by_stem=False)
    placed = place_names({"train": names[:1], "val": names[1:]}, by_stem=False)
    assert placed == {"train": [f"train/{names[0]}"], "val": [f"val/{names[1]}"]}


@pytest.mark.parametrize("name", ["", "  ", "pit\udcff"])
def test_names_that_no_report_holds_are_refused_at_the_door(name: str, tmp_path: Path) -> None:
    raw = find_dataset(write_small_set(tmp_path / "set")).read("train")
    category = {**raw.categories[0], "name": name}
    with pytest.raises(DataError, match="is not text in UTF-8, or empty"):
        to_splits({"train": replace(raw, categories=[category, *raw.categories[1:]])})


@pytest.mark.parametrize("output", ["set/new", "set/images/../x/new", "link/new"])
@pytest.mark.parametrize("action", ["check", "stats", "convert", "split"])
def test_no_action_writes_into_the_dataset(action: str, output: str, call: Callable, tmp_path: Path) -> None:
    write_small_set(tmp_path / "set")
    (tmp_path / "link").symlink_to("set")
    before = sorted((tmp_path / "set").rglob("*"))
    more = ("--to", "yolo") if action == "convert" else ()
    code, _, err = call("data", action, "set", *more, "--output", output)
    assert (code, "which is read" in err) == (2, True)
    assert sorted((tmp_path / "set").rglob("*")) == before


def test_check_has_the_limit_of_image_size(call: Callable, tmp_path: Path) -> None:
    write_small_set(tmp_path / "set")
    limit = "--max-image-megapixels"
    assert call("data", "check", "set", limit, "0.0001", "--output", "check.json")[0] == 1
    assert '"large_image": 5' in (tmp_path / "check.json").read_text()
    code, _, err = call("data", "check", "set", limit, "0", "--output", "check.json")
    assert (code, f"{limit}: got 0" in err) == (2, True)
    assert call("data", "check", "set", limit, "0.0012", "--output", "check.json")[2] == ""
    assert '"large_image": 0' in (tmp_path / "check.json").read_text()


@pytest.mark.parametrize("data_format", ["voc", "yolo", "coco"])
@pytest.mark.parametrize("name", ["a.jpg.png", "100% #1?.png", "lot 1/b.TIF.png", "名前.png", "-c.png"])
def test_any_other_name_is_read_again(name: str, data_format: Format, call: Callable, tmp_path: Path) -> None:
    write_images(tmp_path / "set")
    contents = make_contents()
    contents["train"]["images"][1]["file_name"] = name
    (tmp_path / "set" / "images" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / "images" / "t1.png").rename(tmp_path / "set" / "images" / name)
    write_contents(tmp_path / "set", contents)
    assert call("data", "convert", "set", "--to", data_format, "--output", "new")[0] == 0
    old, new = read(tmp_path / "set", "coco")["train"], read(tmp_path / "new", data_format)["train"]
    assert sorted(new.file_names) == sorted(old.file_names)
    assert len(new.boxes_xywh) == len(old.boxes_xywh)
