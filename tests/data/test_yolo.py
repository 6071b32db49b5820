"""YOLO folders as others write them, and what every wrong line is told."""

import os
from pathlib import Path

import pytest

from deim.data.formats.issues import Issue
from deim.data.formats.split import to_split
from deim.data.formats.yolo import label_path, read_yolo_set
from deim.errors import DataError
from tests.data.small_sets import noise

YAML = "train: images/train\nval: images/val\nnames: {0: pit, 1: scratch}\n"


def write_set(root: Path, *, yaml: str = YAML, lines: str = "1 0.5 0.5 0.25 0.2\n") -> Path:
    """Images of 40x30 px: a.png with a line, b.png without a text file, and c.png in val."""
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for name in names:
            noise(ord(name)).save(root / "images" / split / f"{name}.png")
    (root / "labels" / "train" / "a.txt").write_text(lines)
    (root / "data.yaml").write_text(yaml)
    return root


def issues(root: Path, split: str = "train") -> tuple[Issue, ...]:
    return read_yolo_set(root).read(split).issues


def test_fractions_become_pixels_and_numbers_ids(tmp_path: Path) -> None:
    raw = read_yolo_set(write_set(tmp_path)).read("train")
    split = to_split(raw)
    assert split.file_names == ("a.png", "b.png")
    assert split.boxes_xywh.tolist() == [[15, 12, 10, 6]]
    assert split.box_category_ids.tolist() == [1]
    assert (split.category_ids, split.class_names) == ((0, 1), ("pit", "scratch"))
    assert split.sizes_hw.tolist() == [[30, 40], [30, 40]]
    assert raw.annotations[0]["id"] == "labels/train/a.txt:1"
    assert split.num_empty == 1


def test_the_extra_key_gives_ids_to_the_names(tmp_path: Path) -> None:
    split = to_split(read_yolo_set(write_set(tmp_path, yaml=YAML + "category_ids: [9, 4]\n")).read("train"))
    assert (split.category_ids, split.class_names) == ((4, 9), ("scratch", "pit"))
    assert split.box_category_ids.tolist() == [4]


def test_an_outline_stands_for_the_box_around_it(tmp_path: Path) -> None:
    root = write_set(tmp_path, lines="0 0.25 0.2 0.5 0.1 0.5 0.6 0.3 0.5\n")
    assert to_split(read_yolo_set(root).read("train")).boxes_xywh.tolist() == [[10, 3, 10, 15]]


@pytest.mark.parametrize(
    "train",
    ["[images/train]", "train.txt", "[images/train, images/val]", "../images/train"],
    ids=["list", "file", "folders", "beside"],
)
def test_splits_are_folders_or_lists_of_images(train: str, tmp_path: Path) -> None:
    root = write_set(tmp_path, yaml=YAML.replace("images/train", train))
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n\n")
    split = to_split(read_yolo_set(root).read("train"))
    assert [Path(name).name for name in split.file_names][:2] == ["a.png", "b.png"]
    assert split.boxes_xywh.tolist() == [[15, 12, 10, 6]]
    assert all(split.image_path(index).is_file() for index in range(len(split)))


