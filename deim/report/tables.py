"""The tables of a report: for the page, for the console and as files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from deim.language import ENGLISH, Language
from deim.metrics.bootstrap import Interval, ScoreDifference
from deim.metrics.choose_thresholds import Counts
from deim.metrics.coco import ClassMetrics, CocoSummary
from deim.records import to_json
from deim.report.schema import Report

DASH = "\N{EN DASH}"
TABLE_WIDTH = 100
"""Most characters of a line; longer names are cut."""
MAX_NAME_WIDTH = 40
GAP = 2
"""Spaces between columns."""
CSV_BASES = {"ap_basis": "all raw detections", "counts_basis": "detections after thresholds and NMS"}
"""Columns of every CSV file: what its AP, and its precision, recall, F1 and counts, are computed from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""
    """A second line in small letters, on pages only."""
    is_text: bool = False
    """Text rather than a number: aligned left, may wrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table for a page or the console."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    has_total: bool = False
    """The last row is a total."""
    notes: Sequence[str] = ()
    """Sentences below the table, on pages only."""

    def __str__(self) -> str:
        return format_table(self.heads, [[cell.text for cell in row] for row in self.rows])


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay a table out as lines of equal width for the console or a pipe, the first column aligned left.

    Where there is no room, headers are broken between words. Columns that still do not fit continue below,
    beside the first column.
    """
    heads, *lines = [[" ".join(cell.split()) for cell in row] for row in (headers, *rows)]
    cells = [max(map(cell_len, column), default=0) for column in zip(*lines, strict=True)] or [0] * len(heads)
    widths = [max(pair) for pair in zip(map(cell_len, heads), cells, strict=True)]
    if sum(widths) + GAP * (len(widths) - 1) > TABLE_WIDTH:
        words = [max(map(cell_len, head.split()), default=0) for head in heads]
        widths = [widths[0], *map(max, words[1:], cells[1:])]
    first = min(widths[0], MAX_NAME_WIDTH)
    blocks: list[dict[int, int]] = [{}]
    for column, width in enumerate(widths[1:], start=1):
        room = TABLE_WIDTH - first - sum(blocks[-1].values()) - GAP * len(blocks[-1])
        if blocks[-1] and width + GAP > room:
            blocks.append({})
            room = TABLE_WIDTH - first
        blocks[-1][column] = min(width, room - GAP)
    return "\n\n".join(_format_block(heads, lines, {0: first, **block}) for block in blocks)


def _format_block(heads: Sequence[str], rows: Sequence[Sequence[str]], widths: Mapping[int, int]) -> str:
    """Lay some columns out, whose widths are given by their numbers."""
    table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for column, width in widths.items():
        table.add_column(Text(heads[column]), justify="right" if column else "left", width=width)
    for row in rows:
        table.add_row(*(Text(row[column], no_wrap=True, overflow="ellipsis") for column in widths))
    text = io.StringIO()
    Console(file=text, width=TABLE_WIDTH, color_system=None, force_terminal=False).print(table)
    return text.getvalue().rstrip("\n")


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with some digits; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def number_cell(
    value: float | None,
    ends: Interval | ScoreDifference | None = None,
    *,
    sign: Literal["", "+"] = "",
    language: Language = ENGLISH,
) -> Cell:
    """Build the cell of a number and the ends of its interval, with a plus before positive numbers or not."""
    if value is None:
        return Cell(text=DASH)
    small = ""
    if ends is not None:
        low, high = f"{ends.low:{sign}.3f}", f"{ends.high:{sign}.3f}"
        small = language.text("{low} to {high}", low=low, high=high)
    return Cell(text=f"{value:{sign}.3f}", small=small)


def report_tables(report: Report) -> tuple[Table, Table]:
    """Build the tables of COCO metrics and of operating points."""
    return class_table(report), operating_table(report)


