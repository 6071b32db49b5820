"""Charts with the names, and the numbers of classes and runs, that make them illegible."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from deim.inference.operating_points import NmsOptions
from deim.metrics.average_precision import PrecisionRecall
from deim.metrics.bootstrap import Interval
from deim.metrics.confusion import Confusion
from deim.metrics.convergence import Convergence
from deim.metrics.tide import tide_delta_ap50
from deim.report import charts
from deim.report import compare_files as comparison
from deim.report.compare import ComparedRun
from deim.report.palette import chart_color, line_style
from deim.report.schema import ErrorReport, Report
from tests.metrics.random_results import random_split, split_tables
from tests.report.random_reports import inputs_of, report_of

HARD_NAMES = ("scratch $5 to $10", "$a", "_hidden", "裂纹", "crack 裂纹 2", "RAYÓN", r"a\b^2 %")
LONG_NAMES = tuple(f"defect {chr(97 + k)} of the very long wall of the vessel" for k in range(20))
BASE_REPORT = report_of(
    inputs_of(
        split_tables(*random_split(0, num_images=3, num_classes=1, empty=True)), Path(), num_resamples=2
    )
)
BARS = charts.BarSeries(values=(0.5,) * 2, color="blue")
LONG_RUNS = tuple(f"deimv2_1024_multimodal_neu_det_seed{k}" for k in range(5))


def make_report(names: tuple[str, ...], *, hours: float = 2.0) -> Report:
    """A report with half of the boxes of each class found."""
    size = len(names) + 1
    counts = 5 * np.eye(size, dtype=np.int64)
    counts[:-1, -1], counts[-1, -1] = 5, 0
    base = BASE_REPORT
    row = base.classes[0]
    ends = Interval(low=0.4, high=0.6)
    return replace(
        base,
        classes=tuple(
            replace(
                row,
                metrics=replace(row.metrics, name=name, num_boxes=10, num_images=7, ap50=0.5),
                ap50_interval=ends,
                ap50_after_nms=0.5,
                ap50_after_nms_interval=ends,
                counts=replace(row.counts, precision=0.7, recall=0.5),
                precision_recall=PrecisionRecall(
                    thresholds=(0.9, 0.5), recall=(0.1, 0.5), precision=(1.0, 0.7)
                ),
            )
            for name in names
        ),
        confusion=Confusion(
            labels=(*names, "background"),
            counts=tuple(map(tuple, counts.tolist())),
            row_percent=(
                *(tuple(50.0 if value else 0.0 for value in first) for first in counts[:-1].tolist()),
                (None,) * size,
            ),
            most_confused=None,
        ),
        operating_points=replace(
            base.operating_points,
            classes=tuple(replace(base.operating_points.classes[0], name=name) for name in names),
        ),
        errors=dict.fromkeys(
            base.errors, ErrorReport(count=3, by_class=(), ap50_delta=0.1, kept_ap50_delta=0.1)
        ),
        summary=replace(base.summary, ap50=0.6),
        intervals=replace(base.intervals, ap50=ends),  # type: ignore[type-var]
        convergence=Convergence(
            planned_epochs=2,
            epochs=(0, 1),
            ap=(0.1, 0.2),
            ap50=(0.3, 0.5),
            loss=(4.0, 3.0),
            hours=hours,
            stopped_early=False,
            best_epoch=1,
            best_ap=0.2,
            still_rising=None,
        ),
    )


def make_runs(run_names: tuple[str, ...], class_names: tuple[str, ...]) -> list[ComparedRun]:
    nothing = split_tables({"images": [], "categories": [], "annotations": []}, []).overlaps
    return [
        ComparedRun(
            name=name,
            path=Path(name),
            report=make_report(class_names, hours=2 + k / 100),
            raw=nothing,
            kept=nothing,
        )
        for k, name in enumerate(run_names)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure saved, by the name of its file; nothing is written."""
    figures: dict[str, Figure] = {}

    def keep(draw: charts.Draw, path: Path, *, height: float, width: float = charts.WIDTH) -> Path:
        figure = Figure(figsize=(width, height), layout="constrained")
        with mpl.rc_context(charts.CHART_STYLE):
            draw(figure)
            figure.draw_without_rendering()
        figures[path.name] = figure
        return path.with_suffix(".svg")

    monkeypatch.setattr(charts, "save_chart", keep)
    monkeypatch.setattr(comparison, "save_chart", keep)
    return figures


def figure_of(draw: Callable[[Figure, Report], None], report: Report) -> Figure:
    with mpl.rc_context(charts.CHART_STYLE):
        figure = Figure()
        draw(figure, report)
        figure.draw_without_rendering()
    return figure


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text().lstrip("\u200b") for legend in figure.legends for text in legend.get_texts()]


