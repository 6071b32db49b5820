"""The files of a report: everything that one evaluation writes, and how it is made again without the model.

report.json              the numbers
report.html              the page, which needs no other file
report/
    classes.csv          the table of classes
    predictions.json     raw detections, COCO results with the query of each
    ground_truth.json    the ground truth, COCO
    predictions.png      some images with their kept detections
    *.png *.svg          the charts
"""

import json
import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from deim.data.images.load import read_preview
from deim.errors import DataError
from deim.files import sha256_of_file, write_atomically, write_text
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.analysis import analyze_split
from deim.metrics.coco import compute_coco_metrics
from deim.report.build import ReportInputs, build_report
from deim.report.charts import draw_report_charts
from deim.report.draw import PanelRow, detections_panel, panel_sheet, truth_panel
from deim.report.gallery import choose_gallery, draw_entry
from deim.report.html import render_report
from deim.report.page import Figure, embed_image
from deim.report.schema import Report, check_report_path, read_report, write_record
from deim.report.tables import format_class_csv

MAX_SHEET_IMAGES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """Paths of the files of a report."""

    report: Path

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.report.with_suffix(".html")

    @property
    def folder(self) -> Path:
        """The folder of all other files."""
        return self.report.with_suffix("")

    @property
    def predictions(self) -> Path:
        """Raw detections."""
        return self.folder / "predictions.json"

    @property
    def ground_truth(self) -> Path:
        """Ground truth."""
        return self.folder / "ground_truth.json"

    @property
    def sheet(self) -> Path:
        """Some images with their kept detections."""
        return self.folder / "predictions.png"


def write_report_files(inputs: ReportInputs, report_path: Path) -> Report:
    """Analyze detections and write all files of the report.

    Args:
        inputs: Detections of a split.
        report_path: The JSON report, with the suffix `.json`; the other files lie beside it.

    Raises:
        DataError: If `report_path` is a folder or has another suffix.
        OSError: If a file cannot be written.
    """
    check_report_path(report_path)
    files = ReportFiles(report=report_path)
    files.folder.mkdir(parents=True, exist_ok=True)
    ground_truth, detections = inputs.ground_truth, inputs.detections
    # What cannot be computed again comes first.
    write_text(files.ground_truth, json.dumps(ground_truth.to_coco(), ensure_ascii=False, allow_nan=False))
    write_json_list(files.predictions, detections.to_coco(ground_truth.image_ids, ground_truth.category_ids))
    analysis = analyze_split(
        ground_truth, detections, points=inputs.points, num_resamples=inputs.num_resamples
    )
    hashes = {path.name: sha256_of_file(path) for path in (files.ground_truth, files.predictions)}
    report = build_report(inputs, analysis, files=hashes)
    write_text(files.folder / "classes.csv", format_class_csv(report))
    images = ImageFolder(Path(report.provenance.dataset.image_dir), ground_truth.file_names)
    prediction_sheet(ground_truth, analysis.kept, images=images, title=report.title).save(files.sheet)
    gallery = []
    for entry in choose_gallery(ground_truth, detections, analysis=analysis):
        image = images.read(entry.image)
        if image is not None:
            drawn = draw_entry(entry, image, ground_truth=ground_truth, analysis=analysis)
            gallery.append(embed_image(drawn, entry.caption))
    page = render_report(
        report,
        charts=draw_report_charts(report, files.folder),
        gallery=gallery,
        missing_images=images.describe_missing(),
        task_images=_task_images(inputs, files.folder),
    )
    write_text(files.page, page)
    write_record(report, report_path)
    return report


def read_report_inputs(report_path: Path) -> ReportInputs:
    """Read everything that a report was made from, to make it again or to compare it.

    Raises:
        DataError: If the report or one of the files behind it cannot be read.
    """
    report = read_report(report_path)
    files = ReportFiles(report=report_path)
    ground_truth, detections = read_tables(report, files)
    return ReportInputs(
        ground_truth=ground_truth,
        detections=detections,
        metrics=compute_coco_metrics(ground_truth, detections),
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
    ground_truth = GroundTruthTable.from_coco(
        _read_json(files.ground_truth, report), normal_class=normal_class
    )
    return ground_truth, DetectionTable.from_coco(_read_json(files.predictions, report), ground_truth)


class ImageFolder:
    """Reads images of a split by position and remembers those that are missing.

    Args:
        folder: Folder that the file names are relative to.
        file_names: Names by position.
    """

    def __init__(self, folder: Path, file_names: Sequence[str]) -> None:
        self._folder = folder
        self._file_names = file_names
        self._missing: dict[str, None] = {}

    def read(self, position: int) -> Image.Image | None:
        """Read an image upright, in RGB with 8 bits; None if it is missing.

        Raises:
            DataError: If the image is damaged.
        """
        path = self._folder / self._file_names[position]
        if not path.is_file():
            self._missing[self._file_names[position]] = None
            return None
        return read_preview(path)

    def describe_missing(self) -> str:
        """Return a sentence about the images that were asked for and are missing; empty if there are none."""
        if not self._missing:
            return ""
        first = next(iter(self._missing))
        return (
            f"{len(self._missing)} images are not shown: they are missing in {self._folder}, such as {first}."
        )


def prediction_sheet(
    ground_truth: GroundTruthTable, kept: DetectionTable, *, images: ImageFolder, title: str
) -> Image.Image:
    """Draw ground truth and detections of a fixed random choice of at most 12 images.

    Args:
        ground_truth: The split.
        kept: Detections to draw.
        images: Images of the split; missing ones are skipped.
        title: First line of the sheet.
    """
    number = min(MAX_SHEET_IMAGES, ground_truth.num_images)
    rows = []
    for position in sorted(random.Random(0).sample(range(ground_truth.num_images), number)):
        image = images.read(position)
        if image is None:
            continue
        detections = kept.detections_of_image(position)
        caption = f"detections: {len(detections.scores)}"
        kept_panel = detections_panel(detections, class_names=ground_truth.class_names, caption=caption)
        panels = [truth_panel(ground_truth, position), kept_panel]
        rows.append(PanelRow(image=image, caption=ground_truth.file_names[position], panels=panels))
    return panel_sheet(rows, title=title, columns=2)


def write_json_list(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a list as a JSON file without holding all its entries.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If an entry holds NaN or infinity.
    """

    def write(file: Any) -> None:
        separator = "["
        for entry in entries:
            file.write((separator + json.dumps(entry, ensure_ascii=False, allow_nan=False)).encode("utf-8"))
            separator = ", "
        file.write(b"[]" if separator == "[" else b"]")

    write_atomically(path, write)


def _task_images(inputs: ReportInputs, folder: Path) -> list[Figure]:
    """Embed the images of the task section; copy them into the folder of the report first."""
    figures = []
    for name in inputs.task_section.images if inputs.task_section else ():
        source = (inputs.image_folder or folder) / name
        if source.is_file():
            if source.parent.resolve() != folder.resolve():
                shutil.copyfile(source, folder / name)
            figures.append(embed_image(Image.open(source), source.stem))
    return figures


def _read_json(path: Path, report: Report) -> Any:
    advice = (
        "A report is made again from the files in the folder beside it; evaluate the checkpoint again with "
        "`deim evaluate`."
    )
    try:
        if sha256_of_file(path) != report.files[path.name]:
            raise DataError(f"{path}: is not the file that the report was made from. {advice}")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {advice}") from None
