"""The charts of a report, drawn from its numbers alone, as PNG and SVG."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deim.files import count
from deim.metrics.bootstrap import Interval
from deim.metrics.confusion import Confusion
from deim.report.draw import short_names
from deim.report.palette import BLUE, CHART_STYLE, GRAY, RED, chart_color, line_style
from deim.report.schema import Report

WIDTH = 8.0
"""Inches; a column of a printed page."""
PNG_DPI = 150
LEGEND_LINE = 0.22
"""Height of one line of a legend, in inches."""
MIN_CELL = 0.42
"""Side of a cell of a confusion matrix, in inches; smaller cells get no counts."""
LONGEST_MATRIX = 40.0
"""Inches; the cells of a matrix with very many classes shrink instead."""
ON_WHITE: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""Box around a text that lines pass behind."""
POINT_STYLE: Any = {"markersize": 8, "markeredgecolor": "black", "clip_on": False}

Draw = Callable[[Figure], None]


@contextmanager
def chart_figure(draw: Draw, *, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Draw a chart of a size in inches, to save it while the style of all charts holds."""
    with mpl.rc_context(CHART_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is done; each file would repeat it
        yield figure


def save_chart(draw: Draw, path: Path, *, height: float, width: float = WIDTH) -> Path:
    """Draw a chart of a size in inches, write it as PNG and SVG, and return the path of the SVG.

    Args:
        draw: Draws onto an empty figure.
        path: Without suffix.
        height: In inches.
        width: In inches.
    """
    with chart_figure(draw, height=height, width=width) as figure:
        figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path.with_suffix(".svg")


def draw_report_charts(report: Report, folder: Path) -> dict[str, Path]:
    """Draw all charts that a report has the numbers for; return the path of each SVG by its title."""

    def save(draw: Callable[[Figure, Report], None], name: str, height: float) -> Path:
        return save_chart(lambda figure: draw(figure, report), folder / name, height=height)

    legend_height = max(5.0, height_of_legend(len(report.classes)))
    paths = {
        "AP50 of each class": save_class_ap50([("", report)], folder / "class_ap50"),
        "Precision and recall": save(_precision_recall, "precision_recall", legend_height),
        "Confusion of classes": save_confusions([("", report.confusion)], folder / "confusion"),
        "Escapes against overkill": save(_escapes, "escapes", 4.6),
        "Kinds of errors": save(_errors, "errors", 3.6),
    }
    if report.convergence is not None and len(report.convergence.epochs) > 1:
        paths["Validation score by epoch"] = save(_convergence, "convergence", 4.2)
    return paths


def chart_names(names: Sequence[str], *, kind: str = "class") -> tuple[str, ...]:
    """Shorten names for charts, see `short_names`."""
    # Matplotlib omits labels that begin with `_` from legends, but not after a space without width.
    return tuple(f"\u200b{name}" if name.startswith("_") else name for name in short_names(names, kind=kind))


def height_of_legend(num_lines: int) -> float:
    """Return the height in inches of a chart that a legend of so many lines fits into."""
    return 0.6 + LEGEND_LINE * num_lines


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Put a sentence where a chart has no data."""
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GRAY)
    axes.set_xticks([])
    axes.set_yticks([])


def legend_or_reason(axes: Axes, why_empty: str) -> None:
    """Put the legend on the right of the axes or, if nothing was drawn, the reason in their middle."""
    if axes.lines or axes.patches:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        say_nothing_to_show(axes, why_empty)


@dataclass(frozen=True, kw_only=True, slots=True)
class BarSeries:
    """One bar for each of N rows, none where the value is None."""

    values: Sequence[float | None]
    color: Any
    label: str = ""
    intervals: Sequence[Interval | None] = ()
    """N intervals, drawn as lines; empty for none."""
    reasons: Sequence[str] = ()
    """N texts in place of missing bars; empty for `no ground truth`."""
    number_format: str = "{:.3f}"


