"""The charts of a report, drawn from its numbers alone, as PNG, SVG and PDF.

All of them show the detector as it is delivered, with NMS and thresholds; those that follow a threshold move
it after the same NMS. Its COCO metrics over all raw detections stand in a table of their own.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deim.files import write_bytes
from deim.language import ENGLISH, Language
from deim.metrics.bootstrap import Interval
from deim.metrics.confusion import Confusion
from deim.metrics.convergence import Convergence
from deim.report.draw import short_names
from deim.report.palette import BLUE, CHART_STYLE, GRAY, RED, chart_color, line_style
from deim.report.schema import Report

WIDTH = 5.6
"""Inches: a column of the page at its natural size, and still legible on a phone."""
PNG_DPI = 200
LEGEND_LINE, LEGEND_COLUMNS, LONGEST_HALF = 0.2, 2, 30
"""Height of a line of a legend in inches, and its columns where no label has more characters than this."""
MIN_CELL = 0.42
"""Side of a cell of a confusion matrix, in inches; smaller cells get no counts."""
LONGEST_MATRIX = 40.0
"""Inches; the cells of a matrix with very many classes shrink instead."""
ON_WHITE: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""Box around a text that lines pass behind."""
POINT_STYLE: Any = {"markersize": 7, "markeredgecolor": "black", "clip_on": False, "zorder": 3}
MAX_MARKED_EPOCHS = 40
"""Lines over more epochs get no markers."""

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
    """Draw a chart of a size in inches, write it as PNG, SVG and PDF, and return the path of the SVG.

    Args:
        draw: Draws onto an empty figure.
        path: Without suffix.
        height: In inches.
        width: In inches.
    """
    with chart_figure(draw, height=height, width=width) as figure:
        write_figure(figure, path.with_suffix(".png"), dpi=PNG_DPI)
        write_figure(figure, path.with_suffix(".svg"), metadata={"Date": None})
        write_figure(figure, path.with_suffix(".pdf"), metadata={"CreationDate": None})
    return path.with_suffix(".svg")


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure atomically, in the format of the suffix; `options` are those of `Figure.savefig`."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    write_bytes(path, content.getvalue())


def draw_report_charts(report: Report, folder: Path, language: Language = ENGLISH) -> dict[str, Path]:
    """Draw all charts that a report has the numbers for; return the path of each SVG by its title."""

    def save(draw: Callable[[Figure, Report, Language], None], name: str, height: float) -> Path:
        return save_chart(lambda figure: draw(figure, report, language), folder / name, height=height)

    legend = height_of_legend(_labels_with_n(report, language))
    bars = BarSeries(
        values=[row.ap50_after_nms for row in report.classes],
        color=BLUE,
        intervals=[row.ap50_after_nms_interval for row in report.classes],
    )
    basis, path = language.text("after NMS"), folder / "class_ap50"
    confusions = [("", report.confusion)]
    paths = {
        "AP50 of each class": save_class_ap50(report, [bars], path, basis=basis, language=language),
        "Precision and recall": save(_precision_recall, "precision_recall", 4.2 + legend),
        "Precision, recall and F1 by threshold": save(_thresholds, "thresholds", 6.4 + legend),
        "Confusion of classes": save_confusions(confusions, folder / "confusion", language),
        "Escapes against overkill": save(_escapes, "escapes", 4.2 + height_of_legend([""] * 4)),
        "Kinds of errors": save(_errors, "errors", 3.2),
    }
    convergence = report.convergence
    if convergence is not None and len(convergence.epochs) > 1:
        paths["Validation score by epoch"] = save(_convergence, "convergence", 4.0)
        if convergence.loss:
            paths["Loss by epoch"] = save(_losses, "loss", 4.0)
    return {language.text(title): path for title, path in paths.items()}


def chart_names(
    names: Sequence[str], *, kind: Literal["class", "run"] = "class", language: Language = ENGLISH
) -> tuple[str, ...]:
    """Shorten names for charts, see `short_names`."""
    shown = short_names(names, kind=language.text(kind))
    # Matplotlib omits labels that begin with `_` from legends, but not after a space without width.
    return tuple(f"\u200b{name}" if name.startswith("_") else name for name in shown)


