"""Datasets as annotation tools export them: found, read to the right boxes, and accounted for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask

from deim.config.schema import Config
from deim.curation.check import CheckReport, check_dataset, read_for_check
from deim.data.formats.names import name_splits
from deim.data.formats.read import find_dataset, read_all, to_splits
from deim.data.formats.split import CocoSplit
from deim.data.images.folder import list_images
from deim.data.images.input_format import InputFormat
from deim.data.splits import build_splits
from deim.errors import DataError
from tests.data.small_sets import noise

BOX = [4, 6, 10, 12]
YOLO_LINE = "0 0.225 0.4 0.25 0.4\n"
VOC_BOX = "<bndbox><xmin>4</xmin><ymin>6</ymin><xmax>14</xmax><ymax>18</ymax></bndbox>"
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file, or an image of 40x30 px where no content is given, below a dataset's folder."""

    def write(name: str, content: object = None, *, encoding: str = "utf-8") -> Path:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            noise(len(name) + sum(map(ord, name))).save(path)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding=encoding)
        return tmp_path / "set"

    return write


def coco(*names: str, **changes: Any) -> dict[str, Any]:
    """COCO content with a box on each image."""
    images = [
        {"id": number, "file_name": name, "width": 40, "height": 30} for number, name in enumerate(names, 1)
    ]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": BOX, "iscrowd": 0}
        for number in range(1, len(names) + 1)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "dent"}],
        **changes,
    }


def xml(name: str, body: str = f"<object><name>dent</name>{VOC_BOX}</object>") -> str:
    size = "<size><width>40</width><height>30</height></size>"
    return f"<annotation><filename>{name}</filename>{size}{body}</annotation>"


def read(root: Path) -> dict[str, CocoSplit]:
    return to_splits(read_all(find_dataset(root)))


def check(root: Path, **options: Any) -> CheckReport:
    raws, unread = read_for_check(find_dataset(root))
    return check_dataset(raws, unread=unread, input_format=InputFormat(size_hw=(30, 40)), **options)


def rules(root: Path) -> list[str]:
    return [issue.rule for issue in check(root).issues]


def assert_two_splits(files: dict[str, str | None], put: Put) -> None:
    """Write a dataset and expect a.png in train and b.png in val, each with `BOX`."""
    for name, content in files.items():
        root = put(name, content)
    splits = read(root)
    assert list(splits) == ["train", "val"]
    for split, name in zip(splits.values(), ("a.png", "b.png"), strict=True):
        assert split.image_path(0).name == name
        assert split.boxes_xywh.tolist() == [BOX]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("instances_Train", "instances_Validation"), {"train": 0, "val": 1}),
        (("TRAIN", "valid", "Testing"), {"train": 0, "val": 1, "test": 2}),
        (("train_2024-05", "val_2024-05"), {"train": 0, "val": 1}),
        (("train", "train_small"), {"train": 0, "train_small": 1}),
        (("train_a", "train_b"), {"train_a": 0, "train_b": 1}),
        (("val", "valid"), {"val": 0, "valid": 1}),
        (("instances_default",), {"all": 0}),
        (("lot7",), {"lot7": 0}),
    ],
)
def test_names_of_splits_are_matched_loosely_and_never_by_guess(
    names: tuple[str, ...], expected: dict[str, int]
) -> None:
    assert name_splits(names) == {split: names[place] for split, place in expected.items()}


@pytest.mark.parametrize(
    "files",
    [
        {
            "annotations/instances_Train.json": "images/Train/",
            "annotations/instances_Validation.json": "images/V/",
        },
        {"train/_annotations.coco.json": "train/", "valid/_annotations.coco.json": "valid/"},
        {"Train/labels.json": "Train/data/", "validation/labels.json": "validation/data/"},
        {"train.json": "frames/", "val.json": "frames/"},
    ],
    ids=["cvat", "roboflow", "fiftyone", "beside"],
)
def test_coco_in_its_usual_places_is_found(files: dict[str, str], put: Put) -> None:
    for number, (annotations, folder) in enumerate(files.items()):
        put(f"{folder}p{number}.png")
        root = put(annotations, coco(f"p{number}.png"))
    splits = read(root)
    assert list(splits) == ["train", "val"]
    for split in splits.values():
        assert split.boxes_xywh.tolist() == [BOX]
        assert split.image_path(0).is_file()
    assert rules(root) == []


