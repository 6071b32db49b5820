"""Numbers as tables: for the console and as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deim.metrics.bootstrap import Interval
from deim.metrics.coco import ClassMetrics, CocoSummary
from deim.records import to_json
from deim.report.schema import Report

DASH = "\N{EN DASH}"
TABLE_WIDTH = 100
"""Most characters of a line; longer names are cut."""
MAX_NAME_WIDTH = 32


def format_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right_aligned: Sequence[int] | None = None,
    width: int = TABLE_WIDTH,
) -> str:
    """Lay a table out as plain text for the console or a pipe.

    Args:
        headers: N headings.
        rows: N cells each.
        right_aligned: Columns that are aligned right; None for all but the first.
        width: Most characters of a line.

    Returns:
        Lines of equal width, the headings first.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    aligned = range(1, len(headers)) if right_aligned is None else right_aligned
    for index, header in enumerate(headers):
        table.add_column(
            header,
            justify="right" if index in aligned else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=None if index in aligned else MAX_NAME_WIDTH,
        )
    for row in rows:
        table.add_row(*(Text(" ".join(cell.split())) for cell in row))
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(table)
    return text.getvalue().rstrip("\n")


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with some digits; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_interval(interval: Interval | None) -> str:
    """Return the ends of an interval; nothing for None."""
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def format_class_table(report: Report) -> str:
    """Lay the COCO metrics out for the console.

    Returns:
        A row per class and a row `all`. Under `images`, a class has the images with a box of it and `all`
        has every image of the split. A dash stands for a number without ground truth.
    """
    rows = [
        [row.metrics.name, str(row.metrics.num_images), str(row.metrics.num_boxes), *ap_cells(row.metrics)]
        for row in report.classes
    ]
    rows.append(["all", str(report.num_images), str(report.num_boxes), *ap_cells(report.summary)])
    return format_table(
        ["class", "images", "boxes", "AP50", "AP", "AP75", "AR100", "AP S", "AP M", "AP L"], rows
    )


def format_operating_table(report: Report) -> str:
    """Lay the operating points and their counts out for the console: a row per class and a row `all`."""
    thresholds = [entry.threshold for entry in report.operating_points.classes]
    named = [(row.metrics.name, row.counts) for row in report.classes]
    rows = [
        [
            name,
            str(counts.num_boxes),
            *map(format_number, (threshold, counts.precision, counts.recall, counts.f1)),
            *map(str, (counts.tp, counts.fp, counts.fn)),
        ]
        for (name, counts), threshold in zip(
            [*named, ("all", report.counts)], [*thresholds, None], strict=True
        )
    ]
    return format_table(["class", "boxes", "threshold", "precision", "recall", "F1", "TP", "FP", "FN"], rows)


def format_class_csv(report: Report) -> str:
    """Lay all numbers of each class out as CSV: a row per class, numbers in full, None empty."""
    rows = []
    for entry, point in zip(report.classes, report.operating_points.classes, strict=True):
        intervals = {"ap": entry.ap_interval, "ap50": entry.ap50_interval}
        ends: dict[str, Any] = {}
        for name, interval in intervals.items():
            ends[f"{name}_low"] = None if interval is None else interval.low
            ends[f"{name}_high"] = None if interval is None else interval.high
        counts = to_json(entry.counts)
        del counts["num_boxes"]
        threshold = {"threshold": point.threshold, "threshold_origin": point.origin}
        rows.append(to_json(entry.metrics) | ends | threshold | {"threshold_note": point.note} | counts)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def ap_values(metrics: ClassMetrics | CocoSummary) -> tuple[float | None, ...]:
    """Return the AP and AR values in the order of the tables."""
    return (
        metrics.ap50,
        metrics.ap,
        metrics.ap75,
        metrics.ar100,
        metrics.ap_small,
        metrics.ap_medium,
        metrics.ap_large,
    )


def ap_cells(metrics: ClassMetrics | CocoSummary) -> list[str]:
    """Return `ap_values` as text."""
    return [format_number(value) for value in ap_values(metrics)]