def height_of_legend(labels: Sequence[str]) -> float:
    """Return the height in inches of the legend of some labels."""
    return 0.1 + LEGEND_LINE * -(-len(labels) // _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    return LEGEND_COLUMNS if all(len(label) <= LONGEST_HALF for label in labels) else 1


def legend_or_reason(axes: Axes, why_empty: str) -> None:
    """Put the legend of the axes below the chart or, if nothing was drawn, the reason in their middle."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        say_nothing_to_show(axes, why_empty)
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    columns = _legend_columns(labels)
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=9, handlelength=3.2)


def set_epoch_ticks(axes: Axes, last: int, language: Language) -> None:
    """Count epochs from 1 to the last one, with ticks at whole numbers only."""
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(language.text("epoch, of {last}", last=last))


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Put a sentence where a chart has no data."""
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GRAY)
    axes.set_xticks([])
    axes.set_yticks([])


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


def draw_bars(
    axes: Axes, rows: Sequence[str], series: Sequence[BarSeries], language: Language = ENGLISH
) -> None:
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
                text = entry.reasons[position] if entry.reasons else language.text("no ground truth")
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


def save_confusions(
    confusions: Sequence[tuple[str, Confusion]], path: Path, language: Language = ENGLISH
) -> Path:
    """Draw confusion matrices of the same classes below their titles: counts, colored by share of the row."""
    labels = confusions[0][1].labels
    names = [*chart_names(labels[:-1], language=language), language.text(labels[-1])]
    most = max(max(map(max, confusion.counts)) for _, confusion in confusions)
    # A digit of 8 points is 0.07 inches wide, a letter of 10 points 0.08.
    cell = min(max(MIN_CELL, 0.14 + 0.07 * len(str(most))), LONGEST_MATRIX / len(names))
    side, beside = cell * len(names), 0.5 + 0.08 * max(map(len, names))
    draw = partial(
        _draw_confusions,
        confusions=confusions,
        names=names,
        has_counts=cell >= MIN_CELL,
        language=language,
    )
    height = (side + beside + 0.6) * len(confusions)
    return save_chart(draw, path, width=max(WIDTH, side + beside + 1.6), height=height)


def _draw_confusions(
    figure: Figure,
    confusions: Sequence[tuple[str, Confusion]],
    names: Sequence[str],
    language: Language = ENGLISH,
    *,
    has_counts: bool,
) -> None:
    grid = figure.subplots(len(confusions), squeeze=False)[:, 0]
    for axes, (title, confusion) in zip(grid, confusions, strict=True):
        percent = np.nan_to_num(np.array(confusion.row_percent, dtype=np.float64))  # None is NaN
        heat = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(language.text("predicted as (last column: missed)"))
        axes.set_ylabel(language.text("ground truth\n(last row: nothing there)"))
        axes.set_title(title or language.text("Confusion, IoU 0.5"))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        for row, column in np.ndindex(percent.shape) if has_counts else ():
            number = confusion.counts[row][column]
            color = "white" if percent[row, column] > 55 else "black" if number else GRAY
            if not row == column == len(names) - 1:
                axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)
    label = language.text("% of the row")
    figure.colorbar(heat, ax=grid.tolist(), label=label, shrink=0.8, aspect=30 * len(confusions))


def save_class_ap50(
    report: Report,
    series: Sequence[BarSeries],
    path: Path,
    *,
    basis: str,
    language: Language = ENGLISH,
) -> Path:
    """Draw AP50 of each class as bars, of one or several detectors on the images of a report.

    Args:
        report: The report, or one of several on the same images.
        series: AP50 of each class, in [0, 1].
        path: Without suffix.
        basis: Which detections are counted, such as `after NMS`.
        language: Language of the chart, and of `basis`.
    """
    legend = height_of_legend([entry.label for entry in series])
    height = 1.5 + len(report.classes) * (0.22 + 0.18 * len(series)) + legend
    draw = partial(_class_ap50, report=report, series=series, basis=basis, language=language)
    return save_chart(draw, path, height=height)


