"""The files of a comparison: its numbers, its page, its charts.

comparison.json
comparison.html      the page, which needs no other file
comparison/
    runs.csv         the numbers of each run, and its options that differ
    classes.csv      the numbers of each run and class
    tables.tex       the tables of the page, on request
    images.png       the same images with the detections of each run
    *.png *.svg *.pdf  the charts
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from deim.files import write_text
from deim.language import ENGLISH, Language
from deim.metrics.bootstrap import ScoreDifference
from deim.records import to_json
from deim.report.charts import (
    BarSeries,
    chart_names,
    height_of_legend,
    legend_or_reason,
    save_chart,
    save_class_ap50,
    save_confusions,
    set_epoch_ticks,
)
from deim.report.compare import (
    ComparedRun,
    Comparison,
    compare_runs,
    describe_comparison,
    describe_options,
    images_that_differ,
    option_text,
)
from deim.report.draw import Panel, detections_panel, truth_panel, write_image
from deim.report.files import ImageFolder, image_sheet
from deim.report.languages import read_language
from deim.report.page import Section, embed_charts, embed_image, render_page
from deim.report.palette import CORRECT_COLOR, chart_color, line_style, outcome_colors
from deim.report.schema import check_report_path, write_record
from deim.report.table_files import LATEX_NAME, format_csv
from deim.report.tables import CSV_BASES, DASH, Cell, Table, class_rows, format_number, number_cell
from deim.report.verdict import percent

NUM_IMAGES = 8
"""Images that are shown with the detections of each run."""
CAUTION = (
    "Each interval stands alone: of twenty comparisons of equal runs, one is expected to look different. "
    "The intervals hold for other images of the same kind; another seed of the same training may differ too."
)


def write_comparison(
    runs: Sequence[ComparedRun], path: Path, *, language: Language | None = None
) -> Comparison:
    """Compare runs and write all files of the comparison beside the JSON file at `path`.

    Args:
        runs: From `read_runs`, the baseline first.
        path: The JSON file.
        language: Language of the page, the charts and the images; None for that of the first run's page.

    Raises:
        DataError: If `path` is a folder or has another suffix than `.json`.
    """
    check_report_path(path)
    language = language or read_language(runs[0].report.provenance.language)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("confusion_*"), *folder.glob(LATEX_NAME)):  # of other runs
        old.unlink()
    comparison = compare_runs(runs)
    images = ImageFolder(Path(comparison.dataset.image_dir), runs[0].raw.ground_truth.file_names)
    sheet = _image_sheet(runs, images, language)
    write_image(sheet, folder / "images.png")
    write_text(folder / "runs.csv", format_csv(run_rows(runs, comparison)))
    write_text(folder / "classes.csv", format_csv(_class_rows(runs, comparison)))
    charts = draw_comparison_charts(runs, folder, language)
    confusions = draw_confusion_pairs(runs, folder, language)
    sheet_title = language.text("ground truth, and the detections of each run")
    page = render_page(
        language.text("{number} runs on {split}", number=len(runs), split=comparison.split),
        language.text(
            "{file}, {images}, {boxes}",
            file=comparison.dataset.annotations_file,
            images=language.count("image", comparison.num_images),
            boxes=language.count("box", comparison.num_boxes),
        ),
        [
            Section(
                title=language.text("Summary"),
                lines=[*describe_comparison(comparison, language), language.text(CAUTION)],
            ),
            Section(
                title=language.text("Side by side"),
                lines=[describe_options(comparison, language)],
                tables=comparison_tables(runs, comparison, language),
            ),
            Section(title=language.text("Charts"), figures=embed_charts(charts), figures_in_columns=True),
            Section(title=language.text("Confusion of classes"), figures=embed_charts(confusions)),
            Section(
                title=language.text("The images on which the runs differ most"),
                lines=[line for line in (images.describe_missing(language),) if line],
                figures=[embed_image(sheet, sheet_title)],
            ),
        ],
        language=language,
    )
    write_text(path.with_suffix(".html"), page)
    write_record(comparison, path)
    return comparison


def comparison_tables(
    runs: Sequence[ComparedRun], comparison: Comparison, language: Language = ENGLISH
) -> list[Table]:
    """Build all tables: models, operating points, options that differ, and differences from the first run."""
    options = [option_table(comparison, language)] if comparison.options else []
    tables = [*model_tables(comparison, language), _operating_table(runs, language)]
    return [*tables, *options, *_difference_tables(runs, comparison, language)]


def model_tables(comparison: Comparison, language: Language = ENGLISH) -> tuple[Table, Table]:
    """Build the tables of what each run trained and reached, and of AP50 of each class: a row per run."""
    by_class = Table(
        title=language.text("AP50 of each class, over all raw detections"),
        heads=[language.text("run"), *comparison.class_names],
        rows=[
            [Cell(text=run.name, is_text=True), *map(number_cell, run.class_ap50)] for run in comparison.runs
        ],
    )
    rows = []
    for run in comparison.runs:
        size, ends = run.image_size_hw, run.ap50_interval
        low, high = (f"{ends.low:.3f}", f"{ends.high:.3f}") if ends else ("", "")
        input_px = "" if size is None else f"{size[0]}" if size[0] == size[1] else f"{size[0]} x {size[1]}"
        rows.append(
            [
                Cell(text=run.name, is_text=True),
                Cell(text=language.sentence(run.model), is_text=True),
                Cell(text=DASH if run.parameters is None else f"{run.parameters / 1e6:.1f}"),
                Cell(text=input_px or DASH),
                Cell(text=DASH if run.epochs is None else str(run.epochs)),
                Cell(text=format_number(run.training_hours, 2)),
                number_cell(run.ap50),
                Cell(text=language.text("{low} to {high}", low=low, high=high) if ends else DASH),
                number_cell(run.ap),
            ]
        )
    level = language.percent(comparison.level, 0)
    heads = ("run", "model", "parameters, M", "input, px", "epochs", "training, hours", "mAP50")
    models = Table(
        title=language.text("Models: AP over all raw detections"),
        heads=[
            *map(language.text, heads),
            language.text("{level} interval of mAP50", level=level),
            language.text("mAP"),
        ],
        rows=rows,
        notes=[
            language.text(
                "Input is height x width where they differ. Hours are those of the training steps and of "
                "waiting for their data, over all parts of a resumed run, without validation."
            )
        ],
    )
    return models, by_class


def option_table(comparison: Comparison, language: Language = ENGLISH) -> Table:
    """Build the table of the options that differ: a row per option, a column per run."""
    rows = [
        [Cell(text=option.name, is_text=True), *(Cell(text=option_text(value)) for value in option.values)]
        for option in comparison.options
    ]
    heads = [language.text("option"), *(run.name for run in comparison.runs)]
    return Table(title=language.text("Options that differ"), heads=heads, rows=rows)


def run_rows(runs: Sequence[ComparedRun], comparison: Comparison) -> list[Mapping[str, object]]:
    """Return the numbers of each run, AP50 of each class, and its options that differ, for a CSV file."""
    rows: list[Mapping[str, object]] = []
    for number, run in enumerate(runs):
        report, summary = run.report, comparison.runs[number]
        level, interval = report.image_level.at_operating_points, summary.ap50_interval
        height, width = report.provenance.image_size_hw
        row = {
            "run": run.name,
            "model": summary.model,
            "report": str(run.path),
            "parameters": summary.parameters,
            "input_height_px": height,
            "input_width_px": width,
            "epochs": summary.epochs,
            "training_hours": summary.training_hours,
            "hours": report.convergence.hours if report.convergence else None,
            "ap50_low": interval.low if interval else None,
            "ap50_high": interval.high if interval else None,
            **to_json(report.summary),
            **to_json(report.counts),
            "escape_rate": level.escape_rate,
            "overkill_rate": level.overkill_rate,
            "network_ms_per_image": report.provenance.time_per_image_ms.network,
            **_difference_columns(comparison.differences[number - 1].ap50 if number else None),
            **CSV_BASES,
        }
        classes = zip(comparison.class_names, summary.class_ap50, strict=True)
        options = {f"option.{option.name}": option.values[number] for option in comparison.options}
        rows.append(row | {f"ap50.{name}": value for name, value in classes} | options)
    return rows


def _class_rows(runs: Sequence[ComparedRun], comparison: Comparison) -> list[Mapping[str, object]]:
    """Return the numbers of each run and class, for a CSV file."""
    rows: list[Mapping[str, object]] = []
    for number, run in enumerate(runs):
        for label, row in enumerate(class_rows(run.report)):
            change = comparison.differences[number - 1].class_ap50[label] if number else None
            rows.append({"run": run.name, **row, **_difference_columns(change)})
    return rows


def _difference_columns(change: ScoreDifference | None) -> Mapping[str, object]:
    """Return the difference in AP50 from the first run, for a CSV file; the first run itself has none."""
    return {
        "ap50_difference": change and change.value,
        "ap50_difference_low": change and change.low,
        "ap50_difference_high": change and change.high,
        "ap50_verdict": change and change.verdict,
    }


def _operating_table(runs: Sequence[ComparedRun], language: Language) -> Table:
    rows = []
    for run in runs:
        level, counts = run.report.image_level.at_operating_points, run.report.counts
        rates = (level.escape_rate, level.overkill_rate)
        rows.append(
            [
                Cell(text=run.name, is_text=True),
                *map(number_cell, (counts.precision, counts.recall, counts.f1)),
                *(Cell(text=percent(rate, language)) for rate in rates),
                Cell(text=format_number(run.report.provenance.time_per_image_ms.network, 1)),
            ]
        )
    heads = ("run", "precision", "recall", "F1", "escapes", "overkill", "network in batches, ms per image")
    return Table(
        title=language.text("After the thresholds and the NMS of each run"),
        heads=[language.text(head) for head in heads],
        rows=rows,
    )


def _difference_tables(
    runs: Sequence[ComparedRun], comparison: Comparison, language: Language
) -> list[Table]:
    first = comparison.runs[0]
    boxes = [row.metrics.num_boxes for row in runs[0].report.classes]
    tables = []
    for run, entry in zip(comparison.runs[1:], comparison.differences, strict=True):
        columns = (comparison.class_names, boxes, first.class_ap50, run.class_ap50, entry.class_ap50)
        total = (language.text("all (mAP50)"), comparison.num_boxes, first.ap50, run.ap50, entry.ap50)
        rows = [
            [
                Cell(text=name, is_text=True),
                Cell(text=str(num_boxes)),
                number_cell(before),
                number_cell(after),
                number_cell(change.value, change, sign="+", language=language),
                Cell(text=language.text(change.verdict), is_text=True),
            ]
            for name, num_boxes, before, after, change in [*zip(*columns, strict=True), total]
        ]
        tables.append(
            Table(
                title=language.text(
                    "AP50 of {run} against {first}, over all raw detections", run=run.name, first=first.name
                ),
                heads=[
                    *(language.text("class"), "n", first.name, run.name),
                    *(language.text("difference"), language.text("verdict")),
                ],
                rows=rows,
                has_total=True,
                notes=[
                    language.text(
                        "Small numbers: {level} intervals of the difference on the same {resamples} "
                        "resamples of the images.",
                        level=language.percent(comparison.level, 0),
                        resamples=comparison.num_resamples,
                    )
                ],
            )
        )
    return tables


def _image_sheet(runs: Sequence[ComparedRun], images: ImageFolder, language: Language) -> Image.Image:
    def panels(image: int) -> list[Panel]:
        truth = runs[0].raw.ground_truth
        panels = [truth_panel(truth, image, color=CORRECT_COLOR, language=language)]
        for run in runs:
            detections, assignment = run.kept.detections, run.kept.assignment
            rows = detections.rows_of_image(image)
            is_tp, is_ignored = assignment.is_tp[0, rows], assignment.is_ignored[0, rows]
            panels.append(
                detections_panel(
                    detections.detections_of_image(image),
                    class_names=truth.class_names,
                    caption=language.text(
                        "{run}: {correct} correct, {wrong} wrong",
                        run=run.name,
                        correct=is_tp.sum(),
                        wrong=assignment.is_fp[0, rows].sum(),
                    ),
                    colors=outcome_colors(is_tp, is_ignored),
                    language=language,
                )
            )
        return panels

    title = language.text("Kept detections: blue is correct, orange is wrong, gray in a crowd region")
    positions = images_that_differ(runs, NUM_IMAGES)
    return image_sheet(images, positions, panels, title=title, language=language)


def draw_comparison_charts(
    runs: Sequence[ComparedRun], folder: Path, language: Language = ENGLISH
) -> dict[str, Path]:
    """Draw the charts of a comparison as PNG, SVG and PDF; return the path of each SVG by its title."""
    by_epoch = save_chart(
        partial(_map_by_epoch, runs=runs, language=language),
        folder / "map_by_epoch",
        height=4.0 + height_of_legend(_run_names(runs, language)),
    )
    series = [
        BarSeries(
            values=[row.metrics.ap50 for row in run.report.classes],
            color=chart_color(index),
            label=name,
            intervals=[row.ap50_interval for row in run.report.classes],
        )
        for index, (run, name) in enumerate(zip(runs, _run_names(runs, language), strict=True))
    ]
    path = folder / "class_ap50_bars"
    basis = language.text("all raw detections")
    by_class = save_class_ap50(runs[0].report, series, path, basis=basis, language=language)
    return {
        language.text("mAP against epoch"): by_epoch,
        language.text("AP50 of each class by run"): by_class,
    }


def draw_confusion_pairs(
    runs: Sequence[ComparedRun], folder: Path, language: Language = ENGLISH
) -> dict[str, Path]:
    """Draw the confusion matrix of the first run beside that of each other, as `draw_comparison_charts`."""
    names = _run_names(runs, language)
    paths = {}
    for number, run in enumerate(runs[1:], start=1):
        pair = [(names[0], runs[0].report.confusion), (names[number], run.report.confusion)]
        title = language.text("Confusion of classes: {first} and {run}", first=runs[0].name, run=run.name)
        paths[title] = save_confusions(pair, folder / f"confusion_{number}", language)
    return paths


def _run_names(runs: Sequence[ComparedRun], language: Language) -> tuple[str, ...]:
    return chart_names([run.name for run in runs], kind="run", language=language)


def _map_by_epoch(figure: Figure, runs: Sequence[ComparedRun], language: Language) -> None:
    axes = figure.subplots()
    axes.set_title(language.text("mAP50 on validation by epoch; stars: highest"))
    planned = [run.report.convergence.planned_epochs for run in runs if run.report.convergence]
    set_epoch_ticks(axes, max(planned, default=1), language)
    axes.set_ylabel("mAP50")
    axes.set_ylim(0, 1)
    for index, (run, name) in enumerate(zip(runs, _run_names(runs, language), strict=True)):
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
    legend_or_reason(axes, language.text("no run has its metrics.jsonl beside the checkpoint"))
