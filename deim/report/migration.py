"""Reports of the first version (schema 3) in the form of this one."""

from collections.abc import Mapping
from typing import Any

OLD_REPORT_VERSION = 3
IMAGE_LEVEL_KEYS = {"num_left_out": "num_ignored", "false_boxes_per_good_image": "fp_per_good_image"}
ERROR_NAMES = {"localisation": "localization"}
COUNT_KEYS = {
    "num_truth": "num_boxes",
    "num_found": "num_detections",
    "num_right": "tp",
    "num_false": "fp",
    "num_missed": "fn",
}
PROVENANCE_KEYS = (
    *("split", "checkpoint", "model", "image_size_hw", "resize", "tiles", "time_per_image_ms"),
    *("device", "versions", "max_detections"),
)
DATASET_KEYS = ("annotations_file", "sha256", "image_dir", "normal_class")
METRIC_KEYS = (
    *("category_id", "name", "num_images", "num_boxes", "num_predictions"),
    *("ap", "ap50", "ap75", "ar100", "ap_small", "ap_medium", "ap_large", "note"),
)


def migrate_report(old: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a report of schema version 3 into one of version 4; any other is returned as it is.

    Args:
        old: From `json.loads`; not changed.
    """
    if old.get("schema_version") != OLD_REPORT_VERSION:
        return dict(old)
    rows, points, level = old["classes"], dict(old["operating_points"]), old["image_level"]
    counts = points.pop("all_classes")
    points["nms"] = points.pop("suppression", None) or points.get("nms")
    points["classes"] = [
        {
            "name": row["name"],
            "threshold": row["threshold"],
            "origin": row["threshold_origin"],
            "note": row["threshold_note"],
        }
        for row in rows
    ]
    intervals = old["intervals"]
    if intervals is not None:
        intervals = {**intervals, **{key: _interval(intervals[key]) for key in ("ap", "ap50")}}
    dataset = old["dataset"]
    return {
        "schema_version": 4,
        "created": old["created"],
        "provenance": {key: old.get(key) for key in PROVENANCE_KEYS}
        | {"dataset": {key: dataset[key] for key in DATASET_KEYS}},
        **{key: dataset[key] for key in ("num_images", "num_images_without_boxes", "num_boxes")},
        "summary": old["summary"],
        "intervals": intervals,
        "classes": [
            _class_report(row, curve) for row, curve in zip(rows, old["precision_recall"], strict=True)
        ],
        "operating_points": points,
        "counts": _rename(counts, COUNT_KEYS),
        "image_level": {
            key: None if value is None else _rename(value, IMAGE_LEVEL_KEYS) for key, value in level.items()
        },
        "confusion": old["confusion"],
        "errors": {
            ERROR_NAMES.get(name, name): _rename(entry, {"ap50_gain": "ap50_delta"})
            for name, entry in old["errors"].items()
        },
        "duplicates": old["duplicates"],
        "convergence": _convergence(old.get("convergence")),
        "task_section": _task_section(old.get("fusion"), old.get("text_evidence")),
        "files": old["files"],
    }


def _class_report(row: Mapping[str, Any], curve: Any) -> dict[str, Any]:
    counts = {"num_boxes": row["num_right"] + row["num_missed"]}
    counts |= {new: row[old] for old, new in COUNT_KEYS.items() if old in row}
    return {
        "metrics": {key: row[key] for key in METRIC_KEYS},
        "ap_interval": _interval(row["ap_interval"]),
        "ap50_interval": _interval(row["ap50_interval"]),
        "counts": counts | {key: row[key] for key in ("precision", "recall", "f1")},
        "precision_recall": curve,
    }


def _convergence(old: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if old is None:
        return None
    curve = old["curve"]
    return {
        **{key: old[key] for key in ("planned_epochs", "hours", "stopped_early", "best_epoch")},
        **{key: curve[key] for key in ("epochs", "ap", "ap50")},
        "best_ap": old["best_score"],
        "still_rising": old["still_rising"],
    }


def _task_section(fusion: Mapping[str, Any] | None, ablation: Any) -> dict[str, Any] | None:
    if fusion is None and ablation is None:
        return None
    data = dict(fusion or {})
    summary, images = data.pop("in_words", []), data.pop("text_maps", [])
    if "confusion" in data:
        data["confusion"] = [_rename(entry, {"taken_for": "predicted_as"}) for entry in data["confusion"]]
    if ablation is not None:
        data["ablation"] = ablation
        summary = [*summary, *ablation["in_words"]]
    return {
        "task": "text_fusion",
        "title": "Text fusion",
        "summary": summary,
        "data": data,
        "images": images,
    }


def _interval(ends: Any) -> dict[str, Any] | None:
    return None if ends is None else {"low": ends[0], "high": ends[1]}


def _rename(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in entry.items()}
