"""Keys that had other names in the first version, and its files in the form of this one."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

FIRST_FUSION_BLOCK: Final = "multimodal"
"""Block of text fusion in the first version, which had no block `task`."""

RENAMED_KEYS: Final[Mapping[str, str]] = {
    FIRST_FUSION_BLOCK: "task",
    "evaluation.suppression": "evaluation.nms",
    "recipe.max_refused_steps": "recipe.max_skipped_steps",
}
"""Dotted keys of the config in the first version and now."""

RENAMED_PROGRESS: Final[Mapping[str, str]] = {
    "gains": "early_stopping",
    "refused_in_a_row": "skipped_in_a_row",
    "refused_images": "skipped_images",
}
"""Keys of the progress of a run in a checkpoint in the first version and now."""

RENAMED_TENSORS: Final[Mapping[str, str]] = {
    "class_head_change.weight": "class_head_delta.weight",
    "class_head_change.bias": "class_head_delta.bias",
    "head.centre": "head.center",
}
"""Weights of text fusion in the first version and now."""


def describe_renamed_key(key: str, value: object) -> str | None:
    """Return what to do about a key of the first version; None for any other key.

    Args:
        key: Dotted key of the config.
        value: What stands there; nodes if it is a block.
    """
    if key not in RENAMED_KEYS:
        return None
    has_no_type = isinstance(value, dict) and "type" not in value
    addition = " and give it 'type: text_fusion'" if key == FIRST_FUSION_BLOCK and has_no_type else ""
    return f"'{key}' is now '{RENAMED_KEYS[key]}'. Rename it{addition}."


def migrate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the config of a first-version checkpoint into one of this version.

    Args:
        config: Plain types; not changed. A config of this version is returned as it is.
    """
    migrated = deepcopy(dict(config))
    fusion = migrated.pop(FIRST_FUSION_BLOCK, None)
    if "task" not in migrated:
        migrated["task"] = {"type": "detection"} if fusion is None else {"type": "text_fusion", **fusion}
    for old, new in RENAMED_KEYS.items():
        block, _, old_name = old.rpartition(".")
        if block:
            _rename(migrated.get(block), old_name, new.rpartition(".")[2])
    scaling = migrated.get("data", {}).get("scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "bytes":
        scaling["type"] = "uint8"
    return migrated


def migrate_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the content of a checkpoint of format 1 into one of format 2.

    Args:
        content: What the file holds; not changed. Tensors are shared, not copied.
    """
    migrated = dict(content)
    config = migrate_config(migrated["config"])
    fusion, ema = migrated.pop("fusion", None), migrated.get("ema", {})
    migrated |= {
        "format": 2,
        "model": _migrate_weights(migrated.get("model", {})),
        "ema": {**ema, "model": _migrate_weights(ema.get("model", {}))},
        "config": config,
        "task": config["task"]["type"],
        "task_state": {} if fusion is None else _migrate_fusion(fusion),
        "best": _migrate_best(migrated.get("best")),
        "operating_points": migrate_operating_points(migrated.get("operating_points")),
    }
    if "progress" in migrated:
        batches = migrated.pop("batches")
        migrated["resume"] = {
            **{key: migrated.pop(key) for key in ("optimizer", "scaler", "random", "fingerprints")},
            "progress": _migrate_progress(migrated.pop("progress")),
            "batch_size": batches["images of a step"],
            "steps_per_epoch": batches["steps of an epoch"],
        }
    return migrated


def migrate_operating_points(points: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Turn the operating points of a first-version checkpoint into those of this version.

    Args:
        points: Plain types; None if there are none.
    """
    if points is None:
        return None
    migrated = dict(points)
    _rename(migrated, "suppression", "nms")
    return migrated


def _migrate_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED_TENSORS.get(name, name): tensor for name, tensor in state.items()}


def _migrate_fusion(fusion: Mapping[str, Any]) -> dict[str, Any]:
    detector = dict(fusion["detector"])
    detector["operating_points"] = migrate_operating_points(detector.get("operating_points"))
    confused = [_with_renamed(pair, "taken_for", "predicted_as") for pair in fusion.get("confused", ())]
    return {**fusion, "detector": detector, "confused": confused}


def _migrate_progress(progress: Mapping[str, Any]) -> dict[str, Any]:
    migrated = deepcopy(dict(progress))
    for old, new in RENAMED_PROGRESS.items():
        _rename(migrated, old, new)
    _rename(migrated["sums"], "num_refused", "num_skipped")
    migrated["best"] = _migrate_best(migrated["best"])
    return migrated


def _migrate_best(best: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the score of best.pth, whose metric is always AP now."""
    return {key: best[key] for key in ("score", "epoch", "weights")} if best else None


def _rename(block: Any, old: str, new: str) -> None:
    if isinstance(block, dict) and old in block:
        block[new] = block.pop(old)


def _with_renamed(entry: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    renamed = dict(entry)
    _rename(renamed, old, new)
    return renamed
