"""Charts of a dataset as PNG: classes, box sizes, positions, brightness, and a sheet of samples."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from deim.boxes import xywh_to_xyxy
from deim.curation.stats import SMALL_SIDE_PX, DatasetStats, legible
from deim.data.formats.coco import CocoSplit
from deim.data.images.load import read_preview
from deim.report.charts import Draw, chart_figure, say_nothing_to_show
from deim.report.draw import Panel, PanelRow, panel_sheet
from deim.report.palette import CLASS_COLORS, GRAY, chart_color, class_color

DPI = 110
NUM_SAMPLES, SAMPLE_COLUMNS = 12, 4
MAX_POINTS = 20_000
"""Maximum number of points of the scatter chart; of more, a random choice is drawn."""
POSITION_CELLS = 32
MAX_BARS = 40
"""Maximum number of bars for classes; the rarer ones share one bar."""
FIRST_SPLIT_COLOR = 4

Color = tuple[float, float, float] | str


def draw_stats(
    stats: DatasetStats, splits: Mapping[str, CocoSplit], folder: Path, *, seed: int = 0
) -> list[Path]:
    """Draw all charts.

    Args:
        stats: Statistics of the splits.
        splits: Splits by name, for the sheet of samples.
        folder: Folder of the charts; it is made.
        seed: Seed of the choice of samples and points.

    Returns:
        Paths of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = min(len(stats.class_names), MAX_BARS + 1)
    bars = classes * len(stats.split_names)
    charts: dict[str, tuple[Draw, float]] = {
        "classes": (partial(_class_bars, stats=stats), 1.4 + 0.24 * bars + 0.15 * classes),
        "box_sizes": (partial(_box_sizes, stats=stats, seed=seed), 6.0),
        "positions": (partial(_positions, stats=stats), 6.0),
        "brightness": (partial(_brightness, stats=stats), 3.6),
    }
    paths = [_save(draw, folder / f"{name}.png", height=height) for name, (draw, height) in charts.items()]
    samples = folder / "samples.png"
    rows = _sample_rows(stats, splits, seed)
    panel_sheet(rows, title="Random samples", columns=SAMPLE_COLUMNS).save(samples)
    return [*paths, samples]


def _save(draw: Draw, path: Path, *, height: float) -> Path:
    with chart_figure(draw, height=height) as figure:
        figure.savefig(path, dpi=DPI)
    return path


def _most_frequent(stats: DatasetStats, most: int) -> NDArray[np.int64]:
    """Return the positions of the `most` classes with the most boxes, in ascending order."""
    return np.sort(np.argsort(-stats.counts().sum(axis=0), kind="stable")[:most])


def _name_others(number: int) -> str:
    return f"{number} other class{'es' if number > 1 else ''}"


