"""Runs side by side: equal ones never differ, worse ones are found out, other data are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deim.errors import DataError
from deim.files import sha256_of_file
from deim.metrics.convergence import Convergence
from deim.records import from_json, to_json
from deim.report.build import ReportInputs
from deim.report.compare import (
    ComparedRun,
    Comparison,
    compare_runs,
    describe_comparison,
    describe_options,
    images_that_differ,
    read_runs,
)
from deim.report.compare_files import model_tables, option_table, run_rows, write_comparison
from deim.report.files import ReportFiles
from deim.report.schema import ModelInfo, write_record
from deim.report.table_files import format_latex
from deim.report.tables import DASH
from tests.report.random_reports import make_inputs, report_of


def write_numbers(inputs: ReportInputs, path: Path) -> None:
    """The files of a report that a comparison reads."""
    files = ReportFiles(path)
    files.folder.mkdir(parents=True)
    truth = inputs.ground_truth
    files.ground_truth.write_text(json.dumps(truth.to_coco()))
    results = list(inputs.detections.to_coco(truth.image_ids, truth.category_ids))
    files.predictions.write_text(json.dumps(results))
    hashes = {item.name: sha256_of_file(item) for item in (files.ground_truth, files.predictions)}
    write_record(report_of(inputs, files=hashes), path)


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with run a, a copy of it, one with fewer detections, and one on other data."""
    folder = tmp_path_factory.mktemp("runs")
    inputs = make_inputs(folder / "images", num_images=40, num_resamples=20, decimals=6)
    write_numbers(inputs, folder / "a" / "report.json")
    shutil.copytree(folder / "a", folder / "copy")
    for suffix in (".json", ""):
        copy = shutil.copytree if not suffix else shutil.copy
        copy(folder / "a" / f"report{suffix}", folder / "a" / f"evaluation_test{suffix}")
    half = inputs.detections.take(np.arange(1, len(inputs.detections), 2))
    write_numbers(dataclasses.replace(inputs, detections=half), folder / "half" / "report.json")
    other = make_inputs(folder / "images", num_images=40, num_resamples=20, seed=1)
    write_numbers(other, folder / "other" / "report.json")
    return folder


def test_a_run_compared_with_itself_never_differs(runs_folder: Path) -> None:
    runs = read_runs([runs_folder / "a", runs_folder / "copy", runs_folder / "a"], split="val")
    comparison = compare_runs(runs, num_resamples=100)
    for entry in comparison.differences:
        for difference in (entry.ap, entry.ap50, *entry.class_ap, *entry.class_ap50):
            assert difference.verdict in ("not distinguishable", "cannot be compared")
            assert difference.value in (0, None)
            assert difference.low in (0, None)
            assert difference.high in (0, None)
    assert (
        "95% interval +0.000 to +0.000 (40 images): not distinguishable."
        in describe_comparison(comparison)[0]
    )


def test_a_run_that_lost_half_of_its_detections_is_worse(runs_folder: Path) -> None:
    runs = read_runs([runs_folder / "a", runs_folder / "half"], split="val")
    comparison = compare_runs(runs, num_resamples=200)
    (entry,) = comparison.differences
    assert entry.ap50.verdict == "worse"
    assert entry.ap50.high < 0
    first, second = comparison.runs
    assert entry.ap50.value == pytest.approx(second.ap50 - first.ap50, abs=1e-9)
    for after, before, difference in zip(second.class_ap50, first.class_ap50, entry.class_ap50, strict=True):
        if before is None:
            assert difference.verdict == "cannot be compared"
        else:
            assert difference.value == pytest.approx(after - before, abs=1e-9)
            assert difference.low <= difference.value <= difference.high
    turned = compare_runs(runs[::-1], num_resamples=200).differences[0].ap50
    assert turned.verdict == "better"
    assert turned.value == pytest.approx(-entry.ap50.value)
    words = describe_comparison(comparison)
    assert words[0].startswith("half against a: mAP50 -0.")
    assert words[0].endswith("(40 images): worse.")


