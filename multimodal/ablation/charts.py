"""The charts of the trials, drawn from their numbers alone, as PNG and SVG."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deim.report.charts import ON_WHITE, chart_names, save_chart, say_nothing_to_show
from deim.report.palette import BLUE, GRAY, RED, chart_color
from multimodal.ablation.trials import FROZEN, SWAPPED

WIDTH = 11.0
"""Inches, of two charts beside each other."""


def draw_evidence_charts(evidence: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw all charts.

    Args:
        evidence: From `build_evidence`.
        folder: Where to put them; it must exist.

    Returns:
        Path of each chart's SVG by its title; the PNG lies beside it.
    """
    num_models, num_classes = len(evidence["models"]), len(evidence["models"][0]["classes"])
    return {
        "mAP50 of all models, and how much more the real text has": save_chart(
            partial(_models, evidence=evidence), folder / "models", height=1.6 + 0.4 * num_models, width=WIDTH
        ),
        "How much more the real text has, by class": save_chart(
            partial(_classes, evidence=evidence),
            folder / "classes",
            height=1.6 + num_classes * (0.25 + 0.12 * num_models),
            width=WIDTH,
        ),
    }


def _models(figure: Figure, evidence: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    models = evidence["models"]
    left.set_title("mAP50; lines: 95 % intervals, dots: seeds")
    right.set_title("How much more the real text has")
    if models[0]["ap50"] is None:
        say_nothing_to_show(left, "no class has ground truth")
        say_nothing_to_show(right, "no class has ground truth")
        return
    for position, model in enumerate(models):
        color = {"text": BLUE, FROZEN: GRAY}.get(model["name"], chart_color(2))
        left.barh(position, model["ap50"], color=color, height=0.6)
        ends = model["ap50_interval"] or [model["ap50"]] * 2
        left.plot(ends, [position, position], color="black", linewidth=1.4, marker="|", markersize=9)
        seeds = model["ap50_of_seeds"]
        if len(seeds) > 1:
            left.plot(
                seeds, [position] * len(seeds), "o", color="white", markeredgecolor="black", markersize=4
            )
        left.text(
            max(ends[1], *seeds) + 0.015,
            position,
            f"{model['ap50']:.3f}",
            va="center",
            bbox=ON_WHITE,
            zorder=4,
        )
        if model["name"] != "text":
            _difference(right, position, model["text_over_it"])
    left.set_yticks(range(len(models)), [model["description"] for model in models])
    left.set_ylim(len(models) - 0.4, -0.6)
    left.set_xlim(0, 1.15)
    left.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    left.set_xlabel("mAP50")
    right.axvline(0, color="black", linewidth=1)
    right.set_xlabel("mAP50, real text less model; lines: 95 % intervals")
    right.locator_params(axis="x", nbins=5)  # signed numbers are wide
    for axes in (left, right):
        axes.grid(visible=False, axis="y")


def _classes(figure: Figure, evidence: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    others = [model for model in evidence["models"] if model["name"] not in ("text", SWAPPED)]
    rows = others[0]["classes"]
    names = chart_names([row["name"] for row in rows])
    step = 0.8 / len(others)
    for number, model in enumerate(others):
        offset = (number - (len(others) - 1) / 2) * step
        for position, row in enumerate(model["classes"]):
            found = row["text_over_it"]
            if found["value"] is None:
                continue
            place = position + offset
            color = chart_color(number)
            axes.plot([found["low"], found["high"]], [place, place], color=color, linewidth=1.6)
            axes.plot(found["value"], place, "o", color=color, markeredgecolor="black", markersize=5)
        axes.plot([], [], "o-", color=chart_color(number), label=model["description"])
    for position in range(1, len(rows)):
        axes.axhline(position - 0.5, color="#e6e6e6", linewidth=1)
    labels = [f"{name}\nn = {row['num_boxes']}" for name, row in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("AP50 of the real text less that of the model; lines: 95 % intervals")
    axes.set_title("How much more AP50 the real text has than each other model")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _difference(axes: Axes, position: int, found: Mapping[str, Any]) -> None:
    """A difference with its interval, blue if it lies above 0, red below, gray if neither."""
    if found["value"] is None:
        axes.text(0.0, position, "cannot be told", va="center", color=GRAY, bbox=ON_WHITE, zorder=4)
        return
    color = {"better": BLUE, "worse": RED}.get(found["verdict"], GRAY)
    axes.plot([found["low"], found["high"]], [position, position], color=color, linewidth=2.2)
    axes.plot(found["value"], position, "o", color=color, markeredgecolor="black", markersize=7)
