"""Tables for the console and as CSV."""

import csv
import io
import unicodedata
from pathlib import Path

import pytest

from deim.report.table_files import format_csv
from deim.report.tables import class_rows, class_table, format_table, operating_table
from tests.report.random_reports import make_report

DASH = "\N{EN DASH}"


def display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(first) in "WF" else 1 for first in text)


def test_a_table_is_plain_text_of_equal_lines() -> None:
    text = format_table(["class", "n"], [["pit", "1"], ["裂纹", "1000"], ["tab\tand\nnewline [red]", "7"]])
    lines = text.splitlines()
    assert "\x1b" not in text
    assert len({display_width(line) for line in lines}) == 1
    assert lines[0].split() == ["class", "n"]
    assert lines[2].startswith("pit ")
    assert lines[2].endswith("    1")
    assert lines[4].startswith("tab and newline [red] ")


def test_long_names_are_cut_and_nothing_else() -> None:
    lines = format_table(["class", "n"], [["a name that no console has room for " * 5, "12"]]).splitlines()
    assert lines[-1].startswith("a name that no console has room")
    assert "…" in lines[-1]
    assert lines[-1].endswith("12")


@pytest.mark.parametrize("num_columns", [2, 9, 40])
@pytest.mark.parametrize("head", ["AP50 of rolled-in scale", "intervalo_del_95_%"])
def test_columns_without_room_continue_below(num_columns: int, head: str) -> None:
    heads = ["run", *(f"{head} {number}" for number in range(num_columns))]
    rows = [[f"run {row}", *(f"{row}.{number:03}" for number in range(num_columns))] for row in range(3)]
    lines = format_table(heads, rows).splitlines()
    assert max(map(display_width, lines)) <= 100
    shown = [line.split()[2:] for line in lines if line.startswith("run 1")]
    assert [cell for cells in shown for cell in cells] == rows[1][1:]
    assert "…" not in "".join(lines)


def test_the_class_table_shows_every_class_and_dashes(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    lines = str(class_table(report)).splitlines()
    assert lines[0].split()[:5] == ["class", "images", "boxes", "AP50", "AP"]
    assert len(lines) == 3 + len(report.classes)
    assert max(map(display_width, lines)) <= 80
    scratch = report.classes[0].metrics
    assert lines[2].split()[:4] == [
        "scratch",
        str(scratch.num_images),
        str(scratch.num_boxes),
        f"{scratch.ap50:.3f}",
    ]
    absent = next(line for line in lines if line.startswith("absent"))
    assert absent.split()[3:] == [DASH] * 7
    assert lines[-1].split()[:3] == ["all", "24", str(report.num_boxes)]


def test_the_operating_table_shows_what_the_report_says(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    lines = str(operating_table(report)).splitlines()
    heads = ["class", "boxes", "threshold", "precision", "recall", "F1", "TP", "FP", "FN"]
    assert lines[0].split() == heads
    assert len(lines) == 3 + len(report.classes)
    counts, point = report.classes[0].counts, report.operating_points.classes[0]
    numbers = (point.threshold, counts.precision, counts.recall, counts.f1)
    assert lines[2].split() == [
        "scratch",
        str(counts.num_boxes),
        *(f"{number:.3f}" for number in numbers),
        *map(str, (counts.tp, counts.fp, counts.fn)),
    ]
    assert lines[-1].split()[:3] == ["all", str(report.num_boxes), DASH]


@pytest.mark.parametrize("num_resamples", [0, 20])
def test_the_csv_has_all_numbers_of_each_class(tmp_path: Path, num_resamples: int) -> None:
    report = make_report(tmp_path, num_resamples=num_resamples)
    rows = list(csv.DictReader(io.StringIO(format_csv(class_rows(report)))))
    assert tuple(row["name"] for row in rows) == report.class_names
    for row, entry, point in zip(rows, report.classes, report.operating_points.classes, strict=True):
        ends = entry.ap50_interval
        expected = {
            "ap50": entry.metrics.ap50,
            "num_boxes": entry.metrics.num_boxes,
            "note": entry.metrics.note,
            "ap50_low": None if ends is None else ends.low,
            "ap50_high": None if ends is None else ends.high,
            "threshold": point.threshold,
            "threshold_origin": point.origin,
            "tp": entry.counts.tp,
            "f1": entry.counts.f1,
        }
        for key, value in expected.items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            assert row[key] == ("" if value is None else shown), key
        assert (row["ap_basis"], row["counts_basis"]) == (
            "all raw detections",
            "detections after thresholds and NMS",
        )
