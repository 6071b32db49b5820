"""Files of the first version, made by its code, are read and say the same."""

import json
from dataclasses import replace
from pathlib import Path

from deim.migration import migrate_report
from deim.report.build import ReportInputs
from deim.report.files import read_report_inputs
from deim.report.schema import read_report
from deim.report.summary import describe_report
from tests.report.random_reports import report_of

FOLDER = Path(__file__).parent / "first_version"


def test_a_report_of_the_first_version_holds_the_numbers_of_this_one() -> None:
    path = FOLDER / "report.json"
    old = json.loads(path.read_text(encoding="utf-8"))
    report = read_report(path)
    inputs: ReportInputs = read_report_inputs(path)
    again = report_of(inputs, files=report.files)
    # AP50 after NMS is newer, and curves keep other points.
    newer = {"precision_recall": None, "ap50_after_nms": None, "ap50_after_nms_interval": None}
    of_both = ([replace(row, **newer) for row in each.classes] for each in (report, again))
    assert next(of_both) == next(of_both)
    assert report.counts == again.counts
    assert (report.summary, report.intervals) == (again.summary, again.intervals)
    assert report.errors == {kind: replace(row, kept_ap50_delta=None) for kind, row in again.errors.items()}
    assert (report.image_level, report.duplicates) == (again.image_level, again.duplicates)
    assert report.confusion.counts == again.confusion.counts
    assert report.operating_points == again.operating_points
    assert report.provenance == again.provenance
    assert [entry.counts.tp for entry in report.classes] == [row["num_right"] for row in old["classes"]]
    assert old["schema_version"] == 3  # the old content is not changed
    assert migrate_report({"schema_version": 4}) == {"schema_version": 4}


def test_text_fusion_of_the_first_version_becomes_the_section_of_its_task() -> None:
    report = read_report(FOLDER / "report.json")
    section = report.task_section
    assert section is not None
    assert (section.task, section.images) == ("text_fusion", ("text_map_1.png",))
    assert section.summary == ("With text.", "Verdict: nothing helps.")
    assert section.data["confusion"][0]["predicted_as"] == "b"
    assert section.data["ablation"]["verdict"] == "nothing helps"
    assert describe_report(report)[-1] == "Verdict: nothing helps."
