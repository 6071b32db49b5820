"""Splits by class and by group: shares are met, no group is parted, the same seed gives the same splits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageEnhance

from deim.curation.check import check_dataset, read_for_check
from deim.curation.convert import write_dataset
from deim.curation.groups import find_groups, groups_by_pattern, groups_by_table
from deim.curation.scan import ImageFacts, scan_images
from deim.curation.split import Division, assign_groups, describe_division, divide, pool_splits
from deim.data.formats.read import Format, find_dataset, read_all, to_splits
from deim.data.images.input_format import InputFormat
from deim.errors import DataError
from tests.data.small_sets import make_contents, noise, write_contents, write_small_set

RATIOS = np.array([0.8, 0.1, 0.1])


def one_hot(classes: list[int], num_classes: int) -> np.ndarray:
    """Groups of one image of one class, with a last column for all images."""
    return np.column_stack([np.eye(num_classes)[classes], np.ones(len(classes))])


def write_lots(root: Path, *, num_lots: int = 10, of_lot: int = 3) -> Path:
    """Images lot0_0.png to lot9_2.png, each with a box of one of two classes; every fifth has none."""
    (root / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations = []
    for lot in range(num_lots):
        for number in range(of_lot):
            index = len(images)
            name = f"lot{lot}_{number}.png"
            noise(index).save(root / "images" / name)
            images.append({"id": index, "file_name": name, "width": 40, "height": 30})
            if index % 5:
                annotations.append(
                    {"id": index, "image_id": index, "category_id": 1 + index % 2, "bbox": [2, 3, 9, 8]}
                )
    categories = [{"id": 1, "name": "pit"}, {"id": 2, "name": "scratch"}]
    write_contents(root, {"all": {"images": images, "annotations": annotations, "categories": categories}})
    return root


def divided(root: Path, *, data_format: Format = "coco", **options: Any) -> Division:
    pool, names = pool_splits(to_splits(read_all(find_dataset(root, data_format))))
    facts = scan_images([pool.image_path(index) for index in range(len(pool))], decode=True)
    options = {"groups": None, "ratios": (80, 10, 10), "seed": 0, **options}
    return divide(pool, names, facts=facts, **options)


def test_shares_of_every_class_are_met() -> None:
    classes = [0] * 400 + [1] * 100 + [2] * 50
    features = one_hot(classes, 3)
    chosen = assign_groups(features, RATIOS, seed=3)
    for split, share in enumerate(RATIOS):
        np.testing.assert_allclose(
            features[chosen == split].sum(axis=0), share * features.sum(axis=0), atol=1
        )


def test_groups_of_many_sizes_come_near_the_shares() -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 6, size=(120, 4)).astype(float)
    features[:, -1] = features[:, :-1].max(axis=1) + 1
    chosen = assign_groups(features, RATIOS, seed=0)
    held = np.array([features[chosen == split].sum(axis=0) for split in range(3)])
    np.testing.assert_allclose(held / features.sum(axis=0), np.repeat(RATIOS[:, None], 4, axis=1), atol=0.03)


@pytest.mark.parametrize(("number", "expected"), [(3, {0, 1, 2}), (2, {0, 1}), (1, {0}), (5, {0, 1, 2})])
def test_a_rare_class_is_in_as_many_splits_as_it_can_be(number: int, expected: set[int]) -> None:
    classes = [0] * 200 + [1] * number
    chosen = assign_groups(one_hot(classes, 2), RATIOS, seed=1)
    assert set(chosen[200:].tolist()) == expected


def test_a_split_without_a_share_gets_nothing() -> None:
    chosen = assign_groups(one_hot([0, 1] * 20, 2), np.array([0.5, 0.5, 0.0]), seed=0)
    assert np.bincount(chosen, minlength=3).tolist() == [20, 20, 0]


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    root = write_lots(tmp_path)
    first, again = divided(root), divided(root)
    assert first.split_of.tolist() == again.split_of.tolist()
    others = [divided(root, seed=seed).split_of.tolist() for seed in (1, 2, 3)]
    assert any(other != first.split_of.tolist() for other in others)


def test_no_group_is_in_two_splits_and_the_check_agrees(tmp_path: Path) -> None:
    root = write_lots(tmp_path / "all")
    pool, _ = pool_splits(to_splits(read_all(find_dataset(root, "coco"))))
    groups = groups_by_pattern(pool.file_names, r"^(lot\d+)_")
    division = divided(root, groups=groups)
    assert all(name == split.name for name, split in division.splits().items())
    assert {name: len(split) for name, split in division.splits().items()} == {
        "train": 24,
        "val": 3,
        "test": 3,
    }
    assert len(set(zip(groups, division.split_of.tolist(), strict=True))) == 10
    write_dataset(division.splits(), "coco", tmp_path / "new", names=division.new_names())
    raws, unread = read_for_check(find_dataset(tmp_path / "new"))
    names = [image["file_name"] for raw in raws.values() for image in raw.images]
    report = check_dataset(
        raws,
        input_format=InputFormat(size_hw=(30, 40)),
        unread=unread,
        groups=groups_by_pattern(names, r"^(lot\d+)_"),
    )
    assert report.num_errors == 0
    assert sorted(names) == sorted(pool.file_names)


def test_copies_are_bound_to_one_split_whatever_their_groups(tmp_path: Path) -> None:
    root = write_lots(tmp_path, num_lots=15, of_lot=2)
    for number, factor in enumerate((1.0, 1.05, 1.1, 1.15), start=10):
        copy = ImageEnhance.Brightness(noise(0)).enhance(factor)
        copy.save(root / "images" / f"lot{number}_0.png")
    division = divided(root)
    same = [name in ("lot0_0.png", *(f"lot{n}_0.png" for n in range(10, 14))) for name in division.names]
    assert sum(same) == 5
    assert len(set(division.split_of[same].tolist())) == len(set(division.group_of[same].tolist())) == 1
    assert division.num_bound == 4
    assert "4 images are bound to the group of their copy" in describe_division(division)


def test_the_pool_keeps_boxes_with_their_images_and_renumbers_ids_that_meet(tmp_path: Path) -> None:
    splits = to_splits(read_all(find_dataset(write_small_set(tmp_path / "coco"))))
    pool, names = pool_splits(splits)
    assert names == pool.file_names == ("t0.png", "t1.png", "t2.png", "v0.png", "v1.png")
    assert pool.image_ids.tolist() == [1, 2, 3, 4, 5]
    assert np.diff(pool.first_box).tolist() == [3, 3, 0, 3, 3]
    np.testing.assert_array_equal(pool.boxes_xywh[6:], splits["val"].boxes_xywh)
    write_dataset(splits, "yolo", tmp_path / "yolo")
    yolo_pool, yolo_names = pool_splits(to_splits(read_all(find_dataset(tmp_path / "yolo", "yolo"))))
    assert yolo_names == names
    assert yolo_pool.file_names[0] == "train/t0.png"
    np.testing.assert_allclose(yolo_pool.boxes_xywh, pool.boxes_xywh, atol=1e-6)


def test_the_report_counts_classes_and_names_what_a_split_lacks(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    contents = make_contents()
    for content in contents.values():
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] != 40]
    contents["val"]["annotations"].append({"id": 99, "image_id": 51, "category_id": 40, "bbox": [1, 2, 9, 8]})
    write_contents(tmp_path, contents)
    lines = describe_division(divided(tmp_path))
    splits = ["train", "val", "test"]
    assert lines[0].split() == splits
    titles = ["images", "share", "groups", "without boxes", "pit", "scratch", "vein"]
    assert [line[: len(title)] for line, title in zip(lines[2:9], titles, strict=True)] == titles
    numbers = lines[8].split()[1:]
    assert sorted(numbers) == ["0", "0", "1"]
    without = [split for split, number in zip(splits, numbers, strict=True) if number == "0"]
    why = "it has too few groups, or they hold other rare classes"
    assert lines[9:] == [f"{split}: no box of class 'vein'; {why}" for split in without]


@pytest.mark.parametrize(
    "ratios",
    [(80, 20), (0, 50, 50), (80, -10, 30), (float("nan"), 10, 10), (80, float("inf"), 10)],
    ids=str,
)
def test_wrong_ratios_are_refused(ratios: tuple[float, ...], tmp_path: Path) -> None:
    pool, names = pool_splits(to_splits(read_all(find_dataset(write_small_set(tmp_path)))))
    with pytest.raises(DataError, match=r"--ratios: got .*Give three numbers"):
        divide(pool, names, facts=[ImageFacts()] * 5, groups=None, ratios=ratios, seed=0)


@pytest.mark.parametrize(
    ("num_lots", "ratios", "message"),
    [
        (
            1,
            (80, 10, 10),
            r"got 80 10 10, but val would get no image \(groups: 1, .* give val a ratio of 0",
        ),
        (1, (1, 99, 0), r"but train would get no image \(groups: 1, .* or give train a larger ratio\."),
        (
            2,
            (1, 9, 90),
            r"but .* would get no image \(groups: 2, .* a finer --group-regex, add images",
        ),
    ],
)
def test_a_wanted_split_without_images_is_refused(
    num_lots: int, ratios: tuple[float, ...], message: str, tmp_path: Path
) -> None:
    root = write_lots(tmp_path, num_lots=num_lots, of_lot=2)
    with pytest.raises(DataError, match=message):
        divided(root, groups=np.repeat(np.arange(num_lots), 2), ratios=ratios)


def test_test_data_without_images_are_named(tmp_path: Path) -> None:
    root = write_lots(tmp_path, num_lots=2, of_lot=2)
    lines = describe_division(divided(root, groups=["0", "0", "1", "1"], ratios=(50, 40, 10)))
    assert "test: no image (groups: 2)" in lines
    lines = describe_division(divided(root, groups=["0", "0", "1", "1"], ratios=(50, 50, 0)))
    assert not any("no image" in line for line in lines)


def test_groups_come_from_the_parentheses_or_the_whole_match() -> None:
    names = ["a/p1_c2.png", "p10_c1.png"]
    assert groups_by_pattern(names, r"p(\d+)_") == ["1", "10"]
    assert groups_by_pattern(names, r"p(\d+)_c(\d)") == ["1|2", "10|1"]
    assert groups_by_pattern(names, r"p\d+") == ["p1", "p10"]
    assert groups_by_pattern(names, r"p(1)_|p(\d+)") == ["1|", "|10"]
    assert find_groups(names, pattern=None, table=None) is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"--group-regex: not a regular expression, got '\('"),
        ("p1_", r"--group-regex: 'p1_' does not occur in image 'p2\.png'\. Every image needs a group"),
        (r"^(x)?", r"'\^\(x\)\?' matches nothing in image 'p1_\.png'\. Every image needs a group"),
        (r"2(_?)|1", r"matches nothing in image 'p2\.png'\. Every image needs a group"),
    ],
)
def test_a_wrong_expression_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        groups_by_pattern(["p1_.png", "p2.png"], pattern)


def test_groups_come_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("group,file_name\nx,a.png\ny,b.png\nz,other.png\n")
    assert groups_by_table(["b.png", "a.png"], path) == ["y", "x"]
    with pytest.raises(DataError, match=r"got both"):
        find_groups(["a.png"], pattern="a", table=path)


def test_a_table_may_name_images_of_the_same_name_by_their_paths(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("file_name,group\na.png,x\ntrain/b.png,y\nval/b.png,z\nval/a.png,w\n")
    paths = ["train/a.png", "train/b.png", "val/a.png", "val/b.png"]
    names = ["a.png", "b.png", "a.png", "b.png"]
    assert find_groups(names, pattern=None, table=path, paths=paths) == ["x", "y", "x", "z"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,group\na.png,x\n", r"image 'b\.png' has no row\."),
        ("file_name,group\na.png,x\nb.png,x\na.png,y\n", r"image 'a\.png' is in group 'x' and in 'y'\."),
        ("file_name,group\na.png,\nb.png\n", r"groups\.csv: image 'a\.png' has an empty group\. Fill in the"),
        (
            "file_name,group\na.png,x\nb.png\n",
            r"groups\.csv: image 'b\.png' has an empty group\. Fill in the",
        ),
        ("name,group\na.png,x\n", r"groups\.csv: got name, group\. It needs the columns"),
        ("", r"groups\.csv: got no rows\."),
    ],
    ids=["lacks", "two", "empty cell", "no cell", "columns", "empty"],
)
def test_a_wrong_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        groups_by_table(["a.png", "b.png"], path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost\.csv: cannot be read as a table"):
        groups_by_table(["a.png"], tmp_path / "lost.csv")
