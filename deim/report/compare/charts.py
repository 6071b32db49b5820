"""The charts of a comparison of runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deim.report.charts import (
    GRAY,
    LINE_STYLES,
    chart_names,
    class_color,
    height_of_legend,
    save_chart,
    save_confusions,
    say_nothing_to_show,
)
from deim.report.compare.runs import ComparedRun
from deim.report.draw import PALETTE

MANY_RUNS = 8
"""The names of more runs stand upright below a chart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One more than there are colors, so that only run 57 looks like the first."""


def draw_comparison_charts(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Path]:
    """Draw the charts of a comparison as PNG and SVG.

    Args:
        runs: From `read_runs`.
        folder: Where to put them; it must exist.

    Returns:
        Path of each chart's SVG by its title.
    """
    num_classes = len(runs[0].report["classes"])
    height_of_bars = 1.6 + num_classes * (0.2 + 0.2 * len(runs))
    beside_classes = max(4.8, 1.0 + height_of_legend(num_classes + 1))
    beside_runs = max(4.6, height_of_legend(len(runs)))
    return {
        "mAP against epoch": save_chart(
            partial(_map_by_epoch, runs=runs), folder / "map_by_epoch", height=beside_runs
        ),
        "AP50 of each class by run": save_chart(
            partial(_class_bars, runs=runs), folder / "class_ap50_bars", height=height_of_bars
        ),
        "Each class over the runs": save_chart(
            partial(_classes_over_runs, runs=runs), folder / "classes_over_runs", height=beside_classes
        ),
        "Training time against mAP": save_chart(
            partial(_time_against_map, runs=runs), folder / "time_against_map", height=beside_runs
        ),
    }


def draw_confusion_pairs(runs: Sequence[ComparedRun], folder: Path) -> dict[str, Path]:
    """Draw the confusion matrix of the first run and that of each other; as `draw_comparison_charts`."""
    names = _run_names(runs)
    paths = {}
    for number, run in enumerate(runs[1:], start=1):
        pair = [(names[0], runs[0].report["confusion"]), (names[number], run.report["confusion"])]
        title = f"Confusion of classes: {runs[0].name} and {run.name}"
        paths[title] = save_confusions(pair, folder / f"confusion_{number}")
    return paths


def _run_names(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    return chart_names([run.name for run in runs], kind="run")


def _class_names(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    return chart_names([row["name"] for row in runs[0].report["classes"]])


def _line_style(index: int) -> str:
    """Tells lines of the same color apart."""
    return LINE_STYLES[index // len(PALETTE) % len(LINE_STYLES)]


def _map_by_epoch(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    drawn = False
    names = _run_names(runs)
    for index, run in enumerate(runs):
        if not run.report["convergence"]:
            continue
        curve = run.report["convergence"]["curve"]
        points = [
            (epoch + 1, value)
            for epoch, value in zip(curve["epochs"], curve["ap50"], strict=True)
            if value is not None
        ]
        if not points:
            continue
        drawn = True
        epochs, values = zip(*points, strict=True)
        best = int(np.argmax(values))
        marker = "." if len(points) < 60 else None
        axes.plot(
            epochs,
            values,
            color=class_color(index),
            linestyle=_line_style(index),
            label=names[index],
            marker=marker,
        )
        axes.plot(
            epochs[best], values[best], "*", color=class_color(index), markersize=12, markeredgecolor="black"
        )
    axes.set_title("mAP50 on validation against epoch; stars: highest")
    axes.set_xlabel("epoch")
    axes.set_ylabel("mAP50")
    axes.set_ylim(0, 1)
    if drawn:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        say_nothing_to_show(axes, "no run has its metrics.jsonl beside the checkpoint")


def _class_bars(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    rows = runs[0].report["classes"]
    names, class_names = _run_names(runs), _class_names(runs)
    height = 0.8 / len(runs)
    for index, run in enumerate(runs):
        offset = (index - (len(runs) - 1) / 2) * height
        for position, row in enumerate(run.report["classes"]):
            label = names[index] if position == 0 else None
            place = position + offset
            axes.barh(place, row["ap50"] or 0.0, height=0.92 * height, color=class_color(index), label=label)
            if row["ap50"] is None:
                text, right = "no ground truth", 0.0
            else:
                text, right = f"{row['ap50']:.3f}", row["ap50"]
            ends = row["ap50_interval"]
            if ends:
                axes.plot(ends, [place, place], color="black", linewidth=1)
                right = max(right, ends[1])
            axes.text(min(right + 0.012, 1.02), place, text, va="center", fontsize=8)
    labels = [f"{name}\nn = {row['num_boxes']}" for name, row in zip(class_names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("AP at IoU 0.50; lines: 95 % intervals")
    axes.set_title("AP50 of each class by run")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _classes_over_runs(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    positions = np.arange(len(runs))
    class_names = _class_names(runs)
    for index, row in enumerate(runs[0].report["classes"]):
        values = [run.report["classes"][index]["ap50"] for run in runs]
        if None in values:
            continue
        axes.plot(
            positions,
            values,
            marker="o",
            color=class_color(index),
            linestyle=_line_style(index),
            label=f"{class_names[index]} (n = {row['num_boxes']})",
        )
    means = [run.report["summary"]["ap50"] for run in runs]
    if None in means:
        say_nothing_to_show(axes, "no class has ground truth")
    else:
        axes.plot(positions, means, marker="s", color="black", linewidth=2.5, label="mean (mAP50)")
        angle, align = (90, "center") if len(runs) > MANY_RUNS else (30, "top")
        axes.set_xticks(
            positions, _run_names(runs), rotation=angle, ha="right", va=align, rotation_mode="anchor"
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("run")
    axes.set_ylabel("AP at IoU 0.50")
    axes.set_title("AP50 of each class over the runs")


def _time_against_map(figure: Figure, runs: Sequence[ComparedRun]) -> None:
    axes = figure.subplots()
    axes.set_title("Training time against mAP50")
    axes.set_ylabel("mAP50; lines: 95 % intervals")
    placed = [
        (index, run, run.report["convergence"]["hours"])
        for index, run in enumerate(runs)
        if run.report["convergence"] and run.report["convergence"]["hours"] is not None
    ]
    placed = [entry for entry in placed if entry[1].report["summary"]["ap50"] is not None]
    if not placed:
        say_nothing_to_show(axes, "no run has both its metrics.jsonl and a score")
        return
    names = _run_names(runs)
    in_minutes = max(hours for _, _, hours in placed) < 1
    unit = 60 if in_minutes else 1
    for index, run, hours in placed:
        ap50 = run.report["summary"]["ap50"]
        ends = run.report["intervals"]["ap50"] if run.report["intervals"] else None
        if ends:
            axes.plot([hours * unit] * 2, ends, color=GRAY, linewidth=1.4)
        axes.plot(
            hours * unit,
            ap50,
            MARKERS[index % len(MARKERS)],
            color=class_color(index),
            markersize=8,
            markeredgecolor="black",
            linestyle="none",
            clip_on=False,
            label=f"{names[index]}: {ap50:.3f}",
        )
    axes.set_xlim(0, 1.1 * max(hours for _, _, hours in placed) * unit or 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"training and validation, {'minutes' if in_minutes else 'hours'}")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