def draw_bars(axes: Axes, rows: Sequence[str], series: Sequence[BarSeries]) -> None:
    """Draw horizontal bars with their numbers in N labeled rows, those of several series side by side."""
    values = [value for entry in series for value in entry.values if value is not None]
    most = max([*values, *(item.high for entry in series for item in entry.intervals if item)], default=0)
    most = most or 1.0
    height = 0.8 / len(series)
    for index, entry in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * height
        for position, value in enumerate(entry.values):
            place = position + offset
            if value is None:
                text = entry.reasons[position] if entry.reasons else "no ground truth"
                axes.text(0.01 * most, place, text, va="center", color=GRAY, bbox=ON_WHITE, zorder=4)
                continue
            axes.barh(place, value, height=0.8 * height, color=entry.color)
            ends = entry.intervals[position] if entry.intervals else None
            if ends:
                axes.plot([ends.low, ends.high], [place, place], color="black", linewidth=1.2)
            right = max(value, ends.high if ends else 0.0, 0.0) + 0.015 * most
            text = entry.number_format.format(value)
            axes.text(right, place, text, va="center", fontsize=8, bbox=ON_WHITE, zorder=4)
        if entry.label:
            axes.barh(0, 0, color=entry.color, label=entry.label)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(min([0.0, *values]), 1.15 * most)
    axes.grid(visible=False, axis="y")


def save_confusions(confusions: Sequence[tuple[str, Confusion]], path: Path) -> Path:
    """Draw confusion matrices of the same classes below their titles: counts, colored by share of the row."""
    labels = confusions[0][1].labels
    names = [*chart_names(labels[:-1]), labels[-1]]
    most = max(max(map(max, confusion.counts)) for _, confusion in confusions)
    # A digit of 8 points is 0.07 inches wide, a letter of 10 points 0.08.
    cell = min(max(MIN_CELL, 0.14 + 0.07 * len(str(most))), LONGEST_MATRIX / len(names))
    side, beside = cell * len(names), 0.5 + 0.08 * max(map(len, names))
    draw = partial(_draw_confusions, confusions=confusions, names=names, has_counts=cell >= MIN_CELL)
    height = (side + beside + 0.6) * len(confusions)
    return save_chart(draw, path, width=max(WIDTH, side + beside + 1.6), height=height)


def _draw_confusions(
    figure: Figure, confusions: Sequence[tuple[str, Confusion]], names: Sequence[str], *, has_counts: bool
) -> None:
    grid = figure.subplots(len(confusions), squeeze=False)[:, 0]
    for axes, (title, confusion) in zip(grid, confusions, strict=True):
        percent = np.nan_to_num(np.array(confusion.row_percent, dtype=np.float64))  # None is NaN
        heat = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted as (last column: missed)")
        axes.set_ylabel("ground truth\n(last row: nothing there)")
        axes.set_title(title or "Boxes by true and predicted class, IoU 0.5")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in np.ndindex(percent.shape) if has_counts else ():
            number = confusion.counts[row][column]
            color = "white" if percent[row, column] > 55 else "black" if number else GRAY
            if not row == column == len(names) - 1:
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(heat, ax=grid.tolist(), label="% of the row", shrink=0.8, aspect=30 * len(confusions))


def save_class_ap50(reports: Sequence[tuple[str, Report]], path: Path) -> Path:
    """Draw AP50 of each class as bars, of several named reports on the same images; see `save_chart`."""
    height = 1.6 + len(reports[0][1].classes) * (0.22 + 0.2 * len(reports))
    return save_chart(partial(_class_ap50, reports=reports), path, height=height)


def _class_ap50(figure: Figure, reports: Sequence[tuple[str, Report]]) -> None:
    axes = figure.subplots()
    report = reports[0][1]
    labels = [
        f"{name}\nn = {row.metrics.num_boxes} in {count('image', row.metrics.num_images)}"
        for name, row in zip(chart_names(report.class_names), report.classes, strict=True)
    ]
    is_alone = len(reports) == 1
    series = [
        BarSeries(
            values=[row.metrics.ap50 for row in other.classes],
            color=BLUE if is_alone else chart_color(index),
            label="" if is_alone else name,
            intervals=[row.ap50_interval for row in other.classes],
        )
        for index, (name, other) in enumerate(reports)
    ]
    draw_bars(axes, labels, series)
    axes.set_xlim(0, 1.12)  # room for the numbers
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines.bottom.set_bounds(0, 1)
    axes.set_xlabel("AP at IoU 0.50" + (", lines: 95 % intervals" if report.intervals else ""))
    axes.set_title("AP50 of each class")
    ap50 = report.summary.ap50
    if not is_alone:
        legend_or_reason(axes, "no class")
    elif ap50 is not None:
        axes.axvline(ap50, color=RED, linestyle="--", linewidth=1)
        axes.set_title(f"AP50 of each class; the mean, {ap50:.3f}, is dashed")