@pytest.mark.parametrize(
    "name",
    [
        "images/a b.png",
        "images\\a b.png",
        "/data/local-files/?d=raw/a%20b.png",
        "..\\..\\media\\upload\\7\\a b.png",
        "C:\\Users\\me\\a b.png",
        "file:///home/me/lot/a%20b.png",
    ],
)
def test_an_image_is_found_under_the_path_of_another_machine(name: str, put: Put) -> None:
    put("images/a b.png")
    split = read(put("result.json", coco(name)))["result"]
    assert split.image_path(0).name == "a b.png"
    assert split.image_path(0).is_file()


def test_names_in_another_unicode_form_are_found(put: Put) -> None:
    put("images/Gru\u0308n.png")
    assert read(put("train.json", coco("Gr\u00fcn.png")))["train"].image_path(0).is_file()


def test_the_longest_end_of_a_path_decides_and_a_tie_is_an_error(put: Put) -> None:
    put("images/lot1/0.png")
    put("images/lot2/0.png")
    root = put("train.json", coco("raw/lot2/0.png"))
    assert read(root)["train"].file_names == ("lot2/0.png",)
    assert "1 of 1 images were found under another path in" in check(root).notes[0]
    root = put("train.json", coco("0.png"))
    issues = {issue.rule: issue.message for issue in check(root).issues}
    assert "train.json: image '0.png' (id 1) may be lot1/0.png or lot2/0.png in " in issues["ambiguous_image"]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "nul\0.png", ""])
def test_a_name_leads_to_no_file_outside_the_folder(name: str, put: Put) -> None:
    root = put("set/images/a.png").parent / "set" / "set"
    put("secret.png")
    put("set/train.json", coco("a.png", name))
    with pytest.raises(DataError, match=r"is listed but not in|It must be text that is not empty"):
        read(root)


@pytest.mark.parametrize(
    "files",
    [
        {
            "obj.data": "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
            "obj.names": "dent\n",
            "train.txt": "data/obj_train_data/a.png\n",
            "valid.txt": "data/obj_valid_data/b.png\n",
            "obj_train_data/a.png": None,
            "obj_train_data/a.txt": YOLO_LINE,
            "obj_valid_data/b.png": None,
            "obj_valid_data/b.txt": YOLO_LINE,
        },
        {
            "classes.txt": "dent\n",
            "train/a.png": None,
            "train/a.txt": YOLO_LINE,
            "val/b.png": None,
            "val/b.txt": YOLO_LINE,
        },
        {
            "parts.yaml": "path: /content/parts\ntrain: train/images\nval: valid/images\nnames: [dent]\n",
            "train/images/a.png": None,
            "train/labels/a.txt": YOLO_LINE,
            "valid/images/b.png": None,
            "valid/labels/b.txt": YOLO_LINE,
        },
        {
            "data.yaml": "train: /content/x/images/train\nvalidation: /content/x/images/val\nnames: [dent]\n",
            "images/train/a.png": None,
            "labels/train/a.txt": YOLO_LINE,
            "images/val/b.png": None,
            "labels/val/b.txt": YOLO_LINE,
        },
    ],
    ids=["darknet", "beside", "yaml of another machine", "absolute"],
)
def test_yolo_of_any_origin_is_found(files: dict[str, str | None], put: Put) -> None:
    assert_two_splits(files, put)


def test_a_flat_folder_is_one_split_and_training_says_how_to_divide_it(
    put: Put, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    put("a.png")
    put("a.txt", YOLO_LINE)
    root = put("classes.txt", "dent\n")
    assert list(read(root)) == ["all"]
    with pytest.raises(DataError, match=r"split 'train': .*set has only all\. To divide .*deim data split"):
        build_splits(tiny_config(root, tmp_path / "run").data)


def test_a_test_folder_that_is_not_there_is_a_warning(put: Put) -> None:
    for split in ("train", "val"):
        put(f"images/{split}/{split}.png")
        put(f"labels/{split}/{split}.txt", YOLO_LINE)
    root = put("data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [dent]\n")
    (issue,) = check(root).issues
    assert (issue.rule, issue.severity, issue.split) == ("missing_split", "warning", "test")
    assert "test: there is no " in issue.message


@pytest.mark.parametrize(
    "files",
    [
        {"train/a.png": None, "train/a.xml": xml("a.png"), "valid/b.png": None, "valid/b.xml": xml("b.png")},
        {
            "annotations/a.xml": xml("a.png"),
            "annotations/b.xml": xml("b.png"),
            "images/a.png": None,
            "images/b.png": None,
            "ImageSets/Main/Train.txt": "a\n",
            "ImageSets/Main/val.txt": "b.png\n",
        },
        {
            "Annotations/a.xml": xml("a.png"),
            "Annotations/b.xml": xml("b.png"),
            "JPEGImages/a.png": None,
            "JPEGImages/b.png": None,
            "ImageSets/Main/dent_train.txt": "a  1\n",
            "ImageSets/Main/dent_val.txt": "b  1\n",
        },
    ],
    ids=["beside", "images", "class lists"],
)
def test_voc_in_its_usual_places_is_found(files: dict[str, str | None], put: Put) -> None:
    assert_two_splits(files, put)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("<annotation>", '<annotation xmlns="urn:example">'),
        lambda text: text.replace("object>", "Object>").replace("bndbox>", "BndBox>"),
        lambda text: text.replace("<annotation>", '<v:annotation xmlns:v="urn:x">').replace(
            "</annot", "</v:annot"
        ),
    ],
    ids=["namespace", "capitals", "prefix"],
)
def test_tags_with_namespace_or_capitals_lose_no_object(change: Callable[[str], str], put: Put) -> None:
    put("a.png")
    assert read(put("a.xml", change(xml("a.png"))))["all"].boxes_xywh.tolist() == [BOX]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le-bom"])
