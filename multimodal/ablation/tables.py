"""The numbers of the trials as tables for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from deim.report.tables import DASH

NAME_WIDTH = 24
"""Characters of the longest class name that is not cut."""


def format_models(evidence: Mapping[str, Any]) -> str:
    """A row for each model: mAP50 with its interval, of each seed, and what the real text has more.

    Args:
        evidence: From `build_evidence`.
    """
    rows = [["", "mAP50", "95 % interval", "of the seeds", "real text above it"]]
    for model in evidence["models"]:
        seeds = [value for value in model["ap50_of_seeds"] if value is not None]
        spread = f"{min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else ""
        rows.append(
            [
                model["description"],
                _number(model["ap50"]),
                _ends(model["ap50_interval"]),
                spread,
                "" if model["name"] == "text" else _difference(model["text_over_it"]),
            ]
        )
    return _lines(rows)


def format_classes(evidence: Mapping[str, Any]) -> str:
    """A row for each class: AP50 by each model.

    Args:
        evidence: From `build_evidence`.
    """
    models = evidence["models"]
    rows = [["AP50", *(model["name"] for model in models)]]
    for label, row in enumerate(models[0]["classes"]):
        name = row["name"] if len(row["name"]) <= NAME_WIDTH else f"{row['name'][: NAME_WIDTH - 1]}…"
        rows.append([name, *(_number(model["classes"][label]["ap50"]) for model in models)])
    return _lines(rows)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first one on the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )


def _difference(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return DASH
    return f"{found['value']:+.3f}  {found['low']:+.3f} to {found['high']:+.3f}"


def _ends(ends: Sequence[float] | None) -> str:
    return DASH if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