def _precision_recall(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("recall: share of the boxes that are found")
    axes.set_ylabel("precision: share of the detections that are correct")
    axes.set_title("Precision and recall at IoU 0.50; dots: operating points")
    names = chart_names(report.class_names)
    for index, row in enumerate(report.classes):
        curve, counts, color = row.precision_recall, row.counts, chart_color(index)
        if curve is None:
            continue
        axes.plot(
            [0.0, *curve.recall],
            [curve.precision[0], *curve.precision],
            color=color,
            linestyle=line_style(index),
            label=f"{names[index]} (n = {row.metrics.num_boxes})",
        )
        if counts.precision is not None and counts.recall is not None:
            axes.plot(counts.recall, counts.precision, "o", color=color, **POINT_STYLE)
    legend_or_reason(axes, "no class has both ground truth and detections")


def _escapes(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    level, points = report.image_level, report.operating_points
    curve, here = level.curve, level.at_operating_points
    axes.set_title("Escapes against overkill as one threshold for all classes falls")
    axes.set_xlabel(f"overkill: % of the good images with a box (n = {here.num_good})")
    axes.set_ylabel(f"escapes: % of the defective images\nwithout a hit (n = {here.num_defective})")
    if not here.num_defective or not here.num_good:
        lacks = "defective" if not here.num_defective else "good"
        say_nothing_to_show(axes, f"the split has no {lacks} image")
        return
    overkill, escapes = (
        100 * np.array(rates, dtype=np.float64) for rates in (curve.overkill_rate, curve.escape_rate)
    )
    axes.plot(overkill, escapes, color=BLUE, drawstyle="steps-post", label="one threshold for all classes")
    places = [("operating points of the classes", here, "o", BLUE)]
    if level.at_escape_threshold is not None:
        name = f"threshold {points.escape_threshold:.3f}, for few escapes"
        places.append((name, level.at_escape_threshold, "s", RED))
    for name, rates, marker, color in places:
        place = 100 * np.array([rates.overkill_rate, rates.escape_rate], dtype=np.float64)
        axes.plot(*place, marker, label=name, color=color, **POINT_STYLE)
    axes.axhline(100 * points.max_escape_rate, color=RED, linestyle="--", linewidth=1)
    axes.set_xlim(-1, 101)
    axes.set_ylim(-1, 101)
    axes.legend(loc="upper right")


def _errors(figure: Figure, report: Report) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    errors = report.errors
    counts = BarSeries(values=[row.count for row in errors.values()], color=RED, number_format="{:.0f}")
    # With boxes in the ground truth, only a correction of the missed ones can leave none to find.
    reasons = [
        "every box is missed" if name == "missed" and row.count else "no ground truth"
        for name, row in errors.items()
    ]
    deltas = BarSeries(
        values=[None if row.ap50_delta is None else 100 * row.ap50_delta for row in errors.values()],
        color=BLUE,
        number_format="{:.1f}",
        reasons=reasons,
    )
    draw_bars(right, list(errors), [deltas])
    draw_bars(left, list(errors), [counts])
    left.set_title("Errors at the operating points")
    right.set_title("AP50 gained without them")
    left.set_xlabel("boxes")
    right.set_xlabel("points of AP50, all detections")


def _convergence(figure: Figure, report: Report) -> None:
    axes = figure.subplots()
    convergence = report.convergence
    assert convergence is not None
    epochs = np.array(convergence.epochs) + 1
    for name, scores, color in (("mAP50", convergence.ap50, BLUE), ("mAP", convergence.ap, RED)):
        values = np.array(scores, dtype=np.float64)
        known = ~np.isnan(values)
        marker = "o" if known.sum() < 40 else None
        axes.plot(epochs[known], values[known], color=color, label=name, marker=marker, markersize=4)
    best = convergence.best_epoch + 1
    axes.axvline(best, color=GRAY, linestyle="--", linewidth=1, label=f"best mAP, epoch {best}")
    axes.set_xlim(0.5, convergence.planned_epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"epoch, of {convergence.planned_epochs}")
    axes.set_ylabel("score on the validation split")
    axes.set_title("Validation score by epoch")
    legend_or_reason(axes, "no validation")