def test_a_folder_with_names_alone_is_enough(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("pit\nscratch\n\n")
    described = read_yolo_set(root)
    assert (list(described.splits), described.names) == (["train", "val"], ("pit", "scratch"))
    assert to_split(read_yolo_set(root).read("train")).boxes_xywh.tolist() == [[15, 12, 10, 6]]


def test_boxes_stand_where_labels_take_the_place_of_images() -> None:
    assert label_path(Path("images/set/images/a.b.png")) == Path("images/set/labels/a.b.txt")
    assert label_path(Path("set/a.png")) == Path("set/a.txt")


@pytest.mark.parametrize(
    ("lines", "rule", "message"),
    [
        (
            "0 0.5 0.5 0.2\n",
            "unreadable",
            "labels/train/a.txt: line 1 is no box, got '0 0.5 0.5 0.2'. A line is class, center x, ",
        ),
        ("0 0.5 0.5 0.2 x\n", "unreadable", "line 1 is no box, got '0 0.5 0.5 0.2 x'."),
        ("0 0.5 0.5 0.2 nan\n", "unreadable", "line 1 is no box, got '0 0.5 0.5 0.2 nan'."),
        ("0.5 0.5 0.5 0.2 0.2\n", "unreadable", "line 1 is no box, got '0.5 0.5"),
        ("\n2 0.5 0.5 0.2 0.2\n", "unknown_category", "line 2 has class 2, data.yaml names 2 classes"),
        ("-1 0.5 0.5 0.2 0.2\n", "unknown_category", "line 1 has class -1, data.yaml names 2 classes"),
    ],
)
def test_a_wrong_line_is_one_finding_and_stops_training(
    lines: str, rule: str, message: str, tmp_path: Path
) -> None:
    root = write_set(tmp_path, lines=lines + "0 0.5 0.5 0.2 0.2\n")
    raw = read_yolo_set(root).read("train")
    (issue,) = raw.issues
    assert issue.rule == rule
    assert issue.annotation == f"labels/train/a.txt:{lines.count(chr(10))}"
    assert message in issue.message
    assert len(raw.annotations) == 1
    with pytest.raises(DataError) as caught:
        to_split(raw)
    assert str(caught.value) == issue.message


def test_bytes_that_are_no_text_are_one_issue(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe0")
    (issue,) = issues(root)
    assert (issue.rule, issue.file) == ("unreadable", "labels/train/a.txt")


def test_a_split_without_any_text_file_is_no_split_of_good_parts(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (issue,) = issues(root, "val")
    assert issue.rule == "unreadable"
    assert "data.yaml: none of the 1 images of val has a text file of boxes, such as labels/val/c.txt." in (
        issue.message
    )
    (root / "labels" / "val" / "c.txt").touch()
    assert to_split(read_yolo_set(root).read("val")).num_empty == 1


def test_boxes_without_an_image_and_damaged_images_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "labels" / "train" / "z.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "images" / "train" / "b.png").write_bytes(b"no image")
    damaged, lost = issues(root)
    assert (damaged.rule, damaged.file) == ("corrupt_image", "b.png")
    assert (lost.rule, lost.file) == ("missing_image", "labels/train/z.txt")
    assert "there is no image for these boxes" in lost.message


def test_two_images_of_one_text_file_are_named(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    noise(9).save(root / "images" / "train" / "a.bmp")
    (issue,) = issues(root)
    assert (issue.rule, issue.file) == ("repeated_id", "a.png")
    assert "its boxes are in labels/train/a.txt, which belongs to another image" in issue.message


def test_the_list_of_classes_that_labeling_tools_write_is_no_label(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "labels" / "train" / "classes.txt").write_text("pit\nscratch\n")
    assert issues(root) == ()


def test_a_text_file_in_capitals_is_named(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    (root / "labels" / "train" / "b.TXT").write_text("0 0.5 0.5 0.2 0.2\n")
    (issue,) = issues(root)
    assert (issue.rule, issue.file) == ("missing_image", "labels/train/b.TXT")
    assert issue.message.endswith("boxes are read from b.txt. Rename the file.")


def test_a_split_that_is_not_there_leaves_the_others_readable(tmp_path: Path) -> None:
    root = write_set(tmp_path, yaml=YAML + "test: images/test\n")
    assert issues(root) == ()
    with pytest.raises(DataError, match=r"test: there is no .*; or remove the line if there is"):
        read_yolo_set(root).read("test")


def test_valid_is_another_name_of_val(tmp_path: Path) -> None:
    root = write_set(tmp_path, yaml=YAML.replace("val:", "valid:"))
    assert len(read_yolo_set(root).read("val").images) == 1


def test_points_behind_a_box_are_no_outline(tmp_path: Path) -> None:
    line = "0 .5 .5 .2 .2 .45 .45 2 .55 .55 2\n"
    root = write_set(tmp_path, yaml=YAML + "kpt_shape: [2, 3]\n", lines=line)
    assert to_split(read_yolo_set(root).read("train")).boxes_xywh.tolist() == [[16, 12, 8, 6]]


def test_an_image_that_a_list_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    root = write_set(tmp_path, yaml=YAML.replace("images/train", "train.txt"))
    (root / "train.txt").write_text("images/train/a.png\nimages/train/lost.png\n")
    (issue,) = issues(root)
    assert (issue.rule, issue.file) == ("missing_image", "images/train/lost.png")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a", r"data\.yaml: not valid YAML: "),
        ("train: images/train\n", r"data\.yaml: not a YOLO description, got train\. It needs 'names'"),
        ("names: {1: a, 2: b}\ntrain: images/train\n", r"data\.yaml: names: got \{1: 'a', 2: 'b'\}\."),
        ("names: [yes, b]\ntrain: images/train\n", r"data\.yaml: names: got \[True, 'b'\]"),
        ("names: [a]\nnc: 2\ntrain: images/train\n", r"data\.yaml: nc: got 2, 'names' has 1 names\."),
        ("names: [a]\ncategory_ids: [1, 2]\ntrain: images/train\n", r"category_ids: got \[1, 2\]\."),
        ("names: [a]\n", r"data\.yaml: names no split\."),
        ("names: [a]\ntrain: images/lost\n", r"data\.yaml: train: there is no .*images/lost\."),
    ],
)
def test_a_wrong_description_is_refused(yaml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_yolo_set(write_set(tmp_path, yaml=yaml)).read("train")


def test_a_folder_that_is_no_yolo_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no YOLO dataset there\. It needs a data\.yaml"):
        read_yolo_set(tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pipe", "not a regular file"),
        ("folder", "cannot be read"),
        ("link to nowhere", "a link to a file that is not there"),
    ],
)
def test_boxes_that_cannot_be_read_are_not_taken_for_none(kind: str, reason: str, tmp_path: Path) -> None:
    write_set(tmp_path)
    labels = next((tmp_path / "labels").rglob("*.txt"))
    labels.unlink()
    match kind:
        case "pipe":
            os.mkfifo(labels)
        case "folder":
            labels.mkdir()
        case _:
            labels.symlink_to("nowhere.txt")
    raw = read_yolo_set(tmp_path).read(labels.parent.name)
    assert raw.issues[0].rule == "unreadable"
    assert reason in raw.issues[0].message
