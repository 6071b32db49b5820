"""The numbers of a report: what they say together, how they are written and read."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deim.data.formats.split import BoxCounts
from deim.errors import DataError
from deim.records import from_json, to_json
from deim.report.build import installed_versions
from deim.report.schema import Report, TaskSection, read_report, write_record
from deim.report.summary import describe_report
from deim.report.tables import operating_table
from tests.report.random_reports import make_inputs, make_report, report_of


def numbers_of(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [
            n for item in (value.values() if isinstance(value, dict) else value) for n in numbers_of(item)
        ]
    return [value] if isinstance(value, int | float) else []


def test_a_report_is_the_same_after_it_is_written_and_read(tmp_path: Path) -> None:
    report = replace(
        make_report(tmp_path),
        task_section=TaskSection(task="t", title="T", summary=("裂纹",), data={"key": [1, None]}),
    )
    content = to_json(report)
    assert content["schema_version"] == 4
    assert content["provenance"]["image_size_hw"] == [1024, 768]
    assert -1 not in numbers_of(content)
    assert from_json(Report, json.loads(json.dumps(content, allow_nan=False))) == report
    path = tmp_path / "new folder" / "report.json"
    write_record(report, path)
    write_record(report, path)
    text = path.read_text(encoding="utf-8")
    assert read_report(path) == report
    assert "裂纹" in text
    assert text.endswith("}\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_unknown_keys_are_kept_and_missing_optional_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    content = to_json(make_report(tmp_path))
    del content["task_section"], content["convergence"], content["provenance"]["tiles"]
    path.write_text(json.dumps(content | {"newer": {"a": 1}}))
    report = read_report(path)
    assert (report.task_section, report.convergence, report.provenance.tiles) == (None, None, None)
    assert report.extra == {"newer": {"a": 1}}
    write_record(report, path)
    assert json.loads(path.read_text())["newer"] == {"a": 1}
    del content["summary"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"report\.json: not a complete report: summary: missing"):
        read_report(path)


@pytest.mark.parametrize("options", [{}, {"empty": True}, {"predictions": False}])
def test_the_numbers_agree_with_one_another(tmp_path: Path, options: dict[str, Any]) -> None:
    report = make_report(tmp_path, seed=1, **options)
    confusion = np.array(report.confusion.counts)
    for label, entry in enumerate(report.classes):
        counts, metrics = entry.counts, entry.metrics
        assert confusion[label].sum() == metrics.num_boxes == counts.num_boxes == counts.tp + counts.fn
        assert confusion[label, label] == counts.tp
        assert counts.num_detections == counts.tp + counts.fp
        for value, ends in ((metrics.ap, entry.ap_interval), (metrics.ap50, entry.ap50_interval)):
            assert ends is None or ends.low <= value <= ends.high
    assert report.counts.tp == sum(entry.counts.tp for entry in report.classes)
    errors = {name: entry.count for name, entry in report.errors.items()}
    missed = errors.pop("missed")
    assert sum(errors.values()) == report.counts.fp
    assert missed <= report.counts.fn
    assert errors["duplicate"] == report.duplicates.num_after <= report.duplicates.num_before
    level = report.image_level.at_operating_points
    assert level.num_defective + level.num_good + level.num_ignored == report.num_images == 24


def test_no_intervals_without_resamples(tmp_path: Path) -> None:
    report = make_report(tmp_path, num_resamples=0)
    assert report.intervals is None
    assert {entry.ap50_interval for entry in report.classes} == {None}


def test_the_summary_names_every_number_with_its_n(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    text = "\n".join(describe_report(report))
    total, level = report.counts, report.image_level.at_operating_points
    for part in (
        f"mAP50 {report.summary.ap50:.3f}, 95% interval ",
        f"(n = 24 images, {report.num_boxes} boxes)",
        f"best F1, chosen on val, 24 images): {total.tp} of {total.num_boxes} boxes found",
        f"escape rate {level.escape_rate:.1%} ({level.num_escaped} of {level.num_defective} def",
        f"overkill rate {level.overkill_rate:.1%} ({level.num_overkilled} of {level.num_good} good",
        "With NMS (no box that overlaps a better one by IoU > 0.7), ",
        f" remain, and mAP50 is {report.duplicates.ap50:.3f}.",
    ):
        assert part in text


@pytest.mark.parametrize("options", [{"empty": True}, {"predictions": False}])
def test_the_summary_names_what_cannot_be_computed(tmp_path: Path, options: dict[str, Any]) -> None:
    text = "\n".join(describe_report(make_report(tmp_path, **options)))
    assert "None" not in text
    assert "nan" not in text
    if "empty" in options:
        assert "No AP: the split has no ground-truth box (24 images)." in text
        assert "no defective image, so no escape rate" in text
    else:
        assert "0 of " in text


def test_the_summary_says_that_nothing_was_learned_and_what_to_do(tmp_path: Path) -> None:
    report = make_report(tmp_path, predictions=False)
    lines = describe_report(report)
    reasons = [line for line in lines if "learned nothing: mAP50 on val is 0, less than 0.01" in line]
    assert reasons == [report.operating_points.default_reason]
    assert "best F1" not in "\n".join([*lines, operating_table(report).title])
    learned = describe_report(make_report(tmp_path))
    assert not any("learned nothing" in line for line in learned)


def test_the_account_of_boxes_is_in_the_report(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, num_resamples=0)
    counts = BoxCounts(images=24, images_without_boxes=6, read=70, crowd=9, dropped={"zero_box": 2})
    source = inputs.provenance
    with_counts = replace(source, dataset=replace(source.dataset, box_counts=counts))
    report = report_of(replace(inputs, provenance=with_counts))
    account = (
        "24 images (6 without boxes), 70 boxes read, 9 crowd regions, 2 dropped (zero_box), 59 trainable"
    )
    assert f"Data of test: {account}." in describe_report(report)
    assert from_json(Report, json.loads(json.dumps(to_json(report)))) == report
    old = describe_report(report_of(inputs))
    assert any(line.startswith("Data of test: 24 images (") for line in old)


def test_the_time_is_written_in_utc(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, num_resamples=0)
    two_hours_east = datetime(2026, 11, 22, 7, 30, tzinfo=timezone(timedelta(hours=2)))
    assert report_of(replace(inputs, created=two_hours_east)).created == "2026-11-22T05:30:00+00:00"
    assert report_of(replace(inputs, created=None)).created.endswith("+00:00")


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"schema_version": 1}')
    with pytest.raises(DataError, match=r"report\.json: not a report of this version, got version 1\."):
        read_report(path)
    path.write_text("no json")
    with pytest.raises(DataError, match=r"report\.json: not a JSON file"):
        read_report(path)


def test_a_record_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    section = TaskSection(task="t", title="T", summary=(), data={"key": object()})
    with pytest.raises(TypeError):
        write_record(section, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_installed_versions_are_texts() -> None:
    versions = installed_versions()
    assert versions["torch"]
    assert versions["faster_coco_eval"]
    assert versions["python"].startswith("3.")