def test_text_files_of_windows_are_read(encoding: str, put: Put) -> None:
    put("images/a.png")
    content = json.dumps(coco("a.png"))
    if encoding == "utf-16-le-bom":
        content, encoding = "\ufeff" + content, "utf-16-le"
    assert len(read(put("train.json", content, encoding=encoding))["train"]) == 1


POLYGON = [[4, 6, 14, 6, 14, 18, 4, 18]]
COUNTS = [126, 12, *[18, 12] * 9, 792]
"""Run lengths of the box on an image of 40x30 px, column by column."""


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [{"id": "a", "file_name": "a.png"}], "annotation": {"image_id": "a"}},
        {"images": [{"id": "1", "file_name": "a.png", "width": "40", "height": 30.0}]},
        {"images": [{"id": 1.0, "file_name": "a.png", "width": None}], "annotation": {"category_id": "1.0"}},
        {"annotation": {"iscrowd": None, "area": "120"}},
        {"annotation": {"bbox": ["4", "6", 10.0, "12.0"]}},
        {"annotation": {"bbox": None, "segmentation": POLYGON}},
        {"annotation": {"bbox": [], "segmentation": POLYGON[0]}},
        {"annotation": {"bbox": None, "segmentation": {"size": [30, 40], "counts": COUNTS}}},
        {
            "annotation": {
                "bbox": None,
                "segmentation": {
                    "size": [30, 40],
                    "counts": coco_mask.frPyObjects({"size": [30, 40], "counts": COUNTS}, 30, 40)[
                        "counts"
                    ].decode(),
                },
            }
        },
    ],
    ids=["text id", "text size", "no size", "null", "text box", "polygon", "flat polygon", "runs", "packed"],
)
def test_values_that_can_only_mean_one_thing_are_read(changes: dict[str, Any], put: Put) -> None:
    put("images/a.png")
    content = coco("a.png")
    content["images"] = changes.get("images", content["images"])
    content["annotations"][0].update(changes.get("annotation", {}))
    split = read(put("train.json", content))["train"]
    assert split.boxes_xywh.tolist() == [BOX]
    assert split.sizes_hw.tolist() == [[30, 40]]
    assert split.image_ids.tolist() == [1]
    assert not split.is_crowd.any()


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [["x"] * 6],
        "text",
        {"size": [30, 40]},
        {"size": [40, 30], "counts": COUNTS},
        {"size": [30, 40], "counts": [-5, 1205]},
        {"size": [10**9, 10**9], "counts": "a"},
        {"size": None, "counts": [1]},
    ],
    ids=str,
)
def test_an_annotation_without_any_outline_is_one_issue(segmentation: object, put: Put) -> None:
    put("images/a.png")
    content = coco("a.png", "a.png")
    content["images"].pop()
    content["annotations"][1].update(image_id=1, bbox=None, segmentation=segmentation)
    (issue,) = check(put("train.json", content)).issues
    assert (issue.rule, issue.annotation) == ("bad_box", "2")
    assert (
        "annotation 2 has no bbox, and its segmentation is no polygon or mask of its image" in issue.message
    )


def test_a_category_that_only_groups_others_is_dropped_with_a_line(put: Put) -> None:
    put("images/a.png")
    categories = [{"id": 0, "name": "Parts-x7"}, {"id": 1, "name": "dent", "supercategory": "Parts-x7"}]
    root = put("train.json", coco("a.png", categories=categories))
    assert read(root)["train"].class_names == ("dent",)
    assert check(root).notes == (
        "train: category 'Parts-x7' is dropped: it is the supercategory of others and has no box",
    )
    content = coco("a.png", categories=categories)
    content["annotations"][0]["category_id"] = 0
    assert read(put("train.json", content))["train"].class_names == ("Parts-x7", "dent")


