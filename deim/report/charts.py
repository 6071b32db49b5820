"""The charts of a report, drawn from its numbers alone, as PNG and SVG."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from deim.report.draw import PALETTE, shown_names
from deim.report.palette import CHART_STYLE

BLUE, RED, GRAY, FAINT = "#005ab5", "#dc3220", "#8a8a8a", "#d9d9d9"
WIDTH = 8.0
"""Inches; a column of a printed page."""
PNG_DPI = 150
LEGEND_LINE = 0.22
"""Height of one line of a legend, in inches."""
MAX_WIDE_LABELS = 9
"""Confusion matrices with more labels, `background` among them, are drawn with small cells."""
SMALL_CELL, LEAST_CELL_WITH_COUNT = 0.42, 0.3
"""Side of such a cell, in inches."""
LONGEST_MATRIX = 40.0
"""Inches; the cells of a matrix with very many classes shrink instead."""
ON_WHITE: Any = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
"""The box around a text that lines run behind."""
LINE_STYLES = ("-", "--", ":", "-.")

Draw = Callable[[Figure], None]


def save_chart(draw: Draw, path: Path, *, height: float, width: float = WIDTH) -> Path:
    """Draw a chart and write it as PNG and as SVG.

    Args:
        draw: Draws onto an empty figure.
        path: Without suffix.
        height: In inches.
        width: In inches.

    Returns:
        Path of the SVG; the PNG lies beside it.
    """
    with mpl.rc_context(CHART_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out now; each file would do so again
        figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return path.with_suffix(".svg")


def draw_report_charts(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw all charts that a report has the numbers for.

    Args:
        report: From `build_report`.
        folder: Where to put them; it must exist.

    Returns:
        Path of each chart's SVG by its title; the PNG lies beside it.
    """
    num_classes = len(report["classes"])
    beside_legend = max(5.0, height_of_legend(num_classes))
    paths = {
        "AP50 of each class": save_chart(
            partial(_class_bars, report=report), folder / "class_ap50", height=1.6 + 0.42 * num_classes
        ),
        "Precision and recall": save_chart(
            partial(_precision_recall, report=report), folder / "precision_recall", height=beside_legend
        ),
        "Confusion of classes": save_confusions([("", report["confusion"])], folder / "confusion"),
        "Escapes against overkill": save_chart(
            partial(_escapes, report=report), folder / "escapes", height=4.6
        ),
        "Kinds of errors": save_chart(partial(_errors, report=report), folder / "errors", height=3.6),
    }
    if report["convergence"] is not None:
        paths["Validation score by epoch"] = save_chart(
            partial(_convergence, report=report), folder / "convergence", height=4.2
        )
    return paths


def class_color(index: int) -> tuple[float, float, float]:
    """Color of a class or a run, the same in every chart.

    Args:
        index: From 0; the palette repeats after seven.

    Returns:
        Red, green, blue in [0, 1].
    """
    red, green, blue = PALETTE[index % len(PALETTE)]
    # Lines of the palette's yellow cannot be seen on paper.
    dim = 0.75 if min(red, green) > 200 else 1.0
    return red * dim / 255, green * dim / 255, blue * dim / 255


def chart_names(names: Sequence[str], *, kind: str = "class") -> tuple[str, ...]:
    """Names of all classes or all runs as charts show them, see `shown_names`.

    Args:
        names: In their order.
        kind: What the names are of.
    """
    shown = shown_names(names, kind=kind, has_glyph=_has_glyph)
    # Matplotlib leaves labels that begin with `_` out of legends; a space without width begins these.
    return tuple(f"\u200b{name}" if name.startswith("_") else name for name in shown)


def _has_glyph(character: str) -> bool:
    return bool(get_font(findfont(FontProperties())).get_char_index(ord(character)))