def _set_log_scale(axis: Axis) -> None:
    """Label an axis at 1, 2 and 5 of each decade, without powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _class_bars(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    shown = _most_frequent(stats, MAX_BARS)
    names = [stats.class_names[index] for index in shown]
    counts = stats.counts()[:, shown]
    others = len(stats.class_names) - len(shown)
    if others:
        names.append(_name_others(others))
        counts = np.column_stack([counts, stats.counts().sum(axis=1) - counts.sum(axis=1)])
    number = len(stats.split_names)
    thickness = 0.8 / number
    for index, name in enumerate(stats.split_names):
        places = np.arange(len(names)) + (index - (number - 1) / 2) * thickness
        color = chart_color(index + FIRST_SPLIT_COLOR)
        bars = axes.barh(places, counts[index], height=thickness * 0.9, color=color, label=name)
        axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="boxes", title="Boxes per class")
    figure.legend(loc="outside lower right", ncols=number)


def _box_sizes(figure: Figure, stats: DatasetStats, seed: int) -> None:
    axes = figure.subplots()
    sides, labels = stats.boxes.sides_wh, stats.boxes.class_index
    height, width = stats.input_format.size_hw
    axes.set_title(f"Box sizes at the training size, {width}x{height} px")
    if not len(sides):
        return say_nothing_to_show(axes, "no boxes")
    colors: list[Color] = [GRAY] * len(stats.class_names)
    for place, index in enumerate(_most_frequent(stats, len(CLASS_COLORS))):
        colors[index] = chart_color(place)
    order = np.random.default_rng(seed).permutation(len(sides))[:MAX_POINTS]
    point_colors = [colors[label] for label in labels[order]]
    axes.scatter(sides[order, 0], sides[order, 1], s=9, c=point_colors, alpha=0.5, linewidths=0)
    ends = (min(SMALL_SIDE_PX / 2, float(sides.min()) * 0.8), 1.25 * max(width, height))
    curve, median = np.geomspace(*ends, 50), float(np.median(stats.box_sides()))
    median_text = f"median area: a side of {median:.1f} px"
    axes.plot(curve, median**2 / curve, color="black", linewidth=1, label=median_text)
    small_text = f"a side of {SMALL_SIDE_PX:g} px"
    axes.plot(curve, SMALL_SIDE_PX**2 / curve, color="black", linestyle="--", linewidth=1, label=small_text)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="width, px", ylabel="height, px")
    _set_log_scale(axes.xaxis)
    _set_log_scale(axes.yaxis)
    for name, color in zip(stats.class_names, colors, strict=True):
        if color != GRAY:
            axes.scatter([], [], s=25, color=color, label=name)
    if GRAY in colors:
        axes.scatter([], [], s=25, color=GRAY, label=_name_others(colors.count(GRAY)))
    figure.legend(loc="outside right upper", fontsize=9)
    return None


def _brightness(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    for index, (name, values) in enumerate(zip(stats.split_names, stats.brightness, strict=True)):
        axes.hist(
            values,
            bins=np.linspace(0, 255, 52).tolist(),
            weights=np.full(len(values), 100 / max(len(values), 1)),
            histtype="step",
            linewidth=1.6,
            color=chart_color(index + FIRST_SPLIT_COLOR),
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
        return say_nothing_to_show(axes, "no boxes")
    frame = [[0.0, 1.0], [0.0, 1.0]]
    table, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=POSITION_CELLS, range=frame)
    height, width = np.median(stats.image_sizes_hw, axis=0)
    heatmap = axes.imshow(table, cmap="magma", extent=(0, 1, 1, 0), aspect=float(height / width))
    axes.grid(visible=False)
    axes.set(xlabel="left to right, share of the image's width", ylabel="top to bottom, share of the height")
    figure.colorbar(heatmap, label="boxes", shrink=0.8)
    return None


def _sample_rows(stats: DatasetStats, splits: Mapping[str, CocoSplit], seed: int) -> list[PanelRow]:
    """Choose images that can be decoded, and draw their boxes."""
    places = [
        (name, index)
        for name, is_decoded in zip(splits, stats.is_decoded, strict=True)
        for index in np.flatnonzero(is_decoded).tolist()
    ]
    rows = []
    for place in np.random.default_rng(seed).permutation(len(places))[:NUM_SAMPLES]:
        name, index = places[place]
        split = splits[name]
        boxes = slice(split.first_box[index], split.first_box[index + 1])
        labels = [split.category_ids.index(int(category)) for category in split.box_category_ids[boxes]]
        panel = Panel(
            caption=f"boxes: {len(labels)}",
            boxes_xyxy=xywh_to_xyxy(torch.from_numpy(split.boxes_xywh[boxes])),
            texts=[stats.class_names[label] for label in labels],
            colors=[class_color(label) for label in labels],
        )
        caption = f"{legible(name)}: {legible(Path(split.file_names[index]).name)}"
        image = read_preview(split.image_path(index))
        rows.append(PanelRow(image=image, caption=caption, panels=[panel]))
    return rows