def texts_of(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def is_within(figure: Figure) -> bool:
    """Whether all texts and legends lie on the page."""
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return bool(drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height)


@pytest.mark.filterwarnings("error")
def test_any_name_is_written_letter_by_letter_and_stands_in_the_legend(drawn: dict[str, Figure]) -> None:
    report = make_report(HARD_NAMES)
    figure = figure_of(charts._precision_recall, report)
    assert legend_of(figure) == [
        *("scratch $5 to $10 (n = 10)", "$a (n = 10)", "_hidden (n = 10)", "class 3 (n = 10)"),
        *("crack ?? 2 (n = 10)", "RAYÓN (n = 10)", r"a\b^2 % (n = 10)"),
    ]
    charts.save_class_ap50(report, [BARS], Path("class_ap50"), basis="after NMS")
    runs = make_runs(("$a$ and $", "_run", "运行"), HARD_NAMES)
    comparison.draw_comparison_charts(runs, Path())
    comparison.draw_confusion_pairs(runs[:2], Path())
    expected = ["$a$ and $", "_run", "run 2"]
    for name in ("map_by_epoch", "class_ap50_bars"):
        assert legend_of(drawn[name]) == expected
    assert not any(text.get_parse_math() for text in drawn["class_ap50_bars"].axes[0].get_yticklabels())


@pytest.mark.filterwarnings("error")
def test_a_chart_is_written_as_png_and_svg(tmp_path: Path) -> None:
    path = charts.save_confusions([("$a$ and $", make_report(("$5 $ $", "_x")).confusion)], tmp_path / "a")
    assert path == tmp_path / "a.svg"
    assert "<svg" in path.read_text()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width >= charts.WIDTH * charts.PNG_DPI


def test_long_names_differ_in_every_chart(drawn: dict[str, Figure]) -> None:
    runs = make_runs(LONG_RUNS, LONG_NAMES)
    comparison.draw_comparison_charts(runs, Path())
    names = legend_of(drawn["map_by_epoch"])
    assert [name[-5:] for name in names] == [f"seed{k}" for k in range(5)]
    labels = [label.get_text() for label in drawn["class_ap50_bars"].axes[0].get_yticklabels()]
    assert len(set(labels)) == len(labels) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("class_names", "run_names"), [(HARD_NAMES[:1], LONG_RUNS * 4), (LONG_NAMES, LONG_RUNS)]
)
def test_everything_lies_within_the_chart(
    drawn: dict[str, Figure], class_names: tuple[str, ...], run_names: tuple[str, ...]
) -> None:
    # Other words first, so that nothing is left out of them.
    class_names = tuple(f"{name[:8][::-1]} {name}" for name in class_names)
    runs = make_runs(tuple(f"{k} {name}" for k, name in enumerate(run_names)), class_names)
    comparison.draw_comparison_charts(runs, Path())
    comparison.draw_confusion_pairs(runs[:2], Path())
    charts.draw_report_charts(replace(runs[0].report, convergence=None), Path())
    assert len(drawn) == 9
    assert [name for name, figure in drawn.items() if not is_within(figure)] == []


@pytest.mark.parametrize("number", [1, 8, 9, 20])
@pytest.mark.parametrize("is_pair", [False, True])
def test_the_cells_of_confusions_have_room_for_their_counts(
    drawn: dict[str, Figure], number: int, is_pair: bool
) -> None:
    confusion = make_report(LONG_NAMES[:number]).confusion
    counts = ((123456, *confusion.counts[0][1:]), *confusion.counts[1:])
    confusion = replace(confusion, counts=counts)
    charts.save_confusions([("", confusion)] * (1 + is_pair), Path("confusion"))
    figure = drawn["confusion"]
    assert len(figure.axes) == 2 + is_pair
    for axes in figure.axes[: 1 + is_pair]:
        step = axes.transData.transform([[0, 0], [1, 1]])
        cell_width, cell_height = np.abs(step[1] - step[0])
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.width < cell_width
            assert box.height < cell_height
            assert text.get_fontsize() >= 8
        assert texts_of(axes)[0] == "123456"
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            assert not any(first.overlaps(other) for first, other in pairwise(boxes))


def test_very_many_classes_have_no_counts() -> None:
    names = tuple(f"c{k}" for k in range(150))
    confusion = make_report(names).confusion
    figure = Figure()
    charts._draw_confusions(figure, [("", confusion)], [*names, "background"], has_counts=False)
    assert not figure.axes[0].texts


