"""Pictures of a dataset as PNG: bars of its classes, sizes, positions, brightness, and a sheet of samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from deim.curation.stats import SMALL_SIDE_PX, DatasetStats, legible
from deim.data.formats.coco import CocoSplit
from deim.data.images.pixel_format import read_picture
from deim.report.palette import CHART_STYLE

WIDTH = 8.0
"""Inches."""
DPI = 110
NUM_SAMPLES = 12
LONGEST_NAME = 24
SAMPLE_SIDE_PX = 480
"""Longest side of a sample; larger images are shrunk."""
MOST_POINTS = 20_000
"""Of the scatter chart; more are drawn by lot."""
POSITION_CELLS = 32
MOST_BARS = 40
"""Of classes; the rarer ones share one bar."""
COLORS: Final = (
    *("#e69f00", "#56b4e9", "#009e73", "#b0a000", "#0072b2", "#d55e00", "#cc79a7"),
    *("#332288", "#882255", "#7a4b2a", "#8fd14f", "#f4a6b8"),
)
"""Okabe and Ito, Color Universal Design (2008), the yellow darkened for white paper, and five more. As many
classes have a color of their own."""
GRAY = "#8a8a8a"


def draw_stats(
    stats: DatasetStats, splits: Mapping[str, CocoSplit], folder: Path, *, seed: int = 0
) -> list[Path]:
    """Draw all charts.

    Args:
        stats: Of the splits.
        splits: For the sheet of samples.
        folder: Where to put them; it is made.
        seed: Which samples, and which points where there are too many.

    Returns:
        Paths of the PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = min(len(stats.class_names), MOST_BARS + 1)
    bars = classes * len(stats.split_names)
    charts: dict[str, tuple[Callable[[Figure], None], float]] = {
        "classes": (partial(_class_bars, stats=stats), 1.4 + 0.24 * bars + 0.15 * classes),
        "box_sizes": (partial(_box_sizes, stats=stats, seed=seed), 6.0),
        "aspect_ratios": (partial(_aspect_ratios, stats=stats), 3.6),
        "boxes_per_image": (partial(_boxes_per_image, stats=stats), 3.6),
        "positions": (partial(_positions, stats=stats), 6.0),
        "brightness": (partial(_brightness, stats=stats), 3.6),
        "samples": (partial(_samples, stats=stats, splits=splits, seed=seed), 7.2),
    }
    return [_save(draw, folder / f"{name}.png", height=height) for name, (draw, height) in charts.items()]


