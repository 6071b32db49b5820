"""The numbers of each class as tables: for the console and as CSV."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from deim.metrics.coco import ClassMetrics, CocoMetrics, CocoSummary

DASH = "\N{EN DASH}"
MAX_NAME_WIDTH = 32
COLUMNS = (
    ("images", 7),
    ("boxes", 7),
    ("AP50", 7),
    ("AP", 7),
    ("AP75", 7),
    ("AR100", 7),
    ("AP small", 10),
    ("AP medium", 11),
    ("AP large", 10),
)
"""Heads of the number columns and their widths in characters, the gap on the left included."""
OPERATING_COLUMNS = (
    ("boxes", 7),
    ("threshold", 11),
    ("precision", 11),
    ("recall", 8),
    ("F1", 7),
    ("right", 7),
    ("false", 7),
    ("missed", 8),
)


def format_class_table(metrics: CocoMetrics) -> str:
    """Lay the numbers out for the console.

    Args:
        metrics: What `compute_coco_metrics` gave.

    Returns:
        Lines of equal width, at most 120 columns: the heads, a row per class and a row `all`. Under `images`,
        a class has the images with a box of it and `all` has every image of the split. A dash stands for a
        number without ground truth. Long names are cut.
    """
    names = [entry.name for entry in metrics.classes]
    width = min(max(_width(name) for name in ["class", *names]), MAX_NAME_WIDTH)
    rows = [_row("class", [head for head, _ in COLUMNS], name_width=width, columns=COLUMNS)]
    for entry in metrics.classes:
        cells = [str(entry.num_images), str(entry.num_boxes), *_number_cells(entry)]
        rows.append(_row(entry.name, cells, name_width=width, columns=COLUMNS))
    totals = [str(metrics.num_images), str(metrics.num_boxes), *_number_cells(metrics.summary)]
    rows.append(_row("all", totals, name_width=width, columns=COLUMNS))
    return "\n".join(rows)


def format_operating_table(report: Mapping[str, Any]) -> str:
    """Lay the operating points and what they find out for the console.

    Args:
        report: From `build_report`.

    Returns:
        Lines of equal width, at most 120 columns: the heads, a row per class and a row `all`. A dash stands
        for what cannot be told.
    """
    rows = [(entry["name"], entry) for entry in report["classes"]]
    rows.append(("all", {"threshold": None, **report["operating_points"]["all_classes"]}))
    width = min(max(_width(name) for name, _ in [("class", {}), *rows]), MAX_NAME_WIDTH)
    lines = [
        _row("class", [head for head, _ in OPERATING_COLUMNS], name_width=width, columns=OPERATING_COLUMNS)
    ]
    for name, entry in rows:
        cells = [
            str(entry["num_right"] + entry["num_missed"]),
            *(
                DASH if entry[key] is None else f"{entry[key]:.3f}"
                for key in ("threshold", "precision", "recall", "f1")
            ),
            *(str(entry[key]) for key in ("num_right", "num_false", "num_missed")),
        ]
        lines.append(_row(name, cells, name_width=width, columns=OPERATING_COLUMNS))
    return "\n".join(lines)


def format_class_csv(report: Mapping[str, Any]) -> str:
    """Lay all that a report says of each class out as CSV: a row a class, numbers in full, nulls empty.

    Args:
        report: From `build_report`. Of an interval, the two ends become columns with `_low` and `_high`.
    """
    rows = []
    for entry in report["classes"]:
        row: dict[str, Any] = {}
        for key, value in entry.items():
            if key.endswith("_interval"):
                name = key.removesuffix("_interval")
                row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            else:
                row[key] = value
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _number_cells(values: ClassMetrics | CocoSummary) -> list[str]:
    numbers = (
        values.ap50,
        values.ap,
        values.ap75,
        values.ar100,
        values.ap_small,
        values.ap_medium,
        values.ap_large,
    )
    return [DASH if number is None else f"{number:.3f}" for number in numbers]


def _row(name: str, cells: Sequence[str], *, name_width: int, columns: Sequence[tuple[str, int]]) -> str:
    aligned = (cell.rjust(width) for cell, (_, width) in zip(cells, columns, strict=True))
    return _fit(name, name_width) + "".join(aligned)


def _fit(text: str, width: int) -> str:
    """Cut or pad a text to a width in console columns; control characters become blanks."""
    text = "".join(" " if unicodedata.category(one) == "Cc" else one for one in text)
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    # Chinese, Japanese and Korean characters take two columns, combining marks none.
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table for the console: the first column on the left, the others on the right.

    Args:
        headers: Heads of the columns.
        rows: Cells of each row, as many as there are heads.
    """
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (width - _width(cell)) if column == 0 else " " * (width - _width(cell)) + cell
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