def height_of_legend(num_lines: int) -> float:
    """Height of a chart, in inches, that a legend of so many lines fits into."""
    return 0.6 + LEGEND_LINE * num_lines


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Put a sentence where a chart has no data."""
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GRAY)
    axes.set_xticks([])
    axes.set_yticks([])


def save_confusions(confusions: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> Path:
    """Draw confusion matrices of the same classes: counts, colored by their share of the row.

    Up to eight classes have them side by side, with percentages; more one below the other, with counts alone.

    Args:
        confusions: Title and `Confusion` of each.
        path: Without suffix.

    Returns:
        Path of the SVG; the PNG lies beside it.
    """
    names = [*chart_names(confusions[0][1]["labels"][:-1]), confusions[0][1]["labels"][-1]]
    size, number = len(names), len(confusions)
    if size <= MAX_WIDE_LABELS:
        width, height, rows = WIDTH * number, 1.8 + 0.55 * size, 1
    else:
        most = max(max(map(max, confusion["counts"])) for _, confusion in confusions)
        # A digit of 8 points is 0.07 inches wide, a letter of 10 points 0.08.
        cell = min(max(SMALL_CELL, 0.14 + 0.07 * len(str(most))), LONGEST_MATRIX / size)
        beside = 0.4 + 0.08 * max(map(len, names))
        width, height, rows = cell * size + beside + 1.2, (cell * size + beside + 0.5) * number, number
    draw = partial(_draw_confusions, confusions=confusions, names=names, rows=rows)
    return save_chart(draw, path, width=width, height=height)


def _draw_confusions(
    figure: Figure,
    confusions: Sequence[tuple[str, Mapping[str, Any]]],
    names: Sequence[str],
    rows: int,
) -> None:
    many = np.atleast_1d(np.array(figure.subplots(rows, len(confusions) // rows), dtype=object))
    is_wide = len(names) <= MAX_WIDE_LABELS
    for axes, (title, confusion) in zip(many, confusions, strict=True):
        percent = np.array(
            [[0.0 if value is None else value for value in row] for row in confusion["row_percent"]]
        )
        shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        if is_wide:
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("found as (last column: not found)")
        axes.set_ylabel("ground truth\n(last row: nothing there)")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        if len(names) * LEAST_CELL_WITH_COUNT <= LONGEST_MATRIX:
            _write_counts(axes, confusion, with_percent=is_wide)
        axes.set_title(title or "Boxes by true and found class, IoU 0.5")
    slim = 20 if is_wide else 30 * rows
    figure.colorbar(shown, ax=many.tolist(), label="% of the row", shrink=0.8, aspect=slim)


def _write_counts(axes: Axes, confusion: Mapping[str, Any], *, with_percent: bool) -> None:
    counts, percent = confusion["counts"], confusion["row_percent"]
    for row, column in np.ndindex(len(counts), len(counts)):
        if row == column == len(counts) - 1:
            continue
        share = percent[row][column]
        text = str(counts[row][column])
        if with_percent and share is not None:
            text += f"\n{share:.0f} %"
        is_dark = share is not None and share > 55
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=9 if with_percent else 8,
            color="white" if is_dark else "black" if counts[row][column] or with_percent else GRAY,
        )


def _class_bars(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    rows = report["classes"]
    for position, row in enumerate(rows):
        if row["ap50"] is None:
            axes.text(0.01, position, "no ground truth", va="center", color=GRAY, bbox=ON_WHITE, zorder=4)
            continue
        axes.barh(position, row["ap50"], color=BLUE, height=0.6)
        ends = row["ap50_interval"]
        if ends:
            axes.plot(ends, [position, position], color="black", linewidth=1.4, marker="|", markersize=9)
        right = max(row["ap50"], ends[1] if ends else 0.0)
        # Above the dashed line of the mean.
        axes.text(
            min(right + 0.015, 1.02), position, f"{row['ap50']:.3f}", va="center", bbox=ON_WHITE, zorder=4
        )
    names = chart_names([row["name"] for row in rows])
    labels = [
        f"{name}\nn = {row['num_boxes']} in {row['num_images']} images"
        for name, row in zip(names, rows, strict=True)
    ]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("AP at IoU 0.50" + (", line: 95 % interval" if report["intervals"] else ""))
    ap50 = report["summary"]["ap50"]
    if ap50 is not None:
        axes.axvline(ap50, color=RED, linestyle="--", linewidth=1)
        axes.set_title(f"AP50 of each class; the mean, {ap50:.3f}, is dashed")
    else:
        axes.set_title("AP50 of each class")


def _precision_recall(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    drawn = False
    names = chart_names([row["name"] for row in report["classes"]])
    for index, (row, curve) in enumerate(zip(report["classes"], report["precision_recall"], strict=True)):
        if curve is None:
            continue
        drawn = True
        style = LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]
        axes.plot(
            [0.0, *curve["recall"]],
            [curve["precision"][0], *curve["precision"]],
            color=class_color(index),
            linestyle=style,
            label=f"{names[index]} (n = {row['num_boxes']})",
        )
        if row["precision"] is not None and row["recall"] is not None:
            axes.plot(
                row["recall"],
                row["precision"],
                marker="o",
                markersize=7,
                color=class_color(index),
                markeredgecolor="black",
            )
    if not drawn:
        say_nothing_to_show(axes, "no class has both ground truth and detections")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("recall: share of the boxes that are found")
    axes.set_ylabel("precision: share of the detections that are right")
    axes.set_title("Precision and recall at IoU 0.50; dots: operating points")
    if drawn:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _escapes(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    level = report["image_level"]
    curve, here = level["curve"], level["at_operating_points"]
    axes.set_title("Escapes against overkill as one threshold for all classes falls")
    axes.set_xlabel(f"overkill: % of the good images with a box (n = {here['num_good']})")
    axes.set_ylabel(f"escapes: % of the defective images\nwithout a hit (n = {here['num_defective']})")
    if not here["num_defective"] or not here["num_good"]:
        lacks = "defective" if not here["num_defective"] else "good"
        say_nothing_to_show(axes, f"the split has no {lacks} image")
        return
    axes.plot(
        [100 * value for value in curve["overkill_rate"]],
        [100 * value for value in curve["escape_rate"]],
        color=BLUE,
        drawstyle="steps-post",
        label="one threshold for all classes",
    )
    places = [("operating points of the classes", here, "o", BLUE)]
    if level["at_escape_threshold"]:
        name = f"threshold {report['operating_points']['escape_threshold']:.3f}, for few escapes"
        places.append((name, level["at_escape_threshold"], "s", RED))
    for name, found, marker, color in places:
        axes.plot(
            100 * found["overkill_rate"],
            100 * found["escape_rate"],
            marker,
            markersize=9,
            color=color,
            markeredgecolor="black",
            label=name,
            clip_on=False,
        )
    axes.axhline(100 * report["operating_points"]["max_escape_rate"], color=RED, linestyle="--", linewidth=1)
    axes.set_xlim(-1, 101)
    axes.set_ylim(-1, 101)
    axes.legend(loc="upper right")


def _errors(figure: Figure, report: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(report["errors"])
    counts = [report["errors"][name]["count"] for name in names]
    gains = [report["errors"][name]["ap50_gain"] for name in names]
    points = [None if gain is None else 100 * gain for gain in gains]
    for axes, values, title, form in (
        (left, counts, "Errors at the operating points", "{:.0f}"),
        (right, points, "AP50 gained without them", "{:.1f}"),
    ):
        most = max([value for value in values if value is not None], default=0) or 1
        for position, value in enumerate(values):
            if value is None:
                # With boxes to find, only mending the missed ones can leave none.
                is_all_missed = names[position] == "missed" and counts[position]
                why = "every box is missed" if is_all_missed else "no ground truth"
                axes.text(0.02 * most, position, why, va="center", color=GRAY)
                continue
            axes.barh(position, value, color=RED if axes is left else BLUE, height=0.6)
            axes.text(max(value, 0) + 0.02 * most, position, form.format(value), va="center")
        axes.set_title(title)
        axes.set_xlim(0, 1.15 * most)
        axes.grid(visible=False, axis="y")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xlabel("boxes")
    right.set_xlabel("points of AP50, all detections")


def _convergence(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    convergence = report["convergence"]
    curve = convergence["curve"]
    scored = [k for k, value in enumerate(curve["ap"]) if value is not None]
    epochs = [curve["epochs"][k] + 1 for k in scored]
    marker = "o" if len(epochs) < 40 else None
    for key, name, color in (("ap50", "mAP50", BLUE), ("ap", "mAP", RED)):
        values = [np.nan if curve[key][k] is None else curve[key][k] for k in scored]
        axes.plot(epochs, values, color=color, label=name, marker=marker, markersize=4)
    best = convergence["best_epoch"] + 1
    axes.axvline(best, color=GRAY, linestyle="--", linewidth=1, label=f"best mAP, epoch {best}")
    if convergence["plateau_epoch"] is not None:
        start = convergence["plateau_epoch"] + 1
        axes.axvspan(start, epochs[-1], color=FAINT, alpha=0.5, label=f"plateau from epoch {start}")
    axes.set_xlim(0.5, convergence["planned_epochs"] + 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"epoch, of {convergence['planned_epochs']}")
    axes.set_ylabel("score on the validation split")
    axes.set_title("Validation score by epoch")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
