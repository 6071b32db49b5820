"""The check of a dataset: one thing spoiled gives one issue, which names file and annotation."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from deim.config.schema import Config
from deim.curation.check import (
    MAX_SHOWN,
    CheckReport,
    check_before_run,
    check_dataset,
    describe_check,
    read_for_check,
)
from deim.curation.stats import at_input_size
from deim.data.formats.issues import ERRORS, WARNINGS
from deim.data.formats.read import find_dataset
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.tiling import TilesOptions
from deim.data.splits import read_split
from deim.errors import DataError
from deim.records import to_json
from tests.data.small_sets import (
    HEIGHT,
    WIDTH,
    make_contents,
    noise,
    write_contents,
    write_images,
    write_small_set,
)

Contents = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Spoilt:
    rule: str
    change: Callable[[Contents, Path], object]
    """Changes the trees before they are written, or the files in the folder of images."""
    split: str
    file: str
    annotation: str | None
    message: str
    is_quick: bool = True
    """Whether the form before training finds it as well."""


def set_box(*box: object) -> Callable[[Contents, Path], object]:
    return lambda contents, images: contents["train"]["annotations"][0].update(bbox=list(box))


def cut_in_half(contents: Contents, images: Path) -> None:
    content = (images / "t1.png").read_bytes()
    (images / "t1.png").write_bytes(content[: len(content) // 2])


def save_brighter(source: str, target: str) -> Callable[[Contents, Path], object]:
    def change(contents: Contents, images: Path) -> None:
        with Image.open(images / source) as image:
            ImageEnhance.Brightness(image).enhance(1.1).save(images / target)

    return change


def turn_by_exif(contents: Contents, images: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    noise(99, HEIGHT, WIDTH).save(images / "t1.png", exif=exif)


def drop_class(contents: Contents, images: Path) -> None:
    kept = [row for row in contents["val"]["annotations"] if row["category_id"] != 40]
    contents["val"]["annotations"] = kept


def empty_split(contents: Contents, images: Path) -> None:
    contents["val"].update(images=[], annotations=[])
    for name in ("v0.png", "v1.png"):
        (images / name).unlink()


CASES = [
    Spoilt(
        "unreadable",
        lambda contents, images: contents["val"].pop("images"),
        "val",
        "val",
        None,
        "val.json: not a COCO file, got annotations, categories.",
    ),
    Spoilt("empty_list", empty_split, "val", "val.json", None, "val.json: 'images' is empty."),
    Spoilt(
        "repeated_id",
        lambda contents, images: contents["val"]["categories"].append({"id": 41, "name": "pit"}),
        "val",
        "val.json",
        None,
        "val.json: category name 'pit' is used 2 times.",
    ),
    Spoilt(
        "missing_image",
        lambda contents, images: (images / "t2.png").unlink(),
        "train",
        "t2.png",
        None,
        "train.json: image 't2.png' (id 52) is listed but not in ",
    ),
    Spoilt(
        "corrupt_image",
        lambda contents, images: (images / "t1.png").write_bytes(b"no image"),
        "train",
        "t1.png",
        None,
        "t1.png: the image is damaged or not an image (",
    ),
    Spoilt(
        "truncated_image",
        cut_in_half,
        "train",
        "t1.png",
        None,
        "images/t1.png: the image is damaged or not an image (",
    ),
    Spoilt(
        "size_differs",
        lambda contents, images: contents["val"]["images"][1].update(width=WIDTH + 5),
        "val",
        "v1.png",
        None,
        "val.json: image 'v1.png' is listed as 45x30 px, the upright file has 40x30 px.",
    ),
    Spoilt(
        "bad_box",
        set_box(1, 2, 3),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') has bbox [1, 2, 3].",
    ),
    Spoilt(
        "zero_box",
        set_box(1, 2, 0, 9),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') has width 0.0 px.",
    ),
    Spoilt(
        "negative_box",
        set_box(1, 2, 9, -3),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') has height -3.0 px.",
    ),
    Spoilt(
        "outside_box",
        set_box(60, 2, 9, 9),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') lies outside its image: box [60, 2, 9, 9]",
    ),
    Spoilt(
        "unknown_category",
        lambda contents, images: contents["train"]["annotations"][1].update(category_id=9),
        "train",
        "t0.png",
        "12",
        "train.json: annotation 12 (image 't0.png') has category id 9, which is not in 'categories'",
    ),
    Spoilt(
        "unknown_image",
        lambda contents, images: contents["train"]["annotations"][1].update(image_id=9),
        "train",
        "train.json",
        "12",
        "train.json: annotation 12 belongs to image id 9, which is not in 'images'.",
    ),
    Spoilt(
        "class_not_trained",
        lambda contents, images: contents["val"]["categories"].append({"id": 41, "name": "dent"}),
        "val",
        "val.json",
        None,
        "val.json: class 'dent' of split val is not in train, which has scratch, pit, vein.",
    ),
    Spoilt(
        "duplicate_across",
        lambda contents, images: shutil.copy(images / "t1.png", images / "v1.png"),
        "val",
        "v1.png",
        None,
        "val.json: image 'v1.png' (val) has the same bytes as 't1.png' (train).",
    ),
    Spoilt(
        "near_duplicate_across",
        save_brighter("t1.png", "v1.png"),
        "val",
        "v1.png",
        None,
        "val.json: image 'v1.png' (val) has the same content as 't1.png' (train).",
        is_quick=False,
    ),
    Spoilt(
        "unlisted_image",
        lambda contents, images: noise(77).save(images / "w.png"),
        "train, val",
        "w.png",
        None,
        "images: image 'w.png' is in no split (train, val).",
    ),
    Spoilt(
        "exif_rotation",
        turn_by_exif,
        "train",
        "t1.png",
        None,
        "train.json: image 't1.png' is rotated by its EXIF data (orientation 6).",
    ),
    Spoilt(
        "overhanging_box",
        set_box(1, 25, 10, 9),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') reaches 4.0 px beyond its image: box [1, 25, 10, 9]",
    ),
    Spoilt(
        "repeated_annotation",
        lambda contents, images: contents["train"]["annotations"][3].update(id=11),
        "train",
        "train.json",
        None,
        "train.json: annotation id 11 is used 2 times.",
    ),
    Spoilt(
        "duplicate_box",
        lambda contents, images: contents["train"]["annotations"].append(
            {**contents["train"]["annotations"][0], "id": 90}
        ),
        "train",
        "t0.png",
        "90",
        "train.json: annotation 90 (image 't0.png') has the same box as annotation 11.",
    ),
    Spoilt(
        "small_box",
        set_box(1, 2, 9, 3.5),
        "train",
        "t0.png",
        "11",
        "train.json: annotation 11 (image 't0.png') is 9.0x3.5 px at the training size of 40x30.",
    ),
    Spoilt(
        "class_without_boxes",
        drop_class,
        "val",
        "val.json",
        None,
        "val.json: class 'vein' has no box in val, so it cannot be evaluated (2 in train, 0 in val).",
    ),
    Spoilt(
        "duplicate_within",
        lambda contents, images: shutil.copy(images / "t1.png", images / "t2.png"),
        "train",
        "t2.png",
        None,
        "train.json: image 't2.png' (train) has the same bytes as 't1.png' (train).",
    ),
    Spoilt(
        "near_duplicate_within",
        save_brighter("t1.png", "t2.png"),
        "train",
        "t2.png",
        None,
        "train.json: image 't2.png' (train) has the same content as 't1.png' (train).",
        is_quick=False,
    ),
]


def check(
    root: Path,
    *,
    input_size_hw: tuple[int, int] = (HEIGHT, WIDTH),
    resize: Any = "stretch",
    tile_size: int | None = None,
    **options: Any,
) -> CheckReport:
    raws, unread = read_for_check(find_dataset(root))
    tiles = None if tile_size is None else TilesOptions(size=tile_size)
    form = InputFormat(size_hw=input_size_hw, resize=resize, tiles=tiles)
    return check_dataset(raws, unread=unread, input_format=form, **options)


def spoil(root: Path, change: Callable[[Contents, Path], object]) -> Path:
    contents = make_contents()
    write_images(root)
    change(contents, root / "images")
    write_contents(root, contents)
    return root


def test_a_clean_set_has_no_finding_and_counts_its_images_without_boxes(tmp_path: Path) -> None:
    report = check(write_small_set(tmp_path))
    assert report.issues == ()
    assert report.num_errors == 0
    assert set(report.counts().values()) == {0}
    assert {**to_json(report.splits["train"]), "annotations": ""} == {
        "annotations": "",
        "counts": {"images": 3, "images_without_boxes": 1, "read": 6, "crowd": 0, "dropped": {}},
        "boxes_by_class": {"scratch": 2, "pit": 2, "vein": 2},
    }
    report.raise_errors()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_one_thing_spoiled_gives_the_one_finding_of_its_rule(case: Spoilt, tmp_path: Path) -> None:
    root = spoil(tmp_path, case.change)
    report = check(root)
    assert [issue.rule for issue in report.issues] == [case.rule]
    (issue,) = report.issues
    assert (issue.split, issue.file, issue.annotation) == (case.split, case.file, case.annotation)
    assert case.message in issue.message
    assert report.num_errors == (case.rule in ERRORS)
    quick = [actual.rule for actual in check(root, decode=False).issues]
    assert quick == [case.rule] * case.is_quick


def test_a_group_in_two_splits_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = write_small_set(tmp_path)
    groups = ["a", "b", "b", "c", "b"]
    (issue,) = check(root, groups=groups).issues
    assert (issue.rule, issue.split, issue.file) == ("group_across", "val", "v1.png")
    assert "val.json: group 'b' is in split train (such as 't1.png') and in val (such as 'v1.png')" in (
        issue.message
    )


def test_annotations_that_share_the_id_of_a_wrong_one_are_looked_at_all_the_same(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        set_box(1, 2, 0, 9)(contents, images)
        contents["train"]["annotations"][1].update(id=11, bbox=[-8, 2, 20, 9])

    rules = [issue.rule for issue in check(spoil(tmp_path, change)).issues]
    assert rules == ["zero_box", "repeated_annotation", "overhanging_box"]


def test_links_to_nowhere_and_folders_are_no_images(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        for name in ("t2.png", "v1.png"):
            (images / name).unlink()
        (images / "t2.png").symlink_to(tmp_path / "nowhere.png")
        (images / "v1.png").mkdir()

    issues = check(spoil(tmp_path, change)).issues
    assert {(issue.rule, issue.file) for issue in issues if issue.rule != "unlisted_image"} == {
        ("missing_image", "t2.png"),
        ("missing_image", "v1.png"),
    }


def test_a_damaged_annotation_file_beside_the_images_is_no_split_less(tmp_path: Path) -> None:
    root = write_small_set(tmp_path)
    for path in (root / "annotations").iterdir():
        path.rename(root / path.name)
    (root / "annotations").rmdir()
    (root / "val.json").write_text('{"images": [')
    (root / "notes.json").write_text("{")
    assert [issue.rule for issue in check(root).issues] == ["unreadable"]


def test_every_rule_has_a_case() -> None:
    elsewhere = {"group_across", "ambiguous_image", "fraction_box", "no_trainable_box", "missing_split"}
    elsewhere |= {"crowd_box", "similar_classes", "many_boxes", "large_image", "several_pages"}
    assert {case.rule for case in CASES} | elsewhere == {*ERRORS, *WARNINGS}


def test_all_that_is_wrong_is_found_at_once_counted_and_refused(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        set_box(1, 2, 0, 9)(contents, images)
        cut_in_half(contents, images)
        drop_class(contents, images)

    report = check(spoil(tmp_path, change))
    actual = {rule: count for rule, count in report.counts().items() if count}
    assert actual == {"truncated_image": 1, "zero_box": 1, "class_without_boxes": 1}
    with pytest.raises(DataError) as caught:
        report.raise_errors()
    assert len(str(caught.value).splitlines()) == report.num_errors == 2
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["num_errors"], content["num_warnings"]) == (2, 1)
    rules = [entry["rule"] for entry in content["issues"]]
    assert sorted(rules) == ["class_without_boxes", "truncated_image", "zero_box"]
    assert {entry["severity"] for entry in content["issues"]} == {"error", "warning"}


def test_the_table_shows_a_few_of_each_rule_and_counts_the_rest(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        first = contents["train"]["annotations"][0]
        contents["train"]["annotations"] += [{**first, "id": 100 + copy} for copy in range(9)]

    lines = describe_check(check(spoil(tmp_path, change)))
    assert "warning  duplicate_box  9: two boxes of a class at the same place" in lines
    assert sum("has the same box as annotation 11" in line for line in lines) == MAX_SHOWN
    assert f"  … and {9 - MAX_SHOWN} more in the JSON file" in lines
    assert lines[-1] == "0 errors, 9 warnings"


def test_small_boxes_are_measured_at_the_training_size(tmp_path: Path) -> None:
    root = spoil(tmp_path, set_box(1, 2, 9, 3.5))
    twice = (2 * HEIGHT, 2 * WIDTH)
    assert check(root, input_size_hw=twice).issues == ()
    narrow = (2 * HEIGHT, WIDTH)
    assert check(root, input_size_hw=narrow).issues == ()
    (issue,) = check(root, input_size_hw=narrow, resize="letterbox").issues
    assert (
        "is 9.0x3.5 px at the training size of 40x60. Train at a larger size, or with data." in issue.message
    )
    (issue,) = check(root, resize="letterbox", tile_size=35).issues
    assert issue.message.endswith("larger size, or with tiles smaller than 35 px.")


def test_boxes_in_tiles_are_measured_at_the_scale_of_the_tiles() -> None:
    form = InputFormat(size_hw=(60, 80), resize="letterbox")
    sides, sizes = np.array([[9, 3.5]]), np.array([[320.0, 240.0]])
    assert at_input_size(sides, sizes, form).tolist() == [[9 / 4, 3.5 / 4]]
    tiled = replace(form, tiles=TilesOptions(size=40))
    assert at_input_size(sides, sizes, tiled).tolist() == [[9 * 1.5, 3.5 * 1.5]]


def test_plain_images_are_noted_and_not_predicted_as_copies(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        for seed, name in enumerate(("t1.png", "v1.png")):
            gray = np.random.default_rng(seed).integers(120, 123, size=(HEIGHT, WIDTH)).astype(np.uint8)
            Image.fromarray(gray).save(images / name)

    report = check(spoil(tmp_path, change))
    assert report.issues == ()
    assert report.notes == (
        "2 images have too little content to be compared with others except byte by byte",
    )


def test_crowd_regions_are_counted_apart(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        contents["train"]["annotations"][0].update(iscrowd=1, bbox=[1, 2, 9, 2])

    report = check(spoil(tmp_path, change))
    assert [issue.message for issue in report.issues] == [
        "train.json: 1 of 6 boxes are crowd regions (iscrowd or difficult), never trained on. If they are "
        "objects, as in exports of CVAT's brush, set data.crowd_as_objects."
    ]
    assert (report.splits["train"].counts.trainable, report.splits["train"].counts.crowd) == (5, 1)


def test_a_config_s_data_is_checked_before_a_run(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    root = spoil(tmp_path / "set", lambda contents, images: shutil.copy(images / "t1.png", images / "v1.png"))
    report = check_before_run(tiny_config(root, tmp_path / "run"))
    assert [issue.rule for issue in report.issues] == ["duplicate_across"]
    with pytest.raises(
        DataError, match=r"has the same bytes as 't1\.png' \(train\)\. Keep it in only one split\."
    ):
        report.raise_errors()


def test_a_config_s_data_that_cannot_be_read_is_refused(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    root = spoil(tmp_path / "set", lambda contents, images: contents["val"].pop("images"))
    with pytest.raises(DataError, match=r"val\.json: not a COCO file"):
        check_before_run(tiny_config(root, tmp_path / "run"))


def test_images_of_a_split_that_a_run_does_not_use_are_nothing_odd(
    tmp_path: Path, tiny_config: Callable[..., Config], write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 3, "val": 2, "test": 2})
    actual = check_before_run(tiny_config(root, tmp_path / "run")).issues
    raws, _ = read_for_check(find_dataset(root))
    del raws["test"]
    report = check_dataset(raws, input_format=InputFormat(size_hw=(64, 64)), decode=False)
    assert report.counts()["unlisted_image"] == 2
    assert {issue.rule for issue in report.issues} == {
        "unlisted_image",
        *(issue.rule for issue in actual),
    }
    assert "unlisted_image" not in {issue.rule for issue in actual}


@pytest.mark.parametrize("decode", [True, False])
def test_a_large_image_names_the_option_in_check_and_training(
    decode: bool, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    root = write_small_set(tmp_path)
    limit = f"data.max_image_megapixels={0.9 * WIDTH * HEIGHT / 1e6}"
    config = tiny_config(root, tmp_path / "run", limit)
    raws, unread = read_for_check(find_dataset(root))
    form = build_input_format(config.data, config.image_size_hw)
    report = check_dataset(raws, input_format=form, unread=unread, decode=decode)
    assert {issue.rule for issue in report.issues} == {"large_image"}
    with pytest.raises(DataError, match=r"too large, got 40x30 px.* raise data\.max_image_megapixels"):
        check_before_run(config).raise_errors()
    with pytest.raises(DataError, match="too large"):
        read_split(config.data, "train")


def test_a_file_of_several_pages_is_a_warning(tmp_path: Path) -> None:
    def change(contents: Contents, images: Path) -> None:
        contents["train"]["images"][0]["file_name"] = "t0.tif"
        first = Image.open(images / "t0.png").copy()
        first.save(images / "t0.tif", save_all=True, append_images=[first, first])
        (images / "t0.png").unlink()

    (issue,) = check(spoil(tmp_path, change)).issues
    assert (issue.rule, issue.file) == ("several_pages", "t0.tif")
    assert "has 3 pages or frames; only the first is used" in issue.message
