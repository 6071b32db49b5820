"""Files of the first version in the form of this one: plain types in, plain types out, nothing is changed.

Keys that no record of this version has may stay: `from_json` drops them.
"""

from collections.abc import Mapping
from typing import Any, Final

FIRST_REPORT_VERSION: Final = 3
FIRST_FUSION_BLOCK: Final = "multimodal"
"""Block of text fusion in the first version, which had no block `task`."""

MIGRATION_ERRORS: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the functions of this file raise for a file that was edited by hand."""

OPTION_NAMES: Final = {
    FIRST_FUSION_BLOCK: "task",
    "evaluation.suppression": "evaluation.nms",
    "recipe.max_refused_steps": "recipe.max_skipped_steps",
}
"""Dotted keys of the config, then and now."""

IGNORED_OPTIONS: Final = ("model.name",)
"""Dotted keys of older configs that follow from other options now: they may be given, and change nothing."""

CHECKPOINT_NAMES: Final = {
    "suppression": "nms",
    "max_refused_steps": "max_skipped_steps",
    "gains": "early_stopping",
    "refused_in_a_row": "skipped_in_a_row",
    "refused_images": "skipped_images",
    "num_refused": "num_skipped",
    "taken_for": "predicted_as",
    "class_head_change.weight": "class_head_delta.weight",
    "class_head_change.bias": "class_head_delta.bias",
    "head.centre": "head.center",
}
"""Keys and tensors anywhere in a checkpoint, then and now."""

REPORT_NAMES: Final = {
    "suppression": "nms",
    "num_truth": "num_boxes",
    "num_found": "num_detections",
    "num_right": "tp",
    "num_false": "fp",
    "num_missed": "fn",
    "num_left_out": "num_ignored",
    "false_boxes_per_good_image": "fp_per_good_image",
    "localisation": "localization",
    "ap50_gain": "ap50_delta",
    "best_score": "best_ap",
}
"""Keys anywhere in a report except in its sections on text, then and now."""


def describe_renamed_key(key: str, value: object) -> str | None:
    """Return what to do about a dotted key of the first version and its value; None for any other key."""
    if key not in OPTION_NAMES:
        return None
    has_no_type = isinstance(value, dict) and "type" not in value
    addition = " and give it 'type: text_fusion'" if key == FIRST_FUSION_BLOCK and has_no_type else ""
    return f"'{key}' is now '{OPTION_NAMES[key]}'. Rename it{addition}."


def migrate_config(config: Any) -> Any:
    """Turn the config of a first-version checkpoint into one of this version, which itself stays the same."""
    migrated = _rename(config, CHECKPOINT_NAMES)
    fusion = migrated.pop(FIRST_FUSION_BLOCK, None)
    if "task" not in migrated:
        migrated["task"] = {"type": "detection"} if fusion is None else {"type": "text_fusion", **fusion}
    scaling = migrated.get("data", {}).get("scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "bytes":
        scaling["type"] = "uint8"
    return migrated


def migrate_checkpoint(content: Any) -> Any:
    """Turn a checkpoint of format 1 into one of format 2; tensors are shared, not copied."""
    migrated = _rename(content, CHECKPOINT_NAMES)
    config = migrate_config(migrated["config"])
    migrated |= {
        "format": 2,
        "config": config,
        "task": config["task"]["type"],
        "task_state": migrated.pop("fusion", None) or {},
        "best": migrated.get("best") or None,
    }
    if "progress" in migrated:
        batches, progress = migrated.pop("batches"), migrated["progress"]
        progress["best"] = progress["best"] or None
        keys = ("optimizer", "scaler", "random", "fingerprints", "progress")
        migrated["resume"] = {
            **{key: migrated.pop(key) for key in keys},
            "batch_size": batches["images of a step"],
            "steps_per_epoch": batches["steps of an epoch"],
        }
    return migrated


def migrate_report(content: Any) -> Any:
    """Turn a report of schema version 3 into one of version 4; any other is returned as it is."""
    if content.get("schema_version") != FIRST_REPORT_VERSION:
        return content
    old = _rename(content, REPORT_NAMES)
    rows, points, intervals = old["classes"], old["operating_points"], old["intervals"]
    convergence = old.get("convergence")
    points["classes"] = [
        {
            "name": row["name"],
            "threshold": row["threshold"],
            "origin": row["threshold_origin"],
            "note": row["threshold_note"],
        }
        for row in rows
    ]
    if intervals is not None:
        intervals |= {key: _interval(intervals[key]) for key in ("ap", "ap50")}
    if convergence is not None:
        convergence |= convergence["curve"]
    kept = ("created", "summary", "image_level", "confusion", "errors", "duplicates", "files")
    return {
        "schema_version": 4,
        **{key: old[key] for key in kept},
        **{key: old["dataset"][key] for key in ("num_images", "num_images_without_boxes", "num_boxes")},
        "provenance": old,
        "intervals": intervals,
        "classes": [
            {
                "metrics": row,
                "ap_interval": _interval(row["ap_interval"]),
                "ap50_interval": _interval(row["ap50_interval"]),
                "counts": row | {"num_boxes": row["tp"] + row["fn"]},
                "precision_recall": curve,
            }
            for row, curve in zip(rows, old["precision_recall"], strict=True)
        ],
        "operating_points": points,
        "counts": points["all_classes"],
        "convergence": convergence,
        "task_section": _task_section(content.get("fusion"), content.get("text_evidence")),
    }


def _task_section(fusion: Any, ablation: Any) -> Any:
    if fusion is None and ablation is None:
        return None
    data = _rename(fusion or {}, {"taken_for": "predicted_as"})
    summary, images = data.pop("in_words", []), data.pop("text_maps", [])
    if ablation is not None:
        data["ablation"] = ablation
        summary = [*summary, *ablation["in_words"]]
    return {"task": "text_fusion", "title": "Text fusion", "summary": summary, "data": data, "images": images}


def _interval(ends: Any) -> Any:
    return None if ends is None else {"low": ends[0], "high": ends[1]}


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    """Copy dicts and lists with new names of their keys; everything else is shared."""
    if isinstance(value, Mapping):
        return {names.get(key, key): _rename(item, names) for key, item in value.items()}
    return [_rename(item, names) for item in value] if isinstance(value, list) else value
