"""The schema of the JSON report, its safe writing, and the table for the console."""

import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path

import pytest

from deim.evaluation.coco_metrics import CocoMetrics, compute_coco_metrics
from deim.evaluation.report import (
    CheckpointInfo,
    DatasetInfo,
    ModelInfo,
    TimePerImage,
    build_report,
    format_class_table,
    installed_versions,
    sha256_of_file,
    write_report,
)

DASH = "\N{EN DASH}"
SUMMARY_KEYS = [
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
]
CLASS_KEYS = [
    *("category_id", "name", "num_images", "num_boxes", "num_predictions"),
    *("ap", "ap50", "ap75", "ar100", "ap_small", "ap_medium", "ap_large", "note"),
]
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


def make_report(metrics: CocoMetrics, **changes: object) -> dict:
    arguments = {
        "created": datetime(2026, 11, 22, 7, 30, tzinfo=timezone(timedelta(hours=2))),
        "split": "val",
        "dataset": DatasetInfo(annotations_file="val.json", sha256="a" * 64),
        "checkpoint": CheckpointInfo(path="outputs/best.pth", sha256="b" * 64, epoch=11, weights="ema"),
        "model": ModelInfo(name="deimv2_s", parameters=9_700_000),
        "image_size_hw": (1024, 768),
        "resize": "stretch",
        "time_per_image_ms": TimePerImage(network=12.5, total=None),
        "device": "cpu",
        "versions": installed_versions(),
        "max_detections": 100,
    }
    return build_report(metrics, **(arguments | changes))


def display_width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def test_schema() -> None:
    report = make_report(make_metrics())
    assert list(report) == [
        "schema_version",
        "created",
        "split",
        "dataset",
        "checkpoint",
        "model",
        "image_size_hw",
        "resize",
        "time_per_image_ms",
        "device",
        "versions",
        "summary",
        "classes",
        "settings",
    ]
    assert report["schema_version"] == 1
    assert report["created"] == "2026-11-22T05:30:00+00:00"
    assert report["dataset"] == {
        "annotations_file": "val.json",
        "sha256": "a" * 64,
        "num_images": 3,
        "num_images_without_boxes": 1,
        "num_boxes": 2,
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
    assert [list(entry) for entry in report["classes"]] == [CLASS_KEYS] * 3
    assert report["settings"] == {"max_detections": 100, "score_threshold": None}


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="created has no time zone"):
        make_report(make_metrics(), created=datetime(2026, 11, 22))


def test_written_report_is_read_back_unchanged(tmp_path: Path) -> None:
    report = make_report(make_metrics(("Loch", "Kratzer ß", "裂纹")))
    path = tmp_path / "new folder" / "report.json"
    write_report(report, path)
    write_report(report, path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert "裂纹" in text
    assert '\n  "split": "val",' in text
    assert text.endswith("}\n")
    assert not any(word in text for word in ("NaN", "Infinity", ": -1"))
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


def test_sha256_of_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(bytes(range(256)) * 5000)
    assert sha256_of_file(path) == sha256(path.read_bytes()).hexdigest()


def test_installed_versions_are_texts() -> None:
    versions = installed_versions()
    assert versions["torch"]
    assert versions["faster_coco_eval"]
    assert versions["python"].startswith("3.")


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


def test_now_is_accepted() -> None:
    report = make_report(make_metrics(), created=datetime.now(UTC), score_threshold=0.01)
    assert report["created"].endswith("+00:00")
    assert report["settings"]["score_threshold"] == 0.01
