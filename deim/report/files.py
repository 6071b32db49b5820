"""The files of a report: everything that one evaluation writes, and how it is made again without the model.

report.json              the numbers
report.html              the page, which needs no other file
report/
    classes.csv          the numbers of each class
    tables.tex           the tables of the page, on request
    predictions.json     raw detections, COCO results with the query of each
    ground_truth.json    the ground truth, COCO
    predictions.png      some images with their kept detections
    *.png *.svg *.pdf    the charts
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image

from deim.data.images.load import read_preview
from deim.errors import DataError
from deim.files import FileGroup, copy_file, lies_below, sha256_of_file, write_text
from deim.inference.detection_table import CocoFile, CocoResult, DetectionTable, GroundTruthTable
from deim.language import ENGLISH, Language
from deim.parse import read_json
from deim.records import from_json
from deim.report.build import ReportInputs, build_report
from deim.report.charts import draw_report_charts
from deim.report.draw import Panel, PanelRow, detections_panel, panel_sheet, truth_panel, write_image
from deim.report.gallery import choose_gallery, draw_entry
from deim.report.languages import read_language
from deim.report.page import Figure, FigureColumns, embed_image, render_report, report_title
from deim.report.schema import (
    Report,
    check_report_path,
    read_unsealed_report,
    refuse_changed,
    seal_record,
)
from deim.report.table_files import LATEX_NAME, format_csv
from deim.report.tables import class_rows

MAX_SHEET_IMAGES = 12
ADVICE = (
    "A report is made again from the files in the folder beside it; evaluate the checkpoint again with "
    "`deim evaluate`."
)
T = TypeVar("T", GroundTruthTable, DetectionTable)


class ReportFiles:
    """Paths of the files of a report: the `page` and, in the `folder`, `predictions` and `ground_truth`."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.page = report.with_suffix(".html")
        self.folder = report.with_suffix("")
        self.predictions = self.folder / "predictions.json"
        self.ground_truth = self.folder / "ground_truth.json"
        self.all = (self.report, self.page, self.folder)


def write_report_files(
    inputs: ReportInputs, report_path: Path, *, language: Language | None = None
) -> Report:
    """Analyze detections and write all files of the report beside the JSON file at `report_path`.

    Args:
        inputs: Everything that the report is made from.
        report_path: The JSON file.
        language: Language of the page, the charts and the images; None for that of the evaluation's options.

    Raises:
        DataError: If `report_path` is a folder or has another suffix than `.json`.
    """
    check_report_path(report_path)
    language = language or read_language(inputs.provenance.language)
    files = ReportFiles(report_path)
    files.folder.mkdir(parents=True, exist_ok=True)
    (files.folder / LATEX_NAME).unlink(missing_ok=True)  # of an earlier report
    ground_truth, detections = inputs.ground_truth, inputs.detections
    truth = json.dumps(ground_truth.to_coco(), ensure_ascii=False, allow_nan=False).encode()
    ids = ground_truth.image_ids, ground_truth.category_ids
    # A report names the hashes of its tables: an old one must not be left beside new tables.
    with FileGroup() as group:
        written = {
            files.ground_truth: group.write(files.ground_truth, lambda file: file.write(truth)),
            files.predictions: group.write(
                files.predictions, lambda file: _write_results(file, detections.to_coco(*ids))
            ),
        }
        hashes = {path.name: sha256_of_file(temporary) for path, temporary in written.items()}
        report = build_report(inputs, files=hashes)
        group.write(report_path, lambda file: file.write(seal_record(report)))
    write_text(files.folder / "classes.csv", format_csv(class_rows(report)))
    images = ImageFolder(Path(report.provenance.dataset.image_dir), ground_truth.file_names)
    # Before the other images, which they never replace.
    task_images = _task_images(inputs, files.folder)
    title = report_title(report, language)
    sheet = prediction_sheet(
        ground_truth, inputs.kept.detections, images=images, title=title, language=language
    )
    write_image(sheet, files.folder / "predictions.png")
    page = render_report(
        report,
        charts=draw_report_charts(report, files.folder, language),
        gallery=_gallery(inputs, images, language),
        missing_images=images.describe_missing(language),
        task_images=task_images,
        language=language,
    )
    write_text(files.page, page)
    return report


def read_report_inputs(report_path: Path) -> ReportInputs:
    """Read everything that a report was made from, to make it again or to compare it.

    Raises:
        DataError: If the report or one of the files behind it cannot be read.
    """
    report, files = read_unsealed_report(report_path), ReportFiles(report_path)
    ground_truth, detections = read_tables(report, files)
    refuse_changed(report_path)
    return ReportInputs(
        ground_truth=ground_truth,
        detections=detections,
        points=report.operating_points,
        provenance=report.provenance,
        num_resamples=report.intervals.num_resamples if report.intervals else 0,
        convergence=report.convergence,
        task_section=report.task_section,
        image_folder=files.folder,
        created=datetime.fromisoformat(report.created),
    )


