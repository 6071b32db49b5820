"""The schema of the JSON report, what its numbers say together, and its safe writing."""

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deim.errors import DataError
from deim.inference.detection_table import split_results
from deim.metrics.analysis import analyze_split
from deim.report.build import REPORT_KEYS, build_report, read_report, write_report
from deim.report.summary import describe_report
from tests.report.random_reports import make_report, make_scored

SUMMARY_KEYS = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
]
CLASS_KEYS = [
    *("category_id", "name", "num_images", "num_boxes", "num_predictions"),
    *("ap", "ap50", "ap75", "ar100", "ap_small", "ap_medium", "ap_large", "note"),
    *("ap_interval", "ap50_interval", "threshold", "threshold_origin", "threshold_note"),
    *("num_found", "num_right", "num_false", "num_missed", "precision", "recall", "f1"),
]


def numbers_of(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [
            n for item in (value.values() if isinstance(value, dict) else value) for n in numbers_of(item)
        ]
    return [value] if isinstance(value, int | float) else []


def test_schema(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    assert list(report) == list(REPORT_KEYS)
    assert report["schema_version"] == 3
    assert report["dataset"] == {
        "annotations_file": "test.json",
        "sha256": "a" * 64,
        "image_dir": str(tmp_path),
        "normal_class": None,
        "num_images": 24,
        "num_images_without_boxes": report["dataset"]["num_images_without_boxes"],
        "num_boxes": sum(entry["num_boxes"] for entry in report["classes"]),
    }
    assert report["checkpoint"] == {
        "path": "outputs/best.pth",
        "sha256": "b" * 64,
        "epoch": 11,
        "weights": "ema",
    }
    assert report["model"] == {"name": "deimv2_s", "parameters": 9_700_000}
    assert report["image_size_hw"] == [1024, 768]
    assert report["time_per_image_ms"] == {"network": 12.5, "total": None}
    assert set(report["versions"]) == {"deim", "torch", "torchvision", "faster_coco_eval", "python"}
    assert list(report["summary"]) == SUMMARY_KEYS
    assert [list(entry) for entry in report["classes"]] == [CLASS_KEYS] * 7
    assert set(report["intervals"]) == {
        *("level", "method", "num_images", "num_resamples", "seed", "ap", "ap50"),
    }
    assert list(report["errors"]) == [
        *("classification", "localization", "both", "duplicate", "background", "missed"),
    ]
    assert report["convergence"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert -1 not in numbers_of(report)


@pytest.mark.parametrize("options", [{}, {"empty": True}, {"predictions": False}])
def test_the_numbers_agree_with_one_another(tmp_path: Path, options: dict[str, Any]) -> None:
    report = make_report(tmp_path, seed=1, **options)
    counts = np.array(report["confusion"]["counts"])
    for label, entry in enumerate(report["classes"]):
        assert counts[label].sum() == entry["num_boxes"] == entry["num_right"] + entry["num_missed"]
        assert counts[label, label] == entry["num_right"]
        assert entry["num_found"] == entry["num_right"] + entry["num_false"]
        for name in ("ap", "ap50"):
            ends = entry[f"{name}_interval"]
            assert ends is None or ends[0] <= entry[name] <= ends[1]
    total = report["operating_points"]["all_classes"]
    assert total["num_right"] == sum(entry["num_right"] for entry in report["classes"])
    errors = {name: entry["count"] for name, entry in report["errors"].items()}
    missed = errors.pop("missed")
    assert sum(errors.values()) == total["num_false"]
    assert missed <= total["num_missed"]
    assert errors["duplicate"] == report["duplicates"]["num_after"] <= report["duplicates"]["num_before"]
    level = report["image_level"]["at_operating_points"]
    whole = level["num_defective"] + level["num_good"] + level["num_left_out"]
    assert whole == report["dataset"]["num_images"]


def test_no_intervals_without_resamples(tmp_path: Path) -> None:
    report = make_report(tmp_path, num_resamples=0)
    assert report["intervals"] is None
    assert {entry["ap50_interval"] for entry in report["classes"]} == {None}


def test_the_words_name_every_number_with_its_n(tmp_path: Path) -> None:
    report = make_report(tmp_path)
    text = "\n".join(describe_report(report))
    total, level = report["operating_points"]["all_classes"], report["image_level"]["at_operating_points"]
    for part in (
        f"mAP50 {report['summary']['ap50']:.3f}, 95% interval ",
        f"(n = 24 images, {report['dataset']['num_boxes']} boxes)",
        f"best F1, chosen on val, 24 images): {total['num_right']} of {total['num_truth']} boxes found",
        f"escape rate {level['escape_rate']:.1%} ({level['num_escaped']} of {level['num_defective']} def",
        f"overkill rate {level['overkill_rate']:.1%} ({level['num_overkilled']} of {level['num_good']} good",
        "with nms (no box that overlaps a better one by IoU > 0.7); mAP50 with it 0.",
    ):
        assert part in text


@pytest.mark.parametrize("options", [{"empty": True}, {"predictions": False}])
def test_the_words_say_what_cannot_be_told(tmp_path: Path, options: dict[str, Any]) -> None:
    text = "\n".join(describe_report(make_report(tmp_path, **options)))
    assert "None" not in text
    assert "nan" not in text
    if "empty" in options:
        assert "No AP: the split has no ground-truth box (24 images)." in text
        assert "no defective image, so no escape rate" in text
    else:
        assert "0 of " in text


def test_a_time_without_zone_is_refused(tmp_path: Path) -> None:
    scored = make_scored(tmp_path)
    results = split_results(scored.ground_truth, scored.predictions)
    metrics = scored.metrics
    analysis = analyze_split(results, scored.points, num_resamples=0)
    with pytest.raises(ValueError, match="created has no time zone"):
        build_report(metrics, analysis, scored.provenance, created=datetime(2026, 11, 22))
    two_hours_east = datetime(2026, 11, 22, 7, 30, tzinfo=timezone(timedelta(hours=2)))
    report = build_report(metrics, analysis, scored.provenance, created=two_hours_east)
    assert report["created"] == "2026-11-22T05:30:00+00:00"
    assert build_report(metrics, analysis, scored.provenance, created=datetime.now(UTC))["created"].endswith(
        "+00:00"
    )


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report({"schema_version": 1}, path)
    with pytest.raises(DataError, match=r"report\.json: has report version 1, this version reads 3\."):
        read_report(path)
    path.write_text("no json")
    with pytest.raises(DataError, match=r"report\.json: not a readable report"):
        read_report(path)


def test_written_report_is_read_back_unchanged(tmp_path: Path) -> None:
    report = make_report(tmp_path) | {"split": "裂纹"}
    path = tmp_path / "new folder" / "report.json"
    write_report(report, path)
    write_report(report, path)
    text = path.read_text(encoding="utf-8")
    assert read_report(path) == report
    assert '\n  "split": "裂纹",' in text
    assert text.endswith("}\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_report_that_is_no_json_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises((ValueError, TypeError)):
        write_report({"ap": value}, path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_failed_replacement_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"report\.json"):
        write_report({}, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
