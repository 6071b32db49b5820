"""Charts with the names, and the numbers of classes and runs, that make them illegible."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from deim.report.compare.runs import ComparedRun
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from deim.inference.detection_table import split_results
from deim.metrics.assignment import assign, compute_overlaps
from deim.report import charts
from deim.report.compare import charts as comparison

HARD_NAMES = ("scratch $5 to $10", "$a", "_hidden", "裂纹", "crack 裂纹 2", "RAYÓN", r"a\b^2 %")
LONG_NAMES = tuple(f"defect {chr(97 + k)} of the very long wall of the vessel" for k in range(20))
LONG_RUNS = tuple(f"deimv2_1024_multimodal_neu_det_seed{k}" for k in range(5))


def make_report(names: tuple[str, ...], *, hours: float = 2.0) -> dict[str, Any]:
    """The parts of a report that these charts read; half of the boxes of each class are found."""
    size = len(names) + 1
    counts = 5 * np.eye(size, dtype=np.int64)
    counts[:-1, -1], counts[-1, -1] = 5, 0
    row = {"num_boxes": 10, "num_images": 7, "ap50": 0.5, "ap50_interval": [0.4, 0.6]}
    return {
        "classes": [row | {"name": name, "precision": 0.7, "recall": 0.5} for name in names],
        "precision_recall": [{"recall": [0.1, 0.5], "precision": [1.0, 0.7]}] * len(names),
        "confusion": {
            "labels": [*names, "background"],
            "counts": counts.tolist(),
            "row_percent": [[50.0 if value else 0.0 for value in one] for one in counts[:-1].tolist()]
            + [[None] * size],
        },
        "errors": {
            kind: {"count": 3, "ap50_gain": 0.1}
            for kind in ("classification", "localization", "both", "duplicate", "background", "missed")
        },
        "image_level": {"curve": {}, "at_operating_points": {"num_good": 0, "num_defective": 0}},
        "summary": {"ap50": 0.6},
        "intervals": {"ap50": [0.4, 0.6]},
        "convergence": {"hours": hours, "curve": {"epochs": [0, 1], "ap50": [0.3, 0.5], "ap": [0.1, 0.2]}},
    }


def make_runs(run_names: tuple[str, ...], class_names: tuple[str, ...]) -> list[ComparedRun]:
    results = split_results({"images": [], "categories": [], "annotations": []}, [])
    return [
        ComparedRun(
            name=name,
            path=Path(name),
            report=make_report(class_names, hours=2 + k / 100),
            results=results,
            shipped=results,
            assignment=assign(results, compute_overlaps(results)),
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


def figure_of(draw: Callable[[Figure, dict[str, Any]], None], report: dict[str, Any]) -> Figure:
    with mpl.rc_context(charts.CHART_STYLE):
        figure = Figure()
        draw(figure, report)
        figure.draw_without_rendering()
    return figure


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text().lstrip("\u200b") for text in legend.get_texts()]


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
    assert legend_of(figure.axes[0]) == [
        *("scratch $5 to $10 (n = 10)", "$a (n = 10)", "_hidden (n = 10)", "class 3 (n = 10)"),
        *("crack ?? 2 (n = 10)", "RAYÓN (n = 10)", r"a\b^2 % (n = 10)"),
    ]
    figure_of(charts._class_bars, report)
    runs = make_runs(("$a$ and $", "_run", "运行"), HARD_NAMES)
    comparison.draw_comparison_charts(runs, Path())
    comparison.draw_confusion_pairs(runs[:2], Path())
    expected = ["$a$ and $", "_run", "run 2"]
    for name in ("map_by_epoch", "class_ap50_bars"):
        assert legend_of(drawn[name].axes[0]) == expected
    assert legend_of(drawn["time_against_map"].axes[0]) == [f"{name}: 0.600" for name in expected]
    assert not any(text.get_parse_math() for text in drawn["classes_over_runs"].axes[0].get_xticklabels())


@pytest.mark.filterwarnings("error")
def test_a_chart_is_written_as_png_and_svg(tmp_path: Path) -> None:
    path = charts.save_confusions([("$a$ and $", make_report(("$5 $ $", "_x"))["confusion"])], tmp_path / "a")
    assert path == tmp_path / "a.svg"
    assert "<svg" in path.read_text()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == charts.WIDTH * charts.PNG_DPI


def test_long_names_differ_in_every_chart(drawn: dict[str, Figure]) -> None:
    runs = make_runs(LONG_RUNS, LONG_NAMES)
    comparison.draw_comparison_charts(runs, Path())
    assert legend_of(drawn["map_by_epoch"].axes[0]) == [f"seed{k}" for k in range(5)]
    classes = legend_of(drawn["classes_over_runs"].axes[0])
    assert classes[0] == "a (n = 10)"
    assert len(set(classes)) == len(classes) == 21


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
    charts.draw_report_charts(runs[0].report | {"convergence": None}, Path())
    assert len(drawn) == 10
    assert [name for name, figure in drawn.items() if not is_within(figure)] == []


@pytest.mark.parametrize("number", [1, 8, 9, 20])
@pytest.mark.parametrize("is_pair", [False, True])
def test_the_cells_of_confusions_have_room_for_their_counts(
    drawn: dict[str, Figure], number: int, is_pair: bool
) -> None:
    confusion = make_report(LONG_NAMES[:number])["confusion"]
    confusion["counts"][0][0] = 123456
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
        assert texts_of(axes)[0] == ("123456\n50 %" if number <= 8 else "123456")
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {35 if number <= 8 else 90}
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels]
            if number > 8:
                assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_very_many_classes_have_no_counts() -> None:
    names = tuple(f"c{k}" for k in range(150))
    confusion = make_report(names)["confusion"]
    figure = Figure()
    charts._draw_confusions(figure, [("", confusion)], [*names, "background"], 1)
    assert not figure.axes[0].texts


def test_runs_of_like_times_are_told_apart_in_a_legend(drawn: dict[str, Figure]) -> None:
    comparison.draw_comparison_charts(make_runs(LONG_RUNS, ("pit",)), Path())
    axes = drawn["time_against_map"].axes[0]
    assert legend_of(axes) == [f"seed{k}: 0.600" for k in range(5)]
    assert not axes.texts
    points = [line for line in axes.lines if line.get_marker() != "None"]
    assert len({line.get_marker() for line in points}) == len({str(line.get_color()) for line in points}) == 5


def test_values_stand_above_the_line_of_the_mean() -> None:
    axes = figure_of(charts._class_bars, make_report(("pit", "scratch"))).axes[0]
    (mean,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert texts_of(axes) == ["0.500", "0.500"]
    assert all(text.get_zorder() > mean.get_zorder() and text.get_bbox_patch() for text in axes.texts)


def test_a_gain_of_nothing_says_why() -> None:
    report = make_report(("pit",))
    report["errors"]["missed"] |= {"count": 10, "ap50_gain": None}
    texts = texts_of(figure_of(charts._errors, report).axes[1])
    assert texts[-1] == "every box is missed"
    assert "no ground truth" not in texts
    for entry in report["errors"].values():
        entry["ap50_gain"] = None
    report["errors"]["missed"]["count"] = 0
    assert texts_of(figure_of(charts._errors, report).axes[1]) == ["no ground truth"] * 6
