"""Charts of a dataset as PNG: classes, box sizes, positions and brightness."""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from deim.curation.stats import SMALL_SIDE_PX, DatasetStats
from deim.report.charts import BarSeries, Draw, chart_figure, draw_bars, say_nothing_to_show, write_figure
from deim.report.palette import CLASS_COLORS, GRAY, chart_color

DPI = 110
MAX_POINTS = 20_000
"""Maximum number of points of the scatter chart; of more, a random choice is drawn."""
POSITION_CELLS = 32
MAX_BARS = 40
"""Maximum number of bars for classes; the rarer ones share one bar."""


def draw_stats(stats: DatasetStats, folder: Path, *, seed: int = 0) -> list[Path]:
    """Draw all charts as PNG files in a folder, which is made; `seed` is that of the choice of points."""
    folder.mkdir(parents=True, exist_ok=True)
    num_classes = min(len(stats.class_names), MAX_BARS + 1)
    class_height = 0.15 + 0.24 * len(stats.split_names)
    charts: dict[str, tuple[Draw, float]] = {
        "classes": (partial(_class_bars, stats=stats), 1.4 + class_height * num_classes),
        "box_sizes": (partial(_box_sizes, stats=stats, seed=seed), 6.0),
        "positions": (partial(_positions, stats=stats), 6.0),
        "brightness": (partial(_brightness, stats=stats), 3.6),
    }
    return [_save(draw, folder / f"{name}.png", height=height) for name, (draw, height) in charts.items()]


def _save(draw: Draw, path: Path, *, height: float) -> Path:
    with chart_figure(draw, height=height) as figure:
        write_figure(figure, path, dpi=DPI)
    return path


def _most_frequent(stats: DatasetStats, most: int) -> NDArray[np.int64]:
    """Return the positions of the `most` classes with the most boxes, in ascending order."""
    return np.sort(np.argsort(-stats.counts().sum(axis=0), kind="stable")[:most])


def _name_others(number: int) -> str:
    return f"{number} other class{'es' if number > 1 else ''}"


def _class_bars(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    shown = _most_frequent(stats, MAX_BARS)
    names = [stats.class_names[index] for index in shown]
    counts = stats.counts()[:, shown]
    others = len(stats.class_names) - len(shown)
    if others:
        names.append(_name_others(others))
        counts = np.column_stack([counts, stats.counts().sum(axis=1) - counts.sum(axis=1)])
    series = [
        BarSeries(
            values=counts[index].tolist(),
            color=chart_color(index),
            label=name,
            number_format="{:.0f}",
        )
        for index, name in enumerate(stats.split_names)
    ]
    draw_bars(axes, names, series)
    axes.set(xlabel="boxes", title="Boxes per class")
    figure.legend(loc="outside lower right", ncols=len(series))


def _box_sizes(figure: Figure, stats: DatasetStats, seed: int) -> None:
    axes = figure.subplots()
    sides, labels = stats.boxes.sides_wh, stats.boxes.class_index
    height, width = stats.input_format.size_hw
    axes.set_title(f"Box sizes at the training size, {width}x{height} px")
    if not len(sides):
        say_nothing_to_show(axes, "no boxes")
        return
    colors: list[tuple[float, float, float] | str] = [GRAY] * len(stats.class_names)
    for place, index in enumerate(_most_frequent(stats, len(CLASS_COLORS))):
        colors[index] = chart_color(place)
    order = np.random.default_rng(seed).permutation(len(sides))[:MAX_POINTS]
    point_colors = [colors[label] for label in labels[order]]
    axes.scatter(sides[order, 0], sides[order, 1], s=9, c=point_colors, alpha=0.5, linewidths=0)
    ends = (min(SMALL_SIDE_PX / 2, float(sides.min()) * 0.8), 1.25 * max(width, height))
    curve, median = np.geomspace(*ends, 50), float(np.median(stats.box_sides()))
    for side, style, text in (
        (median, "-", f"median area: a side of {median:.1f} px"),
        (SMALL_SIDE_PX, "--", f"a side of {SMALL_SIDE_PX:g} px"),
    ):
        axes.plot(curve, side**2 / curve, color="black", linestyle=style, linewidth=1, label=text)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="width, px", ylabel="height, px")
    for axis in (axes.xaxis, axes.yaxis):
        # Labels at 1, 2 and 5 of each decade, without powers of ten.
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    for name, color in zip(stats.class_names, colors, strict=True):
        if color != GRAY:
            axes.scatter([], [], s=25, color=color, label=name)
    if GRAY in colors:
        axes.scatter([], [], s=25, color=GRAY, label=_name_others(colors.count(GRAY)))
    figure.legend(loc="outside right upper", fontsize=9)


def _brightness(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    for index, (name, values) in enumerate(zip(stats.split_names, stats.brightness, strict=True)):
        axes.hist(
            values,
            bins=np.linspace(0, 255, 52).tolist(),
            weights=np.full(len(values), 100 / max(len(values), 1)),
            histtype="step",
            linewidth=1.6,
            color=chart_color(index),
            label=name,
        )
    figure.legend(loc="outside lower right", ncols=len(stats.split_names))
    axes.set(xlim=(0, 255), xlabel="mean gray of an image, 0 black to 255 white")
    axes.set(ylabel="% of the images", title="Brightness of the images")


def _positions(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    axes.set_title("Centers of the boxes")
    centers = stats.boxes.centers_xy
    if not len(centers):
        say_nothing_to_show(axes, "no boxes")
        return
    frame = [[0.0, 1.0], [0.0, 1.0]]
    table, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=POSITION_CELLS, range=frame)
    height, width = np.median(stats.image_sizes_hw, axis=0)
    heatmap = axes.imshow(table, cmap="magma", extent=(0, 1, 1, 0), aspect=float(height / width))
    axes.grid(visible=False)
    axes.set(xlabel="left to right, share of the image's width", ylabel="top to bottom, share of the height")
    figure.colorbar(heatmap, label="boxes", shrink=0.8)