def _class_ap50(
    figure: Figure, report: Report, series: Sequence[BarSeries], basis: str, language: Language
) -> None:
    axes = figure.subplots()
    names = chart_names(report.class_names, language=language)
    labels = [
        language.text(
            "{name}\nn = {boxes} in {images}",
            name=name,
            boxes=row.metrics.num_boxes,
            images=language.count("image", row.metrics.num_images),
        )
        for name, row in zip(names, report.classes, strict=True)
    ]
    draw_bars(axes, labels, series, language)
    axes.set_xlim(0, 1.15)  # room for the numbers
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.spines.bottom.set_bounds(0, 1)
    axes.set_xlabel(language.text("AP at IoU 0.50, {basis}", basis=basis))
    if report.intervals:
        axes.set_xlabel(language.text("AP at IoU 0.50, {basis}\nlines: 95% intervals", basis=basis))
    axes.set_title(language.text("AP50 of each class"))
    known = [value for value in series[0].values if value is not None]
    if len(series) > 1:
        legend_or_reason(axes, language.text("no class"))
    elif known:
        mean = float(np.mean(known))
        axes.axvline(mean, color=RED, linestyle="--", linewidth=1)
        axes.set_title(language.text("AP50 of each class; dashed: mean, {mean:.3f}", mean=mean))


def _labels_with_n(report: Report, language: Language) -> list[str]:
    """Return the label of each class in a legend, with its number of boxes."""
    names = chart_names(report.class_names, language=language)
    return [f"{name} (n = {row.metrics.num_boxes})" for name, row in zip(names, report.classes, strict=True)]


def _precision_recall(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(language.text("recall: share of the boxes that are found"))
    axes.set_ylabel(language.text("precision: share of the\ndetections that are correct"))
    axes.set_title(language.text("Precision and recall; dots: operating points"))
    for index, (row, label) in enumerate(zip(report.classes, _labels_with_n(report, language), strict=True)):
        curve, counts, color = row.precision_recall, row.counts, chart_color(index)
        if curve is None:
            continue
        recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]
        axes.plot(recall, precision, color=color, linestyle=line_style(index), label=label)
        if counts.precision is not None and counts.recall is not None:
            axes.plot(counts.recall, counts.precision, "o", color=color, **POINT_STYLE)
    legend_or_reason(axes, language.text("no class has both ground truth and detections"))


