"""The tables of classes: for the console and as CSV."""

import csv
import io
import unicodedata
from pathlib import Path

import pytest

from deim.metrics.coco import CocoMetrics, compute_coco_metrics
from deim.report.tables import format_class_csv, format_class_table, format_operating_table
from tests.report.random_reports import make_report

DASH = "\N{EN DASH}"
TABLE = """\
class   images  boxes   AP50     AP   AP75  AR100  AP small  AP medium  AP large
pit          1      1  1.000  1.000  1.000  1.000         ~      1.000         ~
scratch      1      1  0.000  0.000  0.000  0.000     0.000          ~         ~
absent       0      0      ~      ~      ~      ~         ~          ~         ~
all          3      2  0.500  0.500  0.500  0.500     0.000      1.000         ~""".replace("~", DASH)


def make_metrics(names: tuple[str, ...] = ("pit", "scratch", "absent")) -> CocoMetrics:
    """Three images, one empty; a box of the first two classes, found for the first only."""
    boxes = [(1, 0, [10, 10, 50, 50]), (2, 1, [5, 5, 20, 20])]
    return compute_coco_metrics(
        {
            "images": [{"id": 1}, {"id": 2}, {"id": 3}],
            "annotations": [
                {
                    "id": i,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                }
                for i, (image_id, category_id, bbox) in enumerate(boxes)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        },
        [{"image_id": 1, "category_id": 0, "bbox": [10, 10, 50, 50], "score": 0.9}],
    )


def display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def test_table_shows_every_class_and_dashes() -> None:
    assert format_class_table(make_metrics()).splitlines() == TABLE.splitlines()


def test_table_stays_within_120_columns() -> None:
    names = ("a name that no console has room for " * 5, "裂纹" * 30, "tab\tand\nnewline")
    lines = format_class_table(make_metrics(names)).splitlines()
    assert len(lines) == 5
    assert {display_width(line) for line in lines} == {display_width(lines[0])}
    assert display_width(lines[0]) <= 120
    assert lines[1].startswith("a name that no console has room…")
    assert lines[3].startswith("tab and newline ")


def test_table_without_classes() -> None:
    empty = compute_coco_metrics({"images": [], "annotations": [], "categories": []}, [])
    lines = format_class_table(empty).splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["all", "0", "0", *[DASH] * 7]


def test_the_operating_table_shows_what_the_report_says(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    lines = format_operating_table(report).splitlines()
    assert lines[0].split() == [
        "class",
        "boxes",
        "threshold",
        "precision",
        "recall",
        "F1",
        "right",
        "false",
        "missed",
    ]
    assert len(lines) == 2 + len(report["classes"])
    assert {len(line) for line in lines} == {len(lines[0])}
    scratch = report["classes"][0]
    numbers = [scratch[key] for key in ("threshold", "precision", "recall", "f1")]
    counts = [scratch[key] for key in ("num_right", "num_false", "num_missed")]
    assert lines[1].split() == [
        "scratch",
        str(scratch["num_boxes"]),
        *(f"{number:.3f}" for number in numbers),
        *map(str, counts),
    ]
    assert lines[-1].split()[:3] == ["all", str(report["dataset"]["num_boxes"]), DASH]


@pytest.mark.parametrize("num_resamples", [0, 20])
def test_the_csv_has_all_that_the_report_says_of_each_class(tmp_path: Path, num_resamples: int) -> None:
    report = make_report(tmp_path, num_resamples=num_resamples)
    rows = list(csv.DictReader(io.StringIO(format_class_csv(report))))
    assert [row["name"] for row in rows] == [entry["name"] for entry in report["classes"]]
    for row, entry in zip(rows, report["classes"], strict=True):
        for key, value in entry.items():
            if key.endswith("_interval"):
                name = key.removesuffix("_interval")
                found = [row[f"{name}_low"], row[f"{name}_high"]]
                assert found == (["", ""] if value is None else [str(end) for end in value])
            else:
                assert row[key] == ("" if value is None else str(value))


def test_a_csv_without_classes_is_empty() -> None:
    assert format_class_csv({"classes": []}).strip() == ""