def _save(draw: Callable[[Figure], None], path: Path, *, height: float) -> Path:
    with mpl.rc_context(CHART_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(path, dpi=DPI)
    return path


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _most_frequent(stats: DatasetStats, most: int) -> NDArray[np.int64]:
    """Positions of the classes with the most boxes, at most so many, in the order of the classes."""
    return np.sort(np.argsort(-stats.counts().sum(axis=0), kind="stable")[:most])


def _class_colors(stats: DatasetStats) -> list[str]:
    """Color of each class: one of its own for the most frequent ones, gray for the others."""
    colors = [GRAY] * len(stats.class_names)
    for place, index in enumerate(_most_frequent(stats, len(COLORS))):
        colors[index] = COLORS[place]
    return colors


def _name_others(number: int) -> str:
    return f"{number} other class{'es' if number > 1 else ''}"


def _number_plainly(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of each decade, without powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _say_nothing_to_show(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no boxes", ha="center", va="center", transform=axes.transAxes, color=GRAY)
    axes.set_xticks([])
    axes.set_yticks([])


def _class_bars(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    shown = _most_frequent(stats, MOST_BARS)
    names = [stats.class_names[index] for index in shown]
    counts = stats.counts()[:, shown]
    others = len(stats.class_names) - len(shown)
    if others:
        names.append(_name_others(others))
        rest = stats.counts().sum(axis=1) - counts.sum(axis=1)
        counts = np.column_stack([counts, rest])
    number = len(stats.split_names)
    thickness = 0.8 / number
    for index, name in enumerate(stats.split_names):
        places = np.arange(len(names)) + (index - (number - 1) / 2) * thickness
        bars = axes.barh(places, counts[index], height=thickness * 0.9, color=_color(index + 4), label=name)
        axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("boxes")
    axes.set_title("Boxes of each class")
    figure.legend(loc="outside lower right", ncols=number)


def _box_sizes(figure: Figure, stats: DatasetStats, seed: int) -> None:
    axes = figure.subplots()
    sides, labels = stats.boxes.sides_wh, stats.boxes.class_index
    height, width = stats.input_size_hw
    axes.set_title(f"Box sizes at the training size, {width}x{height} px")
    if not len(sides):
        return _say_nothing_to_show(axes)
    order = np.random.default_rng(seed).permutation(len(sides))[:MOST_POINTS]
    of_class = _class_colors(stats)
    colors = [of_class[label] for label in labels[order]]
    axes.scatter(sides[order, 0], sides[order, 1], s=9, c=colors, alpha=0.5, linewidths=0)
    ends = (min(SMALL_SIDE_PX / 2, float(sides.min()) * 0.8), 1.25 * max(width, height))
    curve = np.geomspace(*ends, 50)
    axes.plot(curve, SMALL_SIDE_PX**2 / curve, color="black", linestyle="--", linewidth=1)
    median = float(np.median(stats.box_sides()))
    axes.plot(curve, median**2 / curve, color="black", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    _number_plainly(axes.xaxis)
    _number_plainly(axes.yaxis)
    axes.set_xlabel("width, px")
    axes.set_ylabel("height, px")
    axes.plot([], [], color="black", label=f"median area: a side of {median:.1f} px")
    axes.plot([], [], color="black", linestyle="--", label=f"a side of {SMALL_SIDE_PX:g} px")
    for name, color in zip(stats.class_names, of_class, strict=True):
        if color != GRAY:
            axes.scatter([], [], s=25, color=color, label=name)
    if GRAY in of_class:
        axes.scatter([], [], s=25, color=GRAY, label=_name_others(of_class.count(GRAY)))
    figure.legend(loc="outside right upper", fontsize=9)
    return None


def _aspect_ratios(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    ratios = stats.boxes.aspect_ratios
    axes.set_title("Width over height of the boxes, in the original images")
    if not len(ratios):
        return _say_nothing_to_show(axes)
    low, high = min(0.25, float(ratios.min())), max(4.0, float(ratios.max()))
    axes.hist(ratios, bins=np.geomspace(low, high * 1.001, 50).tolist(), color=_color(4))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    _number_plainly(axes.xaxis)
    axes.set_xlabel("width / height (left: upright boxes, right: lying ones)")
    axes.set_ylabel("boxes")
    return None


def _boxes_per_image(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    most = max((int(counts.max()) for counts in stats.boxes_per_image if len(counts)), default=0)
    # Beyond 30 the bars would be hairs; wider ones hold several numbers.
    step = 1 + most // 30
    edges = np.arange(0, most + step + 1, step) - 0.5
    shares = [np.full(len(counts), 100 / max(len(counts), 1)) for counts in stats.boxes_per_image]
    colors = [_color(index + 4) for index in range(len(shares))]
    axes.hist(
        stats.boxes_per_image, bins=edges.tolist(), weights=shares, color=colors, label=stats.split_names
    )
    axes.set_xlabel("boxes of an image")
    axes.set_ylabel("% of the images")
    axes.set_title("Boxes an image")
    figure.legend(loc="outside lower right", ncols=len(shares))


def _positions(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    axes.set_title("Where the centers of the boxes lie")
    centers = stats.boxes.centers_xy
    if not len(centers):
        return _say_nothing_to_show(axes)
    frame = [[0.0, 1.0], [0.0, 1.0]]
    table, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=POSITION_CELLS, range=frame)
    height, width = np.median(stats.image_sizes_hw, axis=0)
    shown = axes.imshow(table, cmap="magma", extent=(0, 1, 1, 0), aspect=float(height / width))
    axes.grid(visible=False)
    axes.set_xlabel("left to right, share of the image's width")
    axes.set_ylabel("top to bottom, share of the height")
    figure.colorbar(shown, label="boxes", shrink=0.8)
    return None


def _brightness(figure: Figure, stats: DatasetStats) -> None:
    axes = figure.subplots()
    bins = np.linspace(0, 255, 52)
    for index, (name, values) in enumerate(zip(stats.split_names, stats.brightness, strict=True)):
        share = np.full(len(values), 100 / max(len(values), 1))
        axes.hist(
            values,
            bins=bins.tolist(),
            weights=share,
            histtype="step",
            linewidth=1.6,
            color=_color(index + 4),
            label=name,
        )
    axes.set_xlim(0, 255)
    axes.set_xlabel("mean gray of an image, 0 black to 255 white")
    axes.set_ylabel("% of the images")
    axes.set_title("Brightness of the images")
    figure.legend(loc="outside lower right", ncols=len(stats.split_names))


def _samples(figure: Figure, stats: DatasetStats, splits: Mapping[str, CocoSplit], seed: int) -> None:
    places = [
        (name, index)
        for name, is_decoded in zip(splits, stats.is_decoded, strict=True)
        for index in np.flatnonzero(is_decoded).tolist()
    ]
    chosen = np.random.default_rng(seed).permutation(len(places))[:NUM_SAMPLES]
    colors = _class_colors(stats)
    figure.suptitle("Samples drawn by lot", x=0.01, ha="left", fontweight="bold")
    for axes, place in zip(figure.subplots(3, 4).ravel(), chosen, strict=False):
        name, index = places[place]
        _draw_sample(axes, splits[name], index, colors=colors)
        shown = legible(Path(splits[name].file_names[index]).name)
        shown = shown if len(shown) <= LONGEST_NAME else f"…{shown[1 - LONGEST_NAME :]}"
        axes.set_title(f"{legible(name)}: {shown}", fontsize=8, fontweight="normal", loc="center")
    for axes in figure.axes:
        axes.axis("off")


def _draw_sample(axes: Axes, split: CocoSplit, index: int, *, colors: Sequence[str]) -> None:
    picture = read_picture(split.image_path(index))
    picture.thumbnail((SAMPLE_SIDE_PX, SAMPLE_SIDE_PX))
    scale = picture.width / int(split.sizes_hw[index, 1])
    axes.imshow(np.asarray(picture))
    for row in range(split.first_box[index], split.first_box[index + 1]):
        left, top, width, height = (split.boxes_xywh[row] * scale).tolist()
        label = split.category_ids.index(int(split.box_category_ids[row]))
        line = ":" if split.is_crowd[row] else "-"
        box = Rectangle((left, top), width, height, fill=False, color=colors[label], linewidth=1.4, ls=line)
        axes.add_patch(box)
        axes.text(
            max(left, 0),
            max(top, 0),
            legible(split.class_names[label])[:LONGEST_NAME],
            fontsize=6,
            # Above the box, or inside where there is no room above.
            va="bottom" if top > 0.06 * picture.height else "top",
            color="white",
            bbox={"facecolor": colors[label], "edgecolor": "none", "pad": 0.8},
            clip_on=True,
        )