def _thresholds(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    grid = figure.subplots(3, sharex=True)
    for axes, name in zip(grid, ("precision", "recall", "F1"), strict=True):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel(language.text(name))
    grid[0].set_title(language.text("By score threshold; dots: operating points"))
    grid[2].set_xlabel(language.text("score threshold of the class"))
    rows = zip(report.classes, report.operating_points.classes, _labels_with_n(report, language), strict=True)
    for index, (row, point, label) in enumerate(rows):
        curve, counts, color = row.precision_recall, row.counts, chart_color(index)
        if curve is None:
            continue
        # Of equal scores, all are kept or none: the last stands for them.
        scores, last = np.unique(np.array(curve.thresholds)[::-1], return_index=True)
        precision, recall = (np.array(rate)[::-1][last] for rate in (curve.precision, curve.recall))
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        here = (counts.precision, counts.recall, counts.f1)
        # Above the highest score nothing is kept: recall and F1 are 0, and there is no precision.
        for axes, rate, above, value in zip(grid, (precision, recall, f1), (np.nan, 0, 0), here, strict=True):
            x, y = np.concatenate([[0], scores, [1]]), np.concatenate([rate[:1], rate, [above]])
            style = {"color": color, "linestyle": line_style(index), "drawstyle": "steps-pre"}
            axes.plot(x, y, label=label, **style)
            if value is not None:
                axes.plot(point.threshold, value, "o", color=color, **POINT_STYLE)
    legend_or_reason(grid[0], language.text("no class has both ground truth and detections"))


def _escapes(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    axes = figure.subplots()
    level, points = report.image_level, report.operating_points
    curve, here = level.curve, level.at_operating_points
    axes.set_title(language.text("Escapes against overkill"))
    good, defective = here.num_good, here.num_defective
    axes.set_xlabel(language.text("overkill: % of the good images\nwith a box (n = {number})", number=good))
    axes.set_ylabel(
        language.text("escapes: % of the defective\nimages without a hit (n = {number})", number=defective)
    )
    if not defective or not good:
        lacks = "the split has no good image" if defective else "the split has no defective image"
        say_nothing_to_show(axes, language.text(lacks))
        return
    overkill, escapes = (
        100 * np.array(rates, dtype=np.float64) for rates in (curve.overkill_rate, curve.escape_rate)
    )
    label = language.text("one threshold for all classes, falling to the right")
    axes.plot(overkill, escapes, color=BLUE, drawstyle="steps-post", label=label)
    places = [(language.text("operating points of the classes"), here, "o", BLUE)]
    if level.at_escape_threshold is not None:
        threshold = points.escape_threshold
        name = language.text("threshold {threshold:.3f}, for few escapes", threshold=threshold)
        places.append((name, level.at_escape_threshold, "s", RED))
    for name, rates, marker, color in places:
        place = 100 * np.array([rates.overkill_rate, rates.escape_rate], dtype=np.float64)
        axes.plot(*place, marker, label=name, color=color, **POINT_STYLE)
    limit = 100 * points.max_escape_rate
    label = language.text("limit of escapes, {limit:g}%", limit=limit)
    axes.axhline(limit, color=RED, linestyle="--", linewidth=1, label=label)
    axes.set_xlim(-1, 101)
    axes.set_ylim(-1, 101)
    legend_or_reason(axes, language.text("no image"))


def _errors(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    errors = report.errors
    counts = BarSeries(values=[row.count for row in errors.values()], color=RED, number_format="{:.0f}")
    # With boxes in the ground truth, only a correction of the missed ones can leave none to find.
    reasons = [
        language.text("all are missed" if name == "missed" and row.count else "no ground truth")
        for name, row in errors.items()
    ]
    deltas = [None if row.kept_ap50_delta is None else 100 * row.kept_ap50_delta for row in errors.values()]
    improvements = BarSeries(values=deltas, color=BLUE, number_format="{:.1f}", reasons=reasons)
    kinds = [language.text(kind) for kind in errors]
    draw_bars(right, kinds, [improvements])
    draw_bars(left, kinds, [counts])
    title = language.text("Errors of the kept detections, by kind")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    left.set_xlabel(language.text("number of errors"))
    right.set_xlabel(language.text("points of AP50 gained\nwithout them"))


def _convergence(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    axes = figure.subplots()
    convergence = report.convergence
    assert convergence is not None
    _draw_by_epoch(axes, convergence, {"mAP50": convergence.ap50, "mAP": convergence.ap}, language)
    best = convergence.best_epoch + 1
    label = language.text("best mAP, epoch {best}", best=best)
    axes.axvline(best, color=GRAY, linestyle="--", linewidth=1, label=label)
    axes.set_ylim(0, 1)
    axes.set_ylabel(language.text("COCO score on the\nvalidation split"))
    axes.set_title(language.text("Validation score by epoch"))
    legend_or_reason(axes, language.text("no validation"))


def _losses(figure: Figure, report: Report, language: Language = ENGLISH) -> None:
    axes = figure.subplots()
    convergence = report.convergence
    assert convergence is not None
    losses = {"training, with augmentation": convergence.loss, "validation": convergence.val_loss}
    lines = {language.text(name): values for name, values in losses.items() if values}
    _draw_by_epoch(axes, convergence, lines, language)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(language.text("loss of the last layer"))
    axes.set_title(language.text("Loss by epoch"))
    legend_or_reason(axes, language.text("no loss in the log"))


def _draw_by_epoch(
    axes: Axes, convergence: Convergence, lines: Mapping[str, Sequence[float | None]], language: Language
) -> None:
    """Draw values by epoch, by the label of their line; None leaves an epoch out."""
    epochs = np.array(convergence.epochs) + 1
    set_epoch_ticks(axes, convergence.planned_epochs, language)
    for index, (label, numbers) in enumerate(lines.items()):
        values = np.array(numbers, dtype=np.float64)
        known = ~np.isnan(values)
        if known.any():
            marker = "o" if known.sum() < MAX_MARKED_EPOCHS else None
            style = {"color": chart_color(index), "linestyle": line_style(index), "marker": marker}
            axes.plot(epochs[known], values[known], label=label, markersize=4, **style)
