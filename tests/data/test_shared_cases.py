"""Exports of named tools that lie beside the repository: the check and the training agree about each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.schema import Config
from deim.curation.check import check_before_run, check_dataset, read_for_check
from deim.data.formats.read import find_dataset, read_all, to_splits
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import InputFormat
from deim.data.splits import build_splits
from deim.errors import DataError
from tests.shared_cases import CASES, needs_cases

pytestmark = needs_cases


def read(case: str) -> dict[str, CocoSplit]:
    return to_splits(read_all(find_dataset(CASES / case)))


@pytest.mark.parametrize(
    ("case", "boxes"),
    [
        ("02-cvat-subset-folders/set", {"train": 4, "val": 3}),
        ("03-label-studio-coco/a_plain", {"result": 3}),
        ("03-label-studio-coco/b_windows", {"result": 3}),
        ("03-label-studio-coco/e_media", {"result": 3}),
        ("05-string-ids/floats", {"train": 3}),
        ("05-string-ids/via", {"train": 3}),
        ("06-no-bbox/null", {"train": 3}),
        ("06-no-bbox/polygon", {"train": 3}),
        ("06-no-bbox/rle", {"train": 3}),
        ("07-roboflow-coco/set", {"train": 5, "val": 3, "test": 2}),
        ("09-cvat-yolo11/set", {"train": 3}),
        ("13-labels-beside-images/a_flat", {"all": 3}),
        ("47-cp1252/set", {"train": 4, "val": 2}),
    ],
)
def test_an_export_is_read_as_it_is(case: str, boxes: dict[str, int]) -> None:
    splits = read(case)
    assert {name: split.count_boxes().trainable for name, split in splits.items()} == boxes
    assert all(split.image_path(index).is_file() for split in splits.values() for index in range(len(split)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("01-cvat-masks-iscrowd/set", r"all 5 boxes are marked as crowd regions .*CVAT"),
        ("18-truncated-val/set", r"val\.json: .*val2\.png: the image is damaged"),
        ("26-empty-train-images/set", r"train\.json: no image has a box"),
        ("07-roboflow-coco/set", None),
        ("20-dense-1200/set", None),
        ("47-cp1252/set", None),
        ("49-class-names/set", None),
    ],
)
def test_the_check_refuses_what_training_refuses(
    case: str, message: str | None, tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    raws, unread = read_for_check(find_dataset(CASES / case))
    report = check_dataset(raws, unread=unread, input_format=InputFormat(size_hw=(64, 64)))
    config = tiny_config(CASES / case, tmp_path / "run")
    if message is None:
        assert report.num_errors == 0
        check_before_run(config).raise_errors()
        build_splits(config.data)
        return
    with pytest.raises(DataError, match=message):
        report.raise_errors()
    with pytest.raises(DataError, match=message):
        check_before_run(config).raise_errors()


def test_names_that_look_alike_and_crowded_images_are_warnings() -> None:
    for case, rule in (("49-class-names/set", "similar_classes"), ("20-dense-1200/set", "many_boxes")):
        raws, _ = read_for_check(find_dataset(CASES / case))
        report = check_dataset(raws, input_format=InputFormat(size_hw=(64, 64)), decode=False)
        assert report.counts()[rule] > 0