def test_values_stand_above_the_line_of_the_mean(drawn: dict[str, Figure]) -> None:
    charts.save_class_ap50(make_report(("pit", "scratch")), [BARS], Path("class_ap50"), basis="after NMS")
    axes = drawn["class_ap50"].axes[0]
    (mean,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert texts_of(axes) == ["0.500", "0.500"]
    assert all(text.get_zorder() > mean.get_zorder() and text.get_bbox_patch() for text in axes.texts)


def test_a_gain_of_nothing_says_why() -> None:
    report = make_report(("pit",))
    missed = ErrorReport(count=10, by_class=(), kept_ap50_delta=None, ap50_delta=None)
    report = replace(report, errors=report.errors | {"missed": missed})
    texts = texts_of(figure_of(charts._errors, report).axes[1])
    assert texts[-1] == "all are missed"
    assert "no ground truth" not in texts
    nothing = ErrorReport(count=0, by_class=(), kept_ap50_delta=None, ap50_delta=None)
    report = replace(report, errors=dict.fromkeys(report.errors, nothing))
    assert texts_of(figure_of(charts._errors, report).axes[1]) == ["no ground truth"] * 6


def lines_of(axes: Axes) -> tuple[list[Any], list[Any]]:
    """The lines of a chart, and the dots on them."""
    dots = [line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata()) == 1]
    return [line for line in axes.lines if line not in dots and len(line.get_xdata()) > 2], dots


@pytest.mark.parametrize("seed", [0, 4])
def test_operating_points_lie_on_their_curves(seed: int) -> None:
    split = split_tables(*random_split(seed, num_images=60, decimals=6))
    report = report_of(inputs_of(split, Path(), num_resamples=0, nms=NmsOptions(mode="class_aware")))
    for axes in figure_of(charts._thresholds, report).axes:
        lines, dots = lines_of(axes)
        assert len(dots) >= 3
        for dot in dots:
            line = next(line for line in lines if line.get_color() == dot.get_color())
            (x,), (y,) = dot.get_data()
            place = np.searchsorted(line.get_xdata(), x, side="left")
            assert line.get_ydata()[place] == pytest.approx(y, abs=0.005)
    (curve,), dots = lines_of(figure_of(charts._escapes, report).axes[0])
    square = next(dot for dot in dots if dot.get_marker() == "s")
    assert tuple(float(value[0]) for value in square.get_data()) in set(zip(*curve.get_data(), strict=True))


@pytest.mark.parametrize("seed", [1, 7])
def test_both_sides_of_the_errors_are_about_the_kept_detections(seed: int) -> None:
    inputs = inputs_of(split_tables(*random_split(seed, decimals=6)), Path(), num_resamples=0)
    report, kept = report_of(inputs), tide_delta_ap50(inputs.kept)
    texts = texts_of(figure_of(charts._errors, report).axes[1])
    assert texts == [f"{100 * (delta or 0):.1f}" for delta in kept.deltas.values()]
    for kind, row in report.errors.items():
        assert row.count or kind == "missed" or not row.kept_ap50_delta, "no gain without an error"


@pytest.mark.parametrize("seed", [2, 3])
def test_bars_and_curves_beside_each_other_are_of_the_same_detections(seed: int) -> None:
    split = split_tables(*random_split(seed, num_images=50, decimals=6))
    inputs = inputs_of(split, Path(), num_resamples=0)
    report = report_of(inputs)
    for row in report.classes:
        curve = row.precision_recall
        if curve is not None:
            best = np.maximum.accumulate(np.append(curve.precision, 0)[::-1])[::-1]
            area = best[np.searchsorted(curve.recall, np.linspace(0, 1, 101))].mean()
            assert row.ap50_after_nms == pytest.approx(area, abs=0.01)


@pytest.mark.parametrize("planned", [1, 2, 3, 7, 130])
def test_epochs_are_whole_and_count_from_one(planned: int) -> None:
    report = make_report(("pit",))
    assert report.convergence is not None
    report = replace(report, convergence=replace(report.convergence, planned_epochs=planned))
    for draw in (charts._convergence, charts._losses):
        axes = figure_of(draw, report).axes[0]
        ticks = [tick for tick in axes.get_xticks() if 0.5 <= tick <= planned + 0.5]
        assert ticks
        assert all(tick == round(tick) >= 1 for tick in ticks)
        assert np.asarray(axes.lines[0].get_xdata())[0] == 1


def test_neighboring_lines_differ_in_color_and_style() -> None:
    styles = [(chart_color(k), str(line_style(k))) for k in range(35)]
    assert len(set(styles)) == 35
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in pairwise(styles))


@pytest.mark.parametrize("names", [HARD_NAMES, LONG_NAMES[:8]])
def test_labels_of_a_chart_do_not_overlap(names: tuple[str, ...]) -> None:
    for draw in (charts._precision_recall, charts._thresholds, charts._escapes, charts._errors):
        with charts.chart_figure(partial(draw, report=make_report(names)), height=8) as figure:
            boxes = [
                text.get_window_extent()
                for text in (*labels_of(figure), *(t for item in figure.legends for t in item.get_texts()))
            ]
        assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


def labels_of(figure: Figure) -> Iterator[Text]:
    """Texts around the axes of a chart."""
    for axes in figure.axes:
        yield from (axes.xaxis.label, axes.yaxis.label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high and tick.label1.get_visible():
                    yield tick.label1