def class_table(report: Report, language: Language = ENGLISH) -> Table:
    """Build the table of COCO metrics: a row per class and a row `all`.

    Under `images`, a class has the images with a box of it and `all` has every image of the split. The basis
    is all raw detections, as COCO has it.
    """
    rows = [
        [
            Cell(text=entry.metrics.name, small=_note(entry.metrics.note, language), is_text=True),
            *_ap_cells(entry.metrics, entry.metrics, (entry.ap50_interval, entry.ap_interval), language),
        ]
        for entry in report.classes
    ]
    intervals, notes = report.intervals, []
    ends = (intervals.ap50, intervals.ap) if intervals else (None, None)
    name = Cell(text=language.text("all"), is_text=True)
    rows.append([name, *_ap_cells(report, report.summary, ends, language)])
    if intervals:
        notes.append(
            language.text(
                "Small numbers: {level} intervals from {resamples} resamples of the {images} images "
                "({method}).",
                level=language.percent(intervals.level, 0),
                resamples=intervals.num_resamples,
                images=intervals.num_images,
                method=language.sentence(intervals.method),
            )
        )
    sizes = ("AP S", "AP M", "AP L")
    recall = language.text("AR{limit}", limit=report.provenance.counted_detections)
    heads = [language.text(head) for head in ("class", "images", "boxes", "AP50", "AP", "AP75")]
    return Table(
        title=language.text("Average precision, over all raw detections, before thresholds and NMS"),
        heads=[*heads, recall, *map(language.text, sizes)],
        rows=rows,
        has_total=True,
        notes=notes,
    )


def operating_table(report: Report, language: Language = ENGLISH) -> Table:
    """Build the table of operating points and their counts: a row per class and a row `all`."""
    points = report.operating_points
    rows = []
    for entry, point in zip(report.classes, points.classes, strict=True):
        note = _note(point.note, language)
        if note and point.origin != "its own boxes":
            origin = language.text(point.origin)
            note = language.text("{note}; threshold: {origin}", note=note, origin=origin)
        name = Cell(text=entry.metrics.name, small=note, is_text=True)
        rows.append([name, *_count_cells(entry.counts, point.threshold)])
    rows.append([Cell(text=language.text("all"), is_text=True), *_count_cells(report.counts, None)])
    heads = ("class", "boxes", "threshold", "precision", "recall", "F1", "TP", "FP", "FN")
    return Table(
        title=language.text("After thresholds and NMS: {origin}", origin=points.describe_origin(language)),
        heads=[language.text(head) for head in heads],
        rows=rows,
        has_total=True,
        notes=[language.text("TP: boxes found; FP: false boxes; FN: missed boxes.")],
    )


def _note(note: str | None, language: Language) -> str:
    """Translate the parts of a note; empty for None."""
    return "; ".join(map(language.sentence, note.split("; "))) if note else ""


def class_rows(report: Report) -> list[Mapping[str, object]]:
    """Return all numbers of each class by name, for a CSV file."""
    rows: list[Mapping[str, object]] = []
    for entry, point in zip(report.classes, report.operating_points.classes, strict=True):
        row = to_json(entry.metrics)
        for name, ends in (("ap", entry.ap_interval), ("ap50", entry.ap50_interval)):
            row |= {f"{name}_low": ends.low if ends else None, f"{name}_high": ends.high if ends else None}
        row |= {"threshold": point.threshold, "threshold_origin": point.origin}
        row |= {"threshold_note": point.note}
        rows.append({**row, **to_json(entry.counts), **CSV_BASES})
    return rows


def _ap_cells(
    counts: ClassMetrics | Report,
    metrics: ClassMetrics | CocoSummary,
    intervals: tuple[Interval | None, Interval | None],
    language: Language,
) -> list[Cell]:
    others = (metrics.ap75, metrics.ar100, metrics.ap_small, metrics.ap_medium, metrics.ap_large)
    return [
        Cell(text=str(counts.num_images)),
        Cell(text=str(counts.num_boxes)),
        number_cell(metrics.ap50, intervals[0], language=language),
        number_cell(metrics.ap, intervals[1], language=language),
        *map(number_cell, others),
    ]


def _count_cells(counts: Counts, threshold: float | None) -> list[Cell]:
    return [
        Cell(text=str(counts.num_boxes)),
        *map(number_cell, (threshold, counts.precision, counts.recall, counts.f1)),
        *(Cell(text=str(number)) for number in (counts.tp, counts.fp, counts.fn)),
    ]