def read_tables(report: Report, files: ReportFiles) -> tuple[GroundTruthTable, DetectionTable]:
    """Read the ground truth and the raw detections behind a report.

    Raises:
        DataError: If a file is missing, damaged, or not the one that the report was made with.
    """
    normal_class = report.provenance.dataset.normal_class
    ground_truth = _read_table(
        files.ground_truth,
        report,
        CocoFile,
        lambda content: GroundTruthTable.from_coco(content, normal_class=normal_class),
    )
    if ground_truth.class_names != report.class_names:
        raise DataError(f"{files.ground_truth}: has other classes than the report. {ADVICE}")
    detections = _read_table(
        files.predictions,
        report,
        list[CocoResult],
        lambda content: DetectionTable.from_coco(content, ground_truth),
    )
    return ground_truth, detections


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Reads images of a split by position and remembers those that are missing."""

    folder: Path
    """Folder that the file names are relative to."""
    file_names: Sequence[str]
    """Names by position."""
    missing: set[int] = field(default_factory=set)
    """Positions of images that were asked for and are missing."""

    def read(self, position: int) -> Image.Image | None:
        """Read an image upright, in RGB with 8 bits; None if it is missing, an error if it is damaged."""
        path = self.folder / self.file_names[position]
        if path.is_file() and lies_below(path, self.folder):
            return read_preview(path)
        self.missing.add(position)
        return None

    def describe_missing(self, language: Language = ENGLISH) -> str:
        """Return a sentence about the missing images; empty if there are none."""
        if not self.missing:
            return ""
        first, number = self.file_names[min(self.missing)], len(self.missing)
        places = {"file": first, "folder": self.folder}
        if number == 1:
            return language.text("{file} is not shown: it is missing in {folder}.", **places)
        return language.text(
            "{number} images are not shown: they are missing in {folder}, such as {file}.",
            number=number,
            **places,
        )


def image_sheet(
    images: ImageFolder,
    positions: Iterable[int],
    panels_of: Callable[[int], Sequence[Panel]],
    *,
    title: str,
    columns: int = 1,
    language: Language = ENGLISH,
) -> Image.Image:
    """Draw the images at some positions on one sheet, each in its panels; missing ones are skipped."""
    rows = []
    for position in positions:
        image = images.read(position)
        if image is not None:
            caption = images.file_names[position]
            rows.append(PanelRow(image=image, caption=caption, panels=panels_of(position)))
    return panel_sheet(rows, title=title, columns=columns, language=language)


def prediction_sheet(
    ground_truth: GroundTruthTable,
    kept: DetectionTable,
    *,
    images: ImageFolder,
    title: str,
    language: Language = ENGLISH,
) -> Image.Image:
    """Draw ground truth and kept detections of a fixed random choice of at most 12 images."""

    def panels(position: int) -> list[Panel]:
        detections = kept.detections_of_image(position)
        caption = language.text("detections: {number}", number=len(detections.scores))
        kept_panel = detections_panel(
            detections, class_names=ground_truth.class_names, caption=caption, language=language
        )
        return [truth_panel(ground_truth, position, language=language), kept_panel]

    number = min(MAX_SHEET_IMAGES, ground_truth.num_images)
    positions = sorted(random.Random(0).sample(range(ground_truth.num_images), number))
    return image_sheet(images, positions, panels, title=title, columns=2, language=language)


def _gallery(inputs: ReportInputs, images: ImageFolder, language: Language) -> list[FigureColumns]:
    """Draw the errors of each class beside its correct detections; classes without any are left out."""
    errors, correct = language.text("errors"), language.text("correct")
    figures: dict[int, dict[str, list[Figure]]] = {}
    for entry in choose_gallery(inputs, language):
        image = images.read(entry.image)
        if image is not None:
            columns = figures.setdefault(entry.label, {errors: [], correct: []})
            drawn = draw_entry(entry, image, inputs, language)
            column = columns[correct if entry.kind == "correct" else errors]
            column.append(embed_image(drawn, entry.caption, caption=entry.caption))
    names = inputs.ground_truth.class_names
    return [FigureColumns(title=names[label], columns=columns) for label, columns in figures.items()]


def _write_results(file: BinaryIO, results: Iterable[CocoResult]) -> None:
    """Write COCO results without holding all of them."""
    file.write(b"[")
    for number, result in enumerate(results):
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        file.write(f"{', ' if number else ''}{text}".encode())
    file.write(b"]")


def _task_images(inputs: ReportInputs, folder: Path) -> list[Figure]:
    """Embed the images of the task section; copy them into the folder of the report first."""
    figures = []
    for name in inputs.task_section.images if inputs.task_section else ():
        source = (inputs.image_folder or folder) / name
        if source.is_file() and not source.is_symlink():
            image = read_preview(source)
            if source.parent.resolve() != folder.resolve():
                copy_file(source, folder / name)
            figures.append(embed_image(image, source.stem))
    return figures


def _read_table(path: Path, report: Report, kind: type[Any], build: Callable[[Any], T]) -> T:
    """Build a table from a file of a report, whose content should be of a kind."""
    try:
        if sha256_of_file(path) != report.files.get(path.name):
            raise DataError(f"{path}: is not the file that the report was made from. {ADVICE}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {ADVICE}") from None
    content = read_json(path)
    try:
        table = build(content)
        columns = (getattr(table, name) for name in table.__slots__)
        if not all(np.isfinite(column).all() for column in columns if isinstance(column, np.ndarray)):
            raise ValueError("numbers must be finite")
        return table
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # Reading it value by value takes longer, and names the place.
        from_json(kind, content, where=str(path), error=DataError, advice=ADVICE)
        raise DataError(f"{path}: cannot be read ({error}). {ADVICE}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