@pytest.mark.parametrize("is_val", [False, True])
def test_a_split_of_crowds_alone_is_an_error_in_check_and_training(
    is_val: bool, put: Put, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    for name in ("a", "b"):
        put(f"images/{name}.png")
    contents = {"train": coco("a.png"), "val": coco("b.png")}
    spoiled = "val" if is_val else "train"
    contents[spoiled]["annotations"][0]["iscrowd"] = 1
    for split, content in contents.items():
        root = put(f"annotations/{split}.json", content)
    message = f"{spoiled}.json: all 1 boxes are marked as crowd regions"
    (issue,) = [issue for issue in check(root).issues if issue.rule == "no_trainable_box"]
    assert message in issue.message
    with pytest.raises(DataError, match=r"data\.crowd_as_objects=true"):
        build_splits(tiny_config(root, tmp_path / "run").data)
    splits = build_splits(tiny_config(root, tmp_path / "run", "data.crowd_as_objects=true").data)
    assert [split.count_boxes().trainable for split in (splits.train, splits.val)] == [1, 1]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fractions_where_pixels_are_meant_are_an_error(scale: float, put: Put) -> None:
    put("images/a.png")
    content = coco("a.png")
    content["annotations"][0]["bbox"] = [0.1 * scale, 0.2, 0.25, 0.4 * scale]
    assert "fraction_box" in rules(put("train.json", content))
    body = "<object><name>dent</name><bndbox><xmin>0.1</xmin><ymin>0.2</ymin><xmax>0.5</xmax><ymax>1</ymax>"
    put("voc/a.png")
    root = put("voc/a.xml", xml("a.png", f"{body}</bndbox></object>")) / "voc"
    assert "fraction_box" in rules(root)


@pytest.mark.parametrize(
    "names", [("Crack", "crack"), ("crack", "crack "), ("caf\u00e9", "cafe\u0301"), ("a  b", "a b")]
)
def test_classes_that_look_alike_are_named(names: tuple[str, str], put: Put) -> None:
    put("images/a.png")
    content = coco("a.png", categories=[{"id": number, "name": name} for number, name in enumerate(names, 1)])
    messages = [
        issue.message for issue in check(put("x.json", content)).issues if issue.rule == "similar_classes"
    ]
    assert len(messages) == 1
    assert all(repr(name) in messages[0] for name in names)


def test_more_boxes_than_an_image_may_have_detections_are_a_warning(put: Put) -> None:
    put("images/a.png")
    content = coco("a.png")
    content["annotations"] = [
        {"image_id": 1, "category_id": 1, "bbox": [number % 30, number // 30, 9, 9]} for number in range(101)
    ]
    assert rules(put("lot.json", content)) == ["many_boxes"]
    del content["annotations"][-1]
    assert rules(put("lot.json", content)) == []


def test_the_account_adds_up_in_check_and_training(put: Put) -> None:
    put("images/a.png")
    put("images/b.png")
    content = coco("a.png", "b.png")
    content["annotations"] += [
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [20, 6, 9, 9], "iscrowd": 1},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [20, 6, 0, 9]},
        {"id": 5, "image_id": 2, "category_id": 1, "bbox": None},
    ]
    counts = check(put("train.json", content)).splits["train"].counts
    assert counts.describe() == (
        "2 images (0 without boxes), 5 boxes read, 1 crowd region, 1 dropped (bad_box), "
        "1 dropped (zero_box), 2 trainable"
    )
    content["annotations"] = content["annotations"][:3]
    split = read(put("train.json", content))["train"]
    assert split.count_boxes().describe() == (
        "2 images (0 without boxes), 3 boxes read, 1 crowd region, 2 trainable"
    )


@pytest.mark.parametrize("name", ["images/._a.png", "images/.thumbs/b.png", "__MACOSX/images/a.png"])
def test_hidden_files_are_no_images(name: str, put: Put) -> None:
    put("images/a.png")
    put("train.json", coco("a.png"))
    assert rules(put(name, "not an image")) == []


def test_an_archive_with_one_folder_is_looked_into(put: Put) -> None:
    put("export/images/a.png")
    root = put("export/annotations/train.json", coco("a.png"))
    assert read(root)["train"].file_names == ("a.png",)


def test_boxes_without_names_of_classes_say_what_to_add(put: Put) -> None:
    put("a.png")
    with pytest.raises(DataError, match=r"without the names of their classes: add classes\.txt"):
        read(put("a.txt", YOLO_LINE))


@pytest.mark.parametrize("line", ["0 20 15 10 12\n", "0 0.1 0.1 30 0.1 30 20 0.1 20\n"])
def test_pixels_where_fractions_are_meant_are_an_error(line: str, put: Put) -> None:
    put("a.png")
    put("classes.txt", "dent\n")
    (issue,) = check(put("a.txt", line)).issues[:1]
    assert (issue.rule, issue.annotation) == ("bad_box", "a.txt:1")
    assert "where a fraction of the image is meant" in issue.message


def test_keys_of_splits_in_capitals_are_read(put: Put) -> None:
    for split, name in (("Train", "a"), ("Validation", "b")):
        put(f"images/{split}/{name}.png")
        put(f"labels/{split}/{name}.txt", YOLO_LINE)
        put(f"{split}.txt", f"data/images/{split}/{name}.png\n")
    root = put("data.yaml", "Train: Train.txt\nValidation: Validation.txt\npath: .\nnames: {0: dent}\n")
    assert [list(split.file_names) for split in read(root).values()] == [
        ["images/Train/a.png"],
        ["images/Validation/b.png"],
    ]


def test_a_box_of_an_unknown_image_never_moves_to_another(put: Put) -> None:
    content = coco("a.png", "b.png")
    for name, image in zip("ab", content["images"], strict=True):
        put(f"images/{name}.png")
        image["id"] = name
    content["annotations"][0]["image_id"] = "a"
    (issue,) = check(put("train.json", content)).issues
    assert issue.rule == "unknown_image"
    assert "belongs to image id 2, which is not in 'images'" in issue.message


@pytest.mark.parametrize("ids", [("1_2", "12"), ("01", "1"), ("1e2", "100")])
def test_text_ids_that_differ_stay_different(ids: tuple[str, str], put: Put) -> None:
    content = coco("a.png", "b.png")
    for name, text, image, row in zip("ab", ids, content["images"], content["annotations"], strict=True):
        put(f"images/{name}.png")
        image["id"] = row["image_id"] = text
    assert read(put("train.json", content))["train"].image_ids.tolist() == [1, 2]


def test_one_file_under_two_ids_is_an_error(put: Put) -> None:
    put("images/a.png")
    issues = check(put("x.json", coco("a.png", "./a.png"))).issues
    (issue,) = [issue for issue in issues if issue.rule == "repeated_id"]
    assert "image file 'a.png' is used 2 times" in issue.message


@pytest.mark.parametrize("tag", ['<annotation verified="yes">', '<?xml version="1.0"?>\n<annotation >'])
def test_a_long_annotation_file_beside_its_image_is_found(tag: str, put: Put) -> None:
    put("a.png")
    objects = f"<object><name>dent</name>{VOC_BOX}</object>" * 60
    root = put("a.xml", xml("a.png", objects).replace("<annotation>", tag))
    assert len(read(root)["all"].boxes_xywh) == 60


@pytest.mark.parametrize(("key", "given"), [("test", "test/images"), ("val", "valid/images")])
def test_a_folder_of_one_split_is_never_taken_for_another(key: str, given: str, put: Put) -> None:
    for split in ("train", "val"):
        put(f"images/{split}/{split}.png")
        put(f"labels/{split}/{split}.txt", YOLO_LINE)
    content = {"train": "images/train", "val": "images/val", key: given}
    root = put(
        "data.yaml", "names: [dent]\n" + "".join(f"{name}: {path}\n" for name, path in content.items())
    )
    with pytest.raises(DataError, match=rf"{key}: there is no .*{given}"):
        find_dataset(root).read(key)


@pytest.mark.parametrize("size", ["<width>1e30</width>", "<width>-4</width>", "<width>inf</width>"])
def test_an_impossible_width_in_voc_is_read_from_the_image(size: str, put: Put) -> None:
    put("a.png")
    root = put("a.xml", xml("a.png").replace("<width>40</width>", size))
    assert read(root)["all"].sizes_hw.tolist() == [[30, 40]]


@pytest.mark.parametrize("number", ["Infinity", "99999999999999999999", "1.9", "null"])
def test_impossible_category_ids_are_named(number: str, put: Put) -> None:
    put("a.png")
    put("a.xml", xml("a.png"))
    root = put("categories.json", f'[{{"id": {number}, "name": "dent"}}]')
    with pytest.raises(DataError, match=r"categories\.json: not a list of categories"):
        read(root)


def test_a_link_to_the_folder_itself_repeats_no_image(put: Put) -> None:
    root = put("a.png")
    (root / "loop").symlink_to(root)
    assert list_images(root) == ["a.png"]
