"""VOC folders as others write them, and what every wrong file is told."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deim.data.formats.split import find_problems, to_split
from deim.data.formats.voc import read_voc_set, write_voc
from deim.errors import DataError
from tests.data.small_sets import noise

BOX = "<bndbox><xmin>4</xmin><ymin>6</ymin><xmax>14.5</xmax><ymax>18</ymax></bndbox>"
OBJECT = f"<object><name>pit</name>{BOX}</object>"
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def write_set(root: Path, body: str = SIZE + OBJECT) -> Path:
    """An image of 40x30 px, a.png, in train.txt, and b.png without objects in val.txt."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, content in (("a", body), ("b", SIZE)):
        noise(ord(name)).save(root / "JPEGImages" / f"{name}.png")
        xml = f"<annotation><filename>{name}.png</filename>{content}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    return root


def test_corners_become_left_top_width_height(tmp_path: Path) -> None:
    split = to_split(read_voc_set(write_set(tmp_path)).read("train"))
    assert split.boxes_xywh.tolist() == [[4, 6, 10.5, 12]]
    assert (split.category_ids, split.class_names) == ((1,), ("pit",))
    assert split.file_names == ("a.png",)
    assert split.is_crowd.tolist() == [False]
    empty = to_split(read_voc_set(tmp_path).read("val"))
    assert (empty.class_names, empty.num_empty) == (("pit",), 1)


def test_what_is_difficult_is_neither_trained_on_nor_scored(tmp_path: Path) -> None:
    body = SIZE + OBJECT.replace("<name>", "<difficult>1</difficult><name>")
    assert to_split(read_voc_set(write_set(tmp_path, body)).read("train")).is_crowd.tolist() == [True]


def test_a_size_that_is_not_given_is_read_from_the_image(tmp_path: Path) -> None:
    split = to_split(read_voc_set(write_set(tmp_path, OBJECT)).read("train"))
    assert split.sizes_hw.tolist() == [[30, 40]]


def test_without_lists_all_annotations_are_one_split(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for name in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert read_voc_set(root).splits == ("all",)
    assert to_split(read_voc_set(root).read("all")).file_names == ("a.png", "b.png")


def test_lists_of_one_class_are_no_splits(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "ImageSets" / "Main" / "pit_train.txt").write_text("a  1\nb -1\n")
    assert read_voc_set(root).splits == ("train", "val")


def test_a_name_of_a_class_keeps_its_outer_spaces(tmp_path: Path) -> None:
    body = SIZE + "".join(OBJECT.replace("pit", name) for name in (" pit ", "pit", "\n dent\n"))
    root = write_set(tmp_path / "set", body)
    rows = ({"id": 5, "name": "pit"}, {"id": 6, "name": " pit "}, {"id": 7, "name": "dent"})
    (root / "categories.json").write_text(json.dumps(rows))
    split = to_split(read_voc_set(root).read("train"))
    assert split.box_category_ids.tolist() == [6, 5, 7]
    again = tmp_path / "again"
    again.mkdir()
    write_voc({"train": split}, {"train": ["a.png"]}, again)
    shutil.copytree(root / "JPEGImages", again / "JPEGImages")
    assert [box["category_id"] for box in read_voc_set(again).read("train").annotations] == [
        6,
        5,
        7,
    ]


@pytest.mark.parametrize("name", ["pit\x01", "pit\r", "a\nb"])
def test_a_name_with_a_control_character_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    split = replace(to_split(read_voc_set(write_set(tmp_path / "set")).read("train")), class_names=(name,))
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError) as refusal:
        write_voc({"train": split}, {"train": ["a.png"]}, tmp_path / "again")
    assert str(refusal.value) == (
        f"train.txt: category 1 has the name {name!r} with a control character, which VOC cannot "
        f"represent. Rename the category."
    )
    assert not list((tmp_path / "again").iterdir())


