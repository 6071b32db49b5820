"""The charts of a comparison of runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deim.report.charts import (
    BarSeries,
    chart_names,
    draw_bars,
    height_of_legend,
    legend_beside,
    save_chart,
    save_confusions,
    say_nothing_to_show,
)
from deim.report.compare.schema import ComparedRun
from deim.report.palette import GRAY, chart_color, line_style

MANY_RUNS = 8
"""More runs have their names upright below a chart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One more than there are colors, so that only run 57 looks like the first."""


def draw_comparison_charts(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Path]:
    """Draw the charts of a comparison as PNG and SVG.

    Args:
        runs: From `read_runs`.
        folder: Folder to write to; it must exist.

    Returns:
        Path of each chart's SVG by its title.
    """
    num_classes = len(runs[0].report.classes)
    beside_classes = max(4.8, 1.0 + height_of_legend(num_classes + 1))
    beside_runs = max(4.6, height_of_legend(len(runs)))
    charts = {
        "mAP against epoch": (_map_by_epoch, "map_by_epoch", beside_runs),
        "AP50 of each class by run": (
            _class_ap50,
            "class_ap50_bars",
            1.6 + num_classes * (0.2 + 0.2 * len(runs)),
        ),
        "Each class over the runs": (_classes_over_runs, "classes_over_runs", beside_classes),
        "Training time against mAP": (_time_against_map, "time_against_map", beside_runs),
    }
    return {
        title: save_chart(partial(draw, runs=runs), folder / name, height=height)
        for title, (draw, name, height) in charts.items()
    }


def draw_confusion_pairs(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Path]:
    """Draw the confusion matrix of the first run beside that of each other, as `draw_comparison_charts`."""
    names = _run_names(runs)
    paths = {}
    for number, run in enumerate(runs[1:], start=1):
        pair = [(names[0], runs[0].report.confusion), (names[number], run.report.confusion)]
        title = f"Confusion of classes: {runs[0].name} and {run.name}"
        paths[title] = save_confusions(pair, folder / f"confusion_{number}")
    return paths


def _run_names(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    return chart_names([run.name for run in runs], kind="run")


def _map_by_epoch(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    axes.set_title("mAP50 on validation against epoch; stars: highest")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mAP50")
    axes.set_ylim(0, 1)
    for index, (run, name) in enumerate(zip(runs, _run_names(runs), strict=True)):
        convergence, color = run.report.convergence, chart_color(index)
        if convergence is None:
            continue
        epochs, values = np.array(convergence.epochs) + 1, np.array(convergence.ap50, dtype=np.float64)
        epochs, values = epochs[~np.isnan(values)], values[~np.isnan(values)]
        if not len(values):
            continue
        best = int(np.argmax(values))
        marker = "." if len(values) < 60 else None
        axes.plot(epochs, values, color=color, linestyle=line_style(index), label=name, marker=marker)
        axes.plot(epochs[best], values[best], "*", color=color, markersize=12, markeredgecolor="black")
    if axes.lines:
        legend_beside(axes)
    else:
        say_nothing_to_show(axes, "no run has its metrics.jsonl beside the checkpoint")


def _class_ap50(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    classes = runs[0].report.classes
    labels = [
        f"{name}\nn = {row.metrics.num_boxes}"
        for name, row in zip(chart_names(runs[0].report.class_names), classes, strict=True)
    ]
    series = [
        BarSeries(
            values=[row.metrics.ap50 for row in run.report.classes],
            color=chart_color(index),
            label=name,
            intervals=[row.ap50_interval for row in run.report.classes],
        )
        for index, (run, name) in enumerate(zip(runs, _run_names(runs), strict=True))
    ]
    draw_bars(axes, labels, series)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("AP at IoU 0.50; lines: 95 % intervals")
    axes.set_title("AP50 of each class by run")
    legend_beside(axes)


def _classes_over_runs(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("run")
    axes.set_ylabel("AP at IoU 0.50")
    axes.set_title("AP50 of each class over the runs")
    means = np.array([run.report.summary.ap50 for run in runs], dtype=np.float64)
    if np.isnan(means).any():
        say_nothing_to_show(axes, "no class has ground truth")
        return
    positions = np.arange(len(runs))
    for index, name in enumerate(chart_names(runs[0].report.class_names)):
        rows = [run.report.classes[index].metrics for run in runs]
        values = np.array([row.ap50 for row in rows], dtype=np.float64)
        if not np.isnan(values).any():
            axes.plot(
                positions,
                values,
                marker="o",
                color=chart_color(index),
                linestyle=line_style(index),
                label=f"{name} (n = {rows[0].num_boxes})",
            )
    axes.plot(positions, means, marker="s", color="black", linewidth=2.5, label="mean (mAP50)")
    angle, align = (90, "center") if len(runs) > MANY_RUNS else (30, "top")
    axes.set_xticks(positions, _run_names(runs), rotation=angle, ha="right", va=align, rotation_mode="anchor")
    legend_beside(axes)


def _time_against_map(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    axes.set_title("Training time against mAP50")
    axes.set_ylabel("mAP50; lines: 95 % intervals")
    placed = [
        (index, run.report, run.report.convergence.hours, run.report.summary.ap50)
        for index, run in enumerate(runs)
        if run.report.convergence and run.report.convergence.hours is not None
    ]
    longest = max((hours for _, _, hours, ap50 in placed if ap50 is not None), default=None)
    if longest is None:
        say_nothing_to_show(axes, "no run has both its metrics.jsonl and a score")
        return
    names = _run_names(runs)
    unit, factor = ("minutes", 60) if longest < 1 else ("hours", 1)
    for index, report, hours, ap50 in placed:
        if ap50 is None:
            continue
        ends = report.intervals.ap50 if report.intervals else None
        if ends:
            axes.plot([hours * factor] * 2, [ends.low, ends.high], color=GRAY, linewidth=1.4)
        axes.plot(
            hours * factor,
            ap50,
            MARKERS[index % len(MARKERS)],
            color=chart_color(index),
            markersize=8,
            markeredgecolor="black",
            clip_on=False,
            label=f"{names[index]}: {ap50:.3f}",
        )
    axes.set_xlim(0, 1.1 * longest * factor or 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"training and validation, {unit}")
    legend_beside(axes)