OPTIONS = {
    "output_dir": "a",
    "epochs": 8,
    "recipe.lr": 4e-4,
    "augment.mosaic": 0.5,
    "data.normal_class": "null",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output_dir": "b"}, {}),
        ({"recipe.lr": 1e-3, "epochs": 8}, {"recipe.lr": (4e-4, 1e-3)}),
        (
            {"augment.mosaic": 0.0, "model.name": "x"},
            {"augment.mosaic": (0.5, 0.0), "model.name": (None, "x")},
        ),
        ({"data.normal_class": "=1+1"}, {"data.normal_class": ("null", "=1+1")}),
    ],
    ids=lambda value: "-".join(value),
)
def test_options_that_differ_are_in_every_file(
    runs_folder: Path, changes: dict, expected: dict, tmp_path: Path
) -> None:
    runs = [
        with_options(run, options)
        for run, options in zip(
            read_runs([runs_folder / "a", runs_folder / "half"], split="val"),
            (OPTIONS, OPTIONS | changes),
            strict=True,
        )
    ]
    comparison = compare_runs(runs, num_resamples=20)
    assert {option.name: option.values for option in comparison.options} == expected
    assert from_json(Comparison, json.loads(json.dumps(to_json(comparison)))) == comparison
    assert describe_options(comparison).endswith(f": {len(expected) or 'none'}.")
    names = [line.split()[0] for line in str(option_table(comparison)).splitlines()[2:]]
    assert names == list(expected)
    rows = run_rows(runs, comparison)
    for name, values in expected.items():
        assert tuple(row[f"option.{name}"] for row in rows) == values
    assert [row["run"] for row in rows] == ["a", "half"]
    assert rows[0]["ap50_difference"] is None
    assert rows[1]["ap50_verdict"] == comparison.differences[0].ap50.verdict


def test_a_report_without_options_is_named(runs_folder: Path) -> None:
    first, second = read_runs([runs_folder / "a", runs_folder / "half"], split="val")
    comparison = compare_runs([with_options(first, OPTIONS), second], num_resamples=20)
    assert comparison.options == ()
    assert "Those of half are unknown: evaluate the checkpoint again" in describe_options(comparison)


CONVERGENCE = Convergence(
    planned_epochs=30,
    epochs=tuple(range(12)),
    ap=(0.1,) * 12,
    ap50=(0.2,) * 12,
    hours=3.5,
    training_hours=3.25,
    stopped_early=True,
    best_epoch=11,
    best_ap=0.1,
    still_rising=None,
)


def with_facts(run: ComparedRun, number: int) -> ComparedRun:
    """A run with a name, a size, a log and an interval; every third one lacks the last two."""
    is_known = number % 3 < 2
    provenance = dataclasses.replace(
        run.report.provenance,
        model=ModelInfo(name=f"faster_rcnn-net{number}", parameters=4_512_345 * (number + 1)),
        image_size_hw=(224, 224 + 32 * number),
    )
    report = dataclasses.replace(
        run.report,
        provenance=provenance,
        convergence=CONVERGENCE if is_known else None,
        intervals=run.report.intervals if is_known else None,
    )
    return dataclasses.replace(run, name=f"run_{number}", report=report)


@pytest.mark.parametrize("num_runs", [2, 12])
def test_the_table_of_models_has_a_row_a_run(runs_folder: Path, num_runs: int) -> None:
    base, _ = read_runs([runs_folder / "half", runs_folder / "a"], split="val")
    runs = [with_facts(base, number) for number in range(num_runs)]
    comparison = compare_runs(runs, num_resamples=5)
    assert from_json(Comparison, json.loads(json.dumps(to_json(comparison)))) == comparison
    table, by_class = model_tables(comparison)
    assert table.heads[1:] == [
        *("model", "parameters, M", "input, px", "epochs", "training, hours"),
        *("mAP50", "95% interval of mAP50", "mAP"),
    ]
    assert tuple(by_class.heads[1:]) == base.report.class_names
    rows = [[cell.text for cell in row] for row in table.rows]
    assert len(rows) == num_runs
    ends, summary = base.report.intervals.ap50, base.report.summary
    interval = f"{ends.low:.3f} to {ends.high:.3f}"
    assert rows[0] == [
        *("run_0", "faster_rcnn-net0", "4.5", "224", "12", "3.25"),
        *(f"{summary.ap50:.3f}", interval, f"{summary.ap:.3f}"),
    ]
    assert rows[1][3] == "224 x 256"
    assert [row[0].text for row in by_class.rows] == [row[0] for row in rows]
    for cell, entry in zip(by_class.rows[0][1:], base.report.classes, strict=True):
        assert cell.text == (DASH if entry.metrics.ap50 is None else f"{entry.metrics.ap50:.3f}")
    for row in rows[2::3]:
        assert (row[4], row[5], row[7]) == (DASH,) * 3
    csv_rows = run_rows(runs, comparison)
    assert (csv_rows[1]["parameters"], csv_rows[1]["input_width_px"]) == (9_024_690, 256)
    assert (csv_rows[0]["epochs"], csv_rows[0]["training_hours"], csv_rows[0]["hours"]) == (12, 3.25, 3.5)
    assert (csv_rows[0]["ap50_low"], csv_rows[0]["ap50_high"]) == (ends.low, ends.high)
    for entry in base.report.classes:
        assert csv_rows[0][f"ap50.{entry.metrics.name}"] == entry.metrics.ap50
    assert all(csv_rows[number]["training_hours"] is None for number in range(2, num_runs, 3))
    latex = format_latex([table])
    assert latex.count(r"faster\_rcnn") == num_runs
    assert interval in latex


