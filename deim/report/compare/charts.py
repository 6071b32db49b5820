"""The charts of a comparison of runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deim.report.charts import (
    chart_names,
    height_of_legend,
    legend_beside,
    save_chart,
    save_class_ap50,
    save_confusions,
    say_nothing_to_show,
)
from deim.report.compare.schema import ComparedRun
from deim.report.palette import chart_color, line_style


def draw_comparison_charts(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Path]:
    """Draw the charts of a comparison as PNG and SVG.

    Args:
        runs: From `read_runs`.
        folder: Folder to write to; it must exist.

    Returns:
        Path of each chart's SVG by its title.
    """
    by_epoch = save_chart(
        partial(_map_by_epoch, runs=runs),
        folder / "map_by_epoch",
        height=max(4.6, height_of_legend(len(runs))),
    )
    reports = [(name, run.report) for name, run in zip(_run_names(runs), runs, strict=True)]
    by_class = save_class_ap50(reports, folder / "class_ap50_bars")
    return {"mAP against epoch": by_epoch, "AP50 of each class by run": by_class}


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
