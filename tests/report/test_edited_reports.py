"""Reports, their tables and logs that somebody edited by hand: one message that names file and place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deim.errors import DataError
from deim.files import sha256_of_file
from deim.metrics.convergence import read_convergence
from deim.report.files import ReportFiles, read_report_inputs
from deim.report.schema import read_report, write_record
from tests.report.random_reports import make_inputs, report_of


@pytest.fixture
def files(tmp_path: Path) -> ReportFiles:
    inputs = make_inputs(tmp_path / "images", num_images=4, num_resamples=2)
    files, truth = ReportFiles(tmp_path / "report.json"), inputs.ground_truth
    files.folder.mkdir()
    files.ground_truth.write_text(json.dumps(truth.to_coco()))
    results = list(inputs.detections.to_coco(truth.image_ids, truth.category_ids))
    files.predictions.write_text(json.dumps(results))
    write_record(report_of(inputs), files.report)
    edit(files, files.report, lambda content: None)
    return files


def edit(files: ReportFiles, path: Path, change: Callable[[Any], object]) -> None:
    """Change a file, and the hashes in the report as well."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    report = json.loads(files.report.read_text())
    report["files"] = {path.name: sha256_of_file(path) for path in (files.ground_truth, files.predictions)}
    files.report.write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(num_images="many"), "num_images: got 'many', needs an integer"),
        (lambda report: report["summary"].update(ap=[0.5]), "summary.ap: got [0.5], needs a finite number."),
        (lambda report: report["classes"].pop(), "columns of different lengths, got classes"),
        (
            lambda report: report["confusion"]["counts"][1].append(7),
            "columns of different lengths, got",
        ),
        (lambda report: report.update(created="yesterday"), "Invalid isoformat string: 'yesterday'"),
        (
            lambda report: report["operating_points"]["nms"].update(iou_threshold=None),
            "operating_points.nms: iou_threshold: got None with mode agnostic.",
        ),
        (
            lambda report: report["provenance"].update(tiles={"size": -5}),
            "provenance.tiles: size: got -5",
        ),
        (
            lambda report: report["intervals"].update(num_resamples=10**15),
            "intervals: num_resamples: got 1000000000000000, needs 0 to",
        ),
    ],
)
def test_an_edited_report_is_refused(files: ReportFiles, change: Any, message: str) -> None:
    edit(files, files.report, change)
    with pytest.raises(DataError) as caught:
        read_report(files.report)
    assert str(caught.value).startswith(f"{files.report}: not a complete report: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "[" * 5000, "{", '{"schema_version": [4]}'])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"report\.json: not a (JSON file|report of this version)"):
        read_report(path)


@pytest.mark.parametrize("value", [[], {}, 7, "x"])
@pytest.mark.parametrize("key", ["classes", "operating_points", "dataset", "convergence"])
def test_an_edited_report_of_the_first_version_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    content = json.loads((Path(__file__).parent / "first_version" / "report.json").read_text())
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content | {key: value}))
    with pytest.raises(DataError, match=r"report\.json: not a complete report"):
        read_report(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "predictions",
            lambda rows: rows[2].update(score=float("inf")),
            "[2].score: got inf, needs a",
        ),
        (
            "predictions",
            lambda rows: rows[1].update(bbox=[1, "x", 3, 4]),
            "[1].bbox[1]: got 'x', needs",
        ),
        ("predictions", lambda rows: rows[0].pop("category_id"), "[0].category_id: missing."),
        ("predictions", lambda rows: rows.append(5), "got 5, needs an object."),
        ("ground_truth", lambda coco: coco.pop("images"), "images: missing."),
        (
            "ground_truth",
            lambda coco: coco["images"][1].update(id={}),
            "images[1].id: got {}, needs",
        ),
        (
            "ground_truth",
            lambda coco: coco["annotations"][0].update(bbox=[1, 2]),
            "annotations[0].bbox: got",
        ),
    ],
)
def test_edited_tables_are_refused(files: ReportFiles, name: str, change: Any, message: str) -> None:
    path = getattr(files, name)
    edit(files, path, change)
    with pytest.raises(DataError) as caught:
        read_report_inputs(files.report)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "epoch", "epoch": "2", "ap": 0.9, "ap50": 0.9, "seconds": 1}',
        '{"event": "epoch", "epoch": 2, "ap": 1e999, "ap50": 0.9, "seconds": 1}',
        '{"event": "epoch", "epoch": ' + "9" * 5000 + "}",
        "[" * 50_000,
        '{"event": "epoch", "epoch": 2, "ap": [0.9], "ap50": null, "seconds": null}',
    ],
)
def test_lines_of_a_log_that_no_run_wrote_are_skipped(line: str, tmp_path: Path) -> None:
    good = '{"event": "epoch", "epoch": 1, "ap": 0.5, "ap50": 0.7, "seconds": 2}'
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{good}\n{line}\n")
    convergence = read_convergence(tmp_path / "metrics.jsonl", planned_epochs=3)
    assert convergence is not None
    assert (convergence.epochs, convergence.best_ap) == ((1,), 0.5)