def test_a_comparison_of_an_older_version_is_read(runs_folder: Path) -> None:
    comparison = compare_runs(
        read_runs([runs_folder / "a", runs_folder / "half"], split="val"), num_resamples=5
    )
    content = to_json(comparison)
    for run in content["runs"]:
        for name in ("parameters", "image_size_hw", "epochs", "training_hours", "ap50_interval"):
            del run[name]
    older = from_json(Comparison, content)
    texts = [cell.text for cell in model_tables(older)[0].rows[0]]
    assert texts[2:6] == [DASH] * 4
    assert texts[6] == f"{comparison.runs[0].ap50:.3f}"


def with_options(run: ComparedRun, options: dict) -> ComparedRun:
    provenance = dataclasses.replace(run.report.provenance, options=options)
    return dataclasses.replace(run, report=dataclasses.replace(run.report, provenance=provenance))


def test_the_images_shown_are_those_with_the_largest_difference(runs_folder: Path) -> None:
    runs = read_runs([runs_folder / "a", runs_folder / "half"], split="val")
    chosen = images_that_differ(runs, 5)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 5
    assert images_that_differ([runs[0], runs[0]], 3) == [0, 1, 2]
    for position in chosen:
        kept = [(run.kept.detections.image == position).sum() for run in runs]
        assert kept[0] != kept[1]


@pytest.mark.slow
def test_all_files_of_a_comparison(runs_folder: Path, tmp_path: Path) -> None:
    runs = read_runs([runs_folder / "a", runs_folder / "half"], split="val")
    comparison = write_comparison(runs, tmp_path / "comparison.json")
    content = json.loads((tmp_path / "comparison.json").read_text())
    del content["seal"]
    assert from_json(Comparison, content) == comparison
    names = ("map_by_epoch", "class_ap50_bars", "confusion_1")
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == {
        *("images.png", "runs.csv", "classes.csv"),
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")),
    }
    width, height = Image.open(tmp_path / "comparison" / "images.png").size
    assert width > 3 * 360
    assert height > 7 * 360
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "AP50 of half against a" in page
    assert "worse" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_reports_of_other_splits_and_of_one_name(runs_folder: Path) -> None:
    runs = read_runs([runs_folder / "a" / "evaluation_test.json", runs_folder / "a"], split="val")
    assert [run.name for run in runs] == ["evaluation_test", "a"]
    same = read_runs([runs_folder / "a", runs_folder / "a"], split="val")
    assert [run.name for run in same] == ["a (1)", "a (2)"]


def test_what_cannot_be_compared_is_refused(runs_folder: Path) -> None:
    with pytest.raises(DataError, match="at least two runs, got 1"):
        read_runs([runs_folder / "a"], split="val")
    with pytest.raises(DataError, match=r"other/report\.json: not of the same boxes as .*a/report\.json"):
        read_runs([runs_folder / "a", runs_folder / "other"], split="val")
    with pytest.raises(DataError, match=r"copy: has no evaluation_test\.json\. Make it with deim evaluate"):
        read_runs([runs_folder / "a", runs_folder / "copy"], split="test")
