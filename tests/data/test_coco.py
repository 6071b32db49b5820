"""Annotation files: what is read, and what every kind of wrong file is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.data.dataset import DetectionDataset
from deim.data.formats.coco import read_coco
from deim.data.formats.split import match_classes
from deim.data.images.input_format import InputFormat
from deim.data.splits import build_splits
from deim.errors import DataError
from deim.files import raise_listed

FORM = InputFormat(size_hw=(64, 64), resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def make_content() -> dict[str, Any]:
    """Two images, the second without boxes; a box and a crowd region on the first."""
    return {
        "images": [
            {"id": 5, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 2, "file_name": "a.png", "width": 32, "height": 32},
        ],
        "annotations": [
            {"id": 11, "image_id": 5, "category_id": 7, "bbox": [4, 6, 10, 12.5], "area": 99, "iscrowd": 0},
            {"id": 12, "image_id": 5, "category_id": 3, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "scratch"}, {"id": 3, "name": "pit"}],
    }


def write(folder: Path, document: object) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name, size in (("b.png", (40, 30)), ("a.png", (32, 32))):
        Image.new("RGB", size, (90, 90, 90)).save(folder / "images" / name)
    path = folder / "set.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def message_of(folder: Path, document: object) -> str:
    path = write(folder, document)
    with pytest.raises(DataError) as caught:
        read_coco(path, folder / "images")
    return str(caught.value)


def test_images_without_any_annotation_are_read(tmp_path: Path) -> None:
    split = read_coco(write(tmp_path, make_content() | {"annotations": []}), tmp_path / "images")
    assert len(split) == split.num_empty == 2
    assert split.boxes_xywh.shape == (0, 4)
    assert split.first_box.tolist() == [0, 0, 0]
    _, target = DetectionDataset(split, {3: 0, 7: 1}, input_format=FORM).read((0, 0))
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64


def test_arrays_hold_what_the_file_says(tmp_path: Path) -> None:
    split = read_coco(write(tmp_path, make_content()), tmp_path / "images")
    assert split.image_ids.tolist() == [5, 2]
    assert split.file_names == ("b.png", "a.png")
    assert split.sizes_hw.tolist() == [[30, 40], [32, 32]]
    assert (split.category_ids, split.class_names) == ((3, 7), ("pit", "scratch"))
    assert split.first_box.tolist() == [0, 2, 2]
    assert split.boxes_xywh.tolist() == [[4, 6, 10, 12.5], [0, 0, 40, 30]]
    assert split.box_category_ids.tolist() == [7, 3]
    assert split.areas.tolist() == [99, 1200]
    assert split.is_crowd.tolist() == [False, True]
    assert split.num_empty == 1
    assert split.image_path(1) == tmp_path / "images" / "a.png"


def test_annotations_in_any_order_belong_to_their_image(tmp_path: Path) -> None:
    document = make_content()
    document["annotations"] = [
        {"image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2]},
        {"image_id": 5, "category_id": 7, "bbox": [2, 2, 3, 3]},
        {"image_id": 2, "category_id": 7, "bbox": [3, 3, 4, 4]},
    ]
    split = read_coco(write(tmp_path, document), tmp_path / "images")
    assert split.first_box.tolist() == [0, 1, 3]
    assert split.boxes_xywh[:, 0].tolist() == [2, 1, 3]


def test_crowds_are_kept_for_evaluation_and_left_out_of_training(tmp_path: Path) -> None:
    split = read_coco(write(tmp_path, make_content()), tmp_path / "images")
    _, target = DetectionDataset(split, {3: 0, 7: 1}, input_format=FORM).read((0, 0))
    assert target["labels"].tolist() == [1]
    assert [entry["iscrowd"] for entry in split.to_coco()["annotations"]] == [0, 1]


def test_reading_what_to_coco_gives_yields_the_same_arrays(tmp_path: Path) -> None:
    first = read_coco(write(tmp_path, make_content()), tmp_path / "images")
    again = read_coco(write(tmp_path, first.to_coco()), tmp_path / "images")
    for name in first.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (3, 7, 90)], ids=str)
def test_category_ids_of_any_kind_give_the_same_samples(
    ids: tuple[int, int, int], tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    names = ("pit", "scratch", "crack")
    splits, datasets = [], []
    for folder, numbers in (("reference", (1, 2, 3)), ("given", ids)):
        root = write_coco(tmp_path / folder, categories=dict(zip(names, numbers, strict=True)))
        split = read_coco(root / "annotations" / "train.json", root / "images")
        index = {number: position for position, number in enumerate(split.category_ids)}
        splits.append(split)
        datasets.append(DetectionDataset(split, index, input_format=FORM))
    reference, given = splits
    assert given.category_ids == ids
    assert given.class_names == reference.class_names == names
    for name in ("image_ids", "sizes_hw", "first_box", "boxes_xywh", "areas", "is_crowd"):
        np.testing.assert_array_equal(getattr(reference, name), getattr(given, name), err_msg=name)
    assert [ids[number - 1] for number in reference.box_category_ids] == given.box_category_ids.tolist()
    for expected, actual in zip(
        *([dataset.read((0, index)) for index in range(6)] for dataset in datasets), strict=True
    ):
        assert torch.equal(expected[0], actual[0])
        assert torch.equal(expected[1]["labels"], actual[1]["labels"])
        assert torch.equal(expected[1]["boxes"], actual[1]["boxes"])


def test_training_and_validation_match_by_name_whatever_their_order(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path, categories={"pit": 3, "scratch": 7, "crack": 90})
    write_coco(root, categories={"crack": 1, "pit": 5, "scratch": 2}, num_images={"val": 3})
    splits = build_splits(tiny_config(root, tmp_path / "run").data)
    assert splits.train.class_names == ("pit", "scratch", "crack")
    actual = match_classes(splits.val, splits.train.class_names, trained_on="train.json")
    assert actual == {1: 2, 2: 1, 5: 0}


def test_validation_may_lack_a_class(tmp_path: Path) -> None:
    split = read_coco(write(tmp_path, make_content()), tmp_path / "images")
    assert match_classes(split, ("crack", "scratch", "pit"), trained_on="x") == {3: 2, 7: 1}


def test_validation_with_a_class_that_training_lacks_is_refused(
    tmp_path: Path, write_coco: Callable[..., Path], tiny_config: Callable[..., Config]
) -> None:
    root = write_coco(tmp_path)
    write_coco(root, categories={"pit": 3, "dent": 4}, num_images={"val": 2})
    with pytest.raises(
        DataError,
        match=r"val\.json: class 'dent' is not known to train\.json, which has pit, scratch, crack\. "
        r"Classes are matched by name: rename it, remove it, or train with it\.",
    ):
        build_splits(tiny_config(root, tmp_path / "run").data)


def test_a_missing_file_is_refused_with_the_options_that_name_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: no such annotation file\. Set data\.root"):
        read_coco(tmp_path / "absent.json", tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: cannot be read (Is a directory).")):
        read_coco(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{'images': []}", b'{"images": [', b"\xff\xfe\x00{"],
    ids=["empty", "python", "cut", "uint8"],
)
def test_a_file_that_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.json: not a JSON file \("):
        read_coco(path, tmp_path)


@pytest.mark.parametrize(
    ("document", "actual"),
    [
        ([], "a list"),
        (None, "a NoneType"),
        ({"images": [], "annotations": []}, "images, annotations"),
        ({"images": {}, "annotations": [], "categories": []}, "images, annotations, categories"),
    ],
    ids=["list", "null", "no categories", "mapping"],
)
def test_json_that_is_not_coco_is_refused(document: object, actual: str, tmp_path: Path) -> None:
    message = message_of(tmp_path, document)
    assert f"set.json: not a COCO file, got {actual}. It needs the lists 'images', 'annotations'" in message


@pytest.mark.parametrize(
    ("key", "name"),
    [("images", "file_name"), ("annotations", "category_id"), ("categories", "name")],
)
def test_an_entry_that_lacks_a_key_is_named(key: str, name: str, tmp_path: Path) -> None:
    document = make_content()
    del document[key][1][name]
    assert f"not a COCO file: entry 1 of '{key}' lacks '{name}'." in message_of(tmp_path, document)


def test_an_entry_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    document = make_content()
    document["categories"][0] = "pit"
    assert "entry 0 of 'categories' lacks 'id', 'name'." in message_of(tmp_path, document)


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([4, 6, 0, 12], "has width 0.0 px. Boxes need width and height > 0."),
        ([4, 6, 10, -3], "has height -3.0 px. Boxes need width and height > 0."),
        ([40, 6, 10, 10], "lies outside its image: box [40, 6, 10, 10], image 40x30 px."),
        ([4, -20, 10, 20], "lies outside its image: box [4, -20, 10, 20], image 40x30 px."),
        ([4, 6, 10], "has bbox [4, 6, 10]. A box is [left, top, width, height] in pixels."),
        (["4 px", 6, 10, 2], "has bbox ['4 px', 6, 10, 2]. A box is [left, top, width, height] in pixels."),
        ({"x": 4}, "has bbox {'x': 4}. A box is [left, top, width, height] in pixels."),
        ([4, 6, float("nan"), 10], "has bbox [4, 6, nan, 10]. A box is"),
        ([4, 6, float("inf"), 10], "has bbox [4, 6, inf, 10]. A box is"),
        ([4, 6, 10**309, 10], "has bbox [4, 6, 1000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_box_is_named_with_its_image(bbox: object, problem: str, tmp_path: Path) -> None:
    document = make_content()
    document["annotations"][0]["bbox"] = bbox
    assert f"set.json: annotation 11 (image 'b.png') {problem}" in message_of(tmp_path, document)


def test_a_box_that_is_partly_outside_is_kept_and_clipped_for_training(tmp_path: Path) -> None:
    document = make_content()
    document["annotations"][0]["bbox"] = [30, 20, 20, 20]
    split = read_coco(write(tmp_path, document), tmp_path / "images")
    _, target = DetectionDataset(split, {3: 0, 7: 1}, input_format=FORM).read((0, 0))
    torch.testing.assert_close(target["boxes"], torch.tensor([[35 / 40, 25 / 30, 10 / 40, 10 / 30]]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda document: document["annotations"][0].update(category_id=4),
            "annotation 11 (image 'b.png') has category id 4, which is not in 'categories': [3, 7].",
        ),
        (
            lambda document: document["annotations"][0].update(image_id=6),
            "annotation 11 belongs to image id 6, which is not in 'images'.",
        ),
        (
            lambda document: document["images"][0].update(file_name="lost.png"),
            "image 'lost.png' (id 5) is listed but not in ",
        ),
        (
            lambda document: document["images"].append(document["images"][1]),
            "image id 2 is used 2 times. Each must be unique.",
        ),
        (
            lambda document: document["categories"].append({"id": 3, "name": "dent"}),
            "category id 3 is used 2 times. Each must be unique.",
        ),
        (
            lambda document: document["categories"].append({"id": 4, "name": "pit"}),
            "category name 'pit' is used 2 times. Each must be unique.",
        ),
        (
            lambda document: document.update(images=[], annotations=[]),
            "'images' is empty. A split needs at least one image.",
        ),
        (
            lambda document: document.update(categories=[], annotations=[]),
            "'categories' is empty. List every class with an id and a name.",
        ),
    ],
    ids=["category", "image", "absent", "image id", "category id", "name", "no images", "no categories"],
)
def test_what_does_not_fit_together_is_refused(
    change: Callable[[dict[str, Any]], object], problem: str, tmp_path: Path
) -> None:
    document = make_content()
    change(document)
    assert f"set.json: {problem}" in message_of(tmp_path, document)


def test_a_missing_image_folder_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path, make_content())
    with pytest.raises(DataError, match=r"^set\.json: the image folder .*pictures does not exist\.[^\n]*$"):
        read_coco(path, tmp_path / "pictures")


def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    document = make_content()
    document["images"][1]["file_name"] = "lost.png"
    document["annotations"][0]["bbox"] = [4, 6, 0, 0]
    document["annotations"][1]["category_id"] = 8
    lines = message_of(tmp_path, document).splitlines()
    assert len(lines) == 3
    for line, part in zip(lines, ("'lost.png' (id 2)", "has width 0.0 px", "category id 8"), strict=True):
        assert part in line


def test_problems_beyond_twenty_are_counted(tmp_path: Path) -> None:
    document = make_content()
    document["annotations"] = [{"image_id": 5, "category_id": 3, "bbox": [1, 1, 0, 1]}] * 33
    lines = message_of(tmp_path, document).splitlines()
    assert len(lines) == 21
    assert "annotation number 19 " in lines[19]
    assert lines[20] == "… and 13 more."


def test_exactly_twenty_problems_are_all_listed() -> None:
    raise_listed([])
    with pytest.raises(DataError) as caught:
        raise_listed([str(number) for number in range(20)])
    assert str(caught.value).splitlines()[-1] == "19"


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["images"][0].update(width="40 px"),
        lambda document: document["images"][0].update(id=[5]),
        lambda document: document["images"][0].update(file_name=5),
        lambda document: document["categories"][0].update(id="seven"),
        lambda document: document["annotations"][0].update(area="large"),
        lambda document: document["annotations"][0].update(iscrowd="no"),
        lambda document: document["annotations"][0].update(area=10**309),
        lambda document: document["images"][0].update(width=2**31),
        lambda document: document["images"][0].update(height=0),
        lambda document: document["images"][0].update(id=1.5),
        lambda document: document["annotations"][0].update(image_id=None),
        lambda document: document["annotations"][0].update(category_id=True),
    ],
    ids=[
        "width text",
        "id list",
        "name number",
        "category text",
        "area text",
        "crowd text",
        "area too large",
        "width too large",
        "no height",
        "id fraction",
        "image null",
        "category true",
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    document = make_content()
    change(document)
    assert "set.json" in message_of(tmp_path, document)


def test_an_area_of_null_is_computed_from_the_box(tmp_path: Path) -> None:
    document = make_content()
    for annotation in document["annotations"]:
        annotation["area"] = None
    split = read_coco(write(tmp_path, document), tmp_path / "images")
    assert split.areas.tolist() == (split.boxes_xywh[:, 2] * split.boxes_xywh[:, 3]).tolist()
