"""The charts of a report, drawn from its numbers alone, as PNG and SVG."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deim.evaluation.report.plots import PALETTE

BLUE, RED, GREY, FAINT = "#005ab5", "#dc3220", "#8a8a8a", "#d9d9d9"
WIDTH = 8.0
"""Inches; a column of a printed page."""
PNG_DPI = 150
MAX_NAME = 24
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    # The same picture gives the same file.
    "svg.hashsalt": "deim",
}
LINE_STYLES = ("-", "--", ":", "-.")

Draw = Callable[[Figure], None]


def save_chart(draw: Draw, path: Path, *, height: float, width: float = WIDTH) -> None:
    """Draw a chart and write it as PNG and as SVG.

    Args:
        draw: Draws onto an empty figure.
        path: Without suffix.
        height: In inches.
        width: In inches.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out now; each file would do so again
        figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def draw_report_charts(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw all charts that a report has the numbers for.

    Args:
        report: From `build_report`.
        folder: Where to put them; it must exist.

    Returns:
        Path of each chart's SVG by its title; the PNG lies beside it.
    """
    num_classes = len(report["classes"])
    charts: list[tuple[str, str, Draw, float]] = [
        ("AP50 of each class", "class_ap50", lambda f: _class_bars(f, report), 1.6 + 0.42 * num_classes),
        ("Precision and recall", "precision_recall", lambda f: _precision_recall(f, report), 5.0),
        (
            "Confusion of classes",
            "confusion",
            lambda f: draw_confusions(f, [("", report["confusion"])]),
            1.8 + 0.55 * (num_classes + 1),
        ),
        ("Escapes against overkill", "escapes", lambda f: _escapes(f, report), 4.6),
        ("Kinds of errors", "errors", lambda f: _errors(f, report), 3.6),
    ]
    if report["convergence"] is not None:
        charts.append(("Validation score by epoch", "convergence", lambda f: _convergence(f, report), 4.2))
    paths = {}
    for title, name, draw, height in charts:
        save_chart(draw, folder / name, height=height)
        paths[title] = folder / f"{name}.svg"
    return paths


def class_color(index: int) -> tuple[float, float, float]:
    """Colour of a class or a run, the same in every chart.

    Args:
        index: From 0; the palette repeats after seven.

    Returns:
        Red, green, blue in [0, 1].
    """
    red, green, blue = PALETTE[index % len(PALETTE)]
    # Lines of the palette's yellow cannot be seen on paper.
    dim = 0.75 if min(red, green) > 200 else 1.0
    return red * dim / 255, green * dim / 255, blue * dim / 255


def short(name: str) -> str:
    """A name cut to the length that charts have room for."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def say_nothing_to_show(axes: Axes, why: str) -> None:
    """Put a sentence where a chart has no data."""
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_confusions(figure: Figure, confusions: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Draw confusion matrices side by side: counts, coloured by their share of the row.

    Args:
        figure: Empty.
        confusions: Title and `Confusion` of each.
    """
    many = np.atleast_1d(np.array(figure.subplots(1, len(confusions)), dtype=object))
    for axes, (title, confusion) in zip(many, confusions, strict=True):
        labels = [short(label) for label in confusion["labels"]]
        counts = np.array(confusion["counts"], dtype=np.int64)
        percent = np.array(
            [[0.0 if value is None else value for value in row] for row in confusion["row_percent"]]
        )
        shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        positions = range(len(labels))
        axes.set_xticks(positions, labels, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(positions, labels)
        axes.set_xlabel("found as (last column: not found)")
        axes.set_ylabel("ground truth (last row: nothing there)")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        size = 9 if len(labels) <= 10 else 6
        for row in positions:
            for column in positions:
                if counts[row, column] or row == column != len(labels) - 1:
                    value = confusion["row_percent"][row][column]
                    share = "" if value is None else f"\n{value:.0f} %"
                    axes.text(
                        column,
                        row,
                        f"{counts[row, column]}{share}",
                        ha="center",
                        va="center",
                        fontsize=size,
                        color="white" if percent[row, column] > 55 else "black",
                    )
        axes.set_title(title or "Boxes by true and found class, IoU 0.5")
    figure.colorbar(shown, ax=many.tolist(), label="% of the row", shrink=0.8)


def _class_bars(figure: Figure, report: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    rows = report["classes"]
    for position, row in enumerate(rows):
        if row["ap50"] is None:
            axes.text(0.01, position, "no ground truth", va="center", color=GREY, backgroundcolor="white")
            continue
        axes.barh(position, row["ap50"], color=BLUE, height=0.6)
        ends = row["ap50_interval"]
        if ends:
            axes.plot(ends, [position, position], color="black", linewidth=1.4, marker="|", markersize=9)
        right = max(row["ap50"], ends[1] if ends else 0.0)
        axes.text(min(right + 0.015, 1.02), position, f"{row['ap50']:.3f}", va="center")
    names = [f"{short(row['name'])}\nn = {row['num_boxes']} in {row['num_images']} images" for row in rows]
    axes.set_yticks(range(len(rows)), names)
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
            label=f"{short(row['name'])} (n = {row['num_boxes']})",
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
                axes.text(0.02 * most, position, "no ground truth", va="center", color=GREY)
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
    axes.axvline(best, color=GREY, linestyle="--", linewidth=1, label=f"best mAP, epoch {best}")
    if convergence["plateau_epoch"] is not None:
        start = convergence["plateau_epoch"] + 1
        axes.axvspan(start, epochs[-1], color=FAINT, alpha=0.5, label=f"plateau from epoch {start}")
    axes.set_xlim(0.5, convergence["planned_epochs"] + 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"epoch, of {convergence['planned_epochs']}")
    axes.set_ylabel("score on the validation split")
    axes.set_title("Validation score by epoch")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