@pytest.mark.parametrize(("name", "lines"), [("train", "part 1\n"), ("later", "part 1\nb\n")])
def test_a_split_whose_images_are_numbered_is_no_list_of_one_class(
    name: str, lines: str, tmp_path: Path
) -> None:
    root = write_set(tmp_path)
    (root / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    assert name in read_voc_set(root).splits
    actual = read_voc_set(root).read(name).issues
    assert [(issue.rule, issue.file) for issue in actual] == [("unreadable", "Annotations/part 1.xml")]


def test_a_list_of_training_and_validation_together_is_no_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_set(tmp_path)
    path = root / "ImageSets" / "Main" / "trainval.txt"
    path.write_text("b\na\n")
    with caplog.at_level(logging.INFO, logger="deim"):
        assert read_voc_set(root).splits == ("train", "val")
    assert [record.message for record in caplog.records] == [
        f"{path}: skipped, because it repeats train and val"
    ]
    with pytest.raises(DataError, match=r"Choose one of train, val\."):
        read_voc_set(root).read("trainval")


@pytest.mark.parametrize("lines", ["a\n", "a\nb\nc\n"])
def test_a_list_called_trainval_with_other_images_is_a_split(lines: str, tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(lines)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nd\n")
    assert read_voc_set(root).splits == ("train", "val", "trainval")


@pytest.mark.parametrize(
    ("body", "rule", "message"),
    [
        ("<size>", "unreadable", "Annotations/a.xml: not an XML file ("),
        (
            SIZE + f"<object><name>dent</name>{BOX}</object>",
            "unknown_category",
            "Annotations/a.xml: object 1 has class 'dent', categories.json has pit.",
        ),
        (
            SIZE + OBJECT.replace("<xmin>4</xmin>", ""),
            "bad_box",
            "Annotations/a.xml: object 1 (class 'pit') has no xmin. bndbox needs the numbers xmin, ymin, "
            "xmax and ymax, in pixels. Correct the box, or remove the object.",
        ),
        (
            SIZE + OBJECT.replace("14.5", "left").replace("18", "nan"),
            "bad_box",
            "Annotations/a.xml: object 1 (class 'pit') has xmax 'left', ymax 'nan'. bndbox needs",
        ),
        (
            SIZE + "<object><name>pit</name></object>",
            "bad_box",
            "Annotations/a.xml: object 1 (class 'pit') has no bndbox. bndbox needs",
        ),
        (
            SIZE + OBJECT.replace("14.5", "4"),
            "zero_box",
            "Annotations/a.xml:1 (image 'a.png') has width 0.0 px",
        ),
    ],
)
def test_a_wrong_annotation_is_one_issue(body: str, rule: str, message: str, tmp_path: Path) -> None:
    root = write_set(tmp_path, body)
    (root / "categories.json").write_text('[{"id": 5, "name": "pit"}]')
    problems = [
        actual for actual in find_problems(read_voc_set(root).read("train")) if actual.rule != "empty_list"
    ]
    assert [actual.rule for actual in problems] == [rule]
    assert message in problems[0].message


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_of_two_images_of_one_name_the_annotation_names_its_own(name: str, tmp_path: Path) -> None:
    root = write_set(tmp_path)
    noise(3).save(root / "JPEGImages" / "a.bmp")
    xml = f"<annotation><filename>{name}</filename>{SIZE}</annotation>"
    (root / "Annotations" / "a.xml").write_text(xml)
    assert [image["file_name"] for image in read_voc_set(root).read("train").images] == [name]


@pytest.mark.parametrize("name", ["a.jpg", ""])
def test_two_images_of_one_name_without_a_choice_are_named(name: str, tmp_path: Path) -> None:
    root = write_set(tmp_path)
    noise(3).save(root / "JPEGImages" / "a.bmp")
    xml = f"<annotation><filename>{name}</filename>{SIZE}</annotation>"
    (root / "Annotations" / "a.xml").write_text(xml)
    actual = read_voc_set(root).read("train").issues
    assert [issue.rule for issue in actual] == ["repeated_id"]
    assert actual[0].message == (
        f"Annotations/a.xml: belongs to a.bmp and a.png, and its filename {name!r} is none of them. Name "
        f"one of them there, and rename or remove the other."
    )


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nlost\nb\n")
    (root / "JPEGImages" / "a.png").unlink()
    no_image, no_xml = find_problems(read_voc_set(root).read("train"))
    assert (no_xml.rule, no_xml.file) == ("unreadable", "Annotations/lost.xml")
    assert (no_image.rule, no_image.file) == ("missing_image", "a.png")


def test_an_annotation_file_without_image_and_list_is_named_once(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    for name, image in (("ghost", "gone.png"), ("other name", "c.png"), ("c", "c.png")):
        xml = f"<annotation><filename>{image}</filename>{SIZE}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    noise(3).save(root / "JPEGImages" / "c.png")
    (root / "Annotations" / "cut.xml").write_text("<annotation>")
    actual = read_voc_set(root).read("train").issues
    assert [(issue.rule, issue.file) for issue in actual] == [
        ("missing_image", "Annotations/cut.xml"),
        ("missing_image", "Annotations/ghost.xml"),
    ]
    assert actual[1].message == (
        "Annotations/ghost.xml: there is no image for this file in JPEGImages, and no list in ImageSets/Main "
        "names it. Add the image and list it, or remove the file."
    )
    assert read_voc_set(root).read("val").issues == ()


def test_a_wrong_list_of_categories_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "categories.json").write_text('[{"id": 5}]')
    with pytest.raises(DataError, match=r"categories\.json: not a list of categories \(KeyError\('name'\)\)"):
        read_voc_set(root).read("train")
