"""The files of a report: everything that one evaluation writes, and how it is made again without the model.

report.json          the numbers
report.html          the page, with everything in it
report/
classes.csv        the table of classes
predictions.json   raw detections, COCO results with the query of each
ground_truth.json  what they were scored against, COCO
predictions.png    some images with the detections that count
*.png *.svg        the charts
"""

import datetime
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from deim.boxes import xywh_to_xyxy
from deim.data.images.load import read_preview
from deim.errors import DataError
from deim.files import sha256_of_file
from deim.inference.detection_table import SplitResults, split_results
from deim.metrics.analysis import SplitAnalysis, analyze_split
from deim.metrics.choose_thresholds import OperatingPoints, operating_points_from_dict
from deim.metrics.coco import CocoMetrics, compute_coco_metrics
from deim.report.build import build_report, read_report, write_report, write_whole
from deim.report.charts import draw_report_charts
from deim.report.draw import MAX_SAMPLES, SheetEntry, contact_sheet
from deim.report.gallery import draw_entry
from deim.report.html import render_report
from deim.report.page import Picture, embed_image
from deim.report.provenance import Provenance, provenance_from_report
from deim.report.tables import format_class_csv
from deim.structures import Detections

ReadImage = Callable[[int], Image.Image | None]
"""Gives the image at a position of a split; None if it is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """Where the files of a report are."""

    report: Path
    """The JSON report."""

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
        """What they were scored against."""
        return self.folder / "ground_truth.json"

    @property
    def sheet(self) -> Path:
        """Some images with the detections that count."""
        return self.folder / "predictions.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Predictions of a split with everything to report on them."""

    ground_truth: Mapping[str, Any]
    """COCO dict; categories in the order of the class indices."""
    predictions: Sequence[Mapping[str, Any]]
    """COCO results, raw."""
    points: OperatingPoints
    provenance: Provenance
    metrics: CocoMetrics
    """The COCO numbers of the predictions."""
    num_resamples: int
    """Resamples behind intervals; 0 for none."""
    convergence: Mapping[str, Any] | None = None
    """Of the run, from `convergence_entry`; None if its log is not there."""
    fusion: Mapping[str, Any] | None = None
    """How text fusion differs from its detector alone; None for a detector."""
    text_evidence: Mapping[str, Any] | None = None
    """Verdict on the run's text; None if there is none."""
    text_maps: Sequence[Path] = ()
    """Pictures of phase 2 to go along, by the names in `fusion`."""
    created: datetime.datetime | None = None
    """Time of the evaluation; None for now."""


def write_report_files(scored: Scored, report_path: Path) -> dict[str, Any]:
    """Analyze predictions and write all files of the report.

    Args:
        scored: The predictions.
        report_path: The JSON report, with the suffix `.json`; the other files lie beside it.

    Returns:
        The report.

    Raises:
        DataError: If `report_path` is a folder or has another suffix.
        OSError: If a file cannot be written.
    """
    check_report_path(report_path)
    files = ReportFiles(report=report_path)
    files.folder.mkdir(parents=True, exist_ok=True)
    # First what cannot be computed again.
    _write_json(scored.ground_truth, files.ground_truth)
    _write_json(scored.predictions, files.predictions)
    results = split_results(
        scored.ground_truth, scored.predictions, normal_class=scored.provenance.dataset.normal_class
    )
    analysis = analyze_split(results, scored.points, num_resamples=scored.num_resamples)
    report = build_report(
        scored.metrics,
        analysis,
        scored.provenance,
        created=scored.created or datetime.datetime.now(datetime.UTC),
        convergence=scored.convergence,
        fusion=scored.fusion,
        text_evidence=scored.text_evidence,
    )
    report["files"] = {path.name: sha256_of_file(path) for path in (files.ground_truth, files.predictions)}
    write_whole(format_class_csv(report), files.folder / "classes.csv")
    charts = draw_report_charts(report, files.folder)
    images = ImageFolder(Path(scored.provenance.dataset.image_dir), results.file_names)
    title = f"{scored.provenance.model.name} on {scored.provenance.split}"
    prediction_sheet(analysis.shipped, images.read, title=title).save(files.sheet)
    gallery = _draw_gallery(analysis, images)
    page = render_report(
        report,
        charts=charts,
        gallery=gallery,
        missing_images=images.describe_missing(),
        text_maps=_take_along(scored.text_maps, files.folder),
    )
    write_whole(page, files.page)
    write_report(report, report_path)
    return report


def check_report_path(path: Path) -> None:
    """Refuse a name that cannot be that of a report.

    Raises:
        DataError: If it is a folder or has another suffix than `.json`.
    """
    if path.is_dir() or path.suffix != ".json":
        raise DataError(f"{path}: not the name of a JSON file. Name the report like report.json.")


def read_scored(report_path: Path) -> Scored:
    """Read the predictions behind a report, to report on them again.

    Raises:
        DataError: If the report or one of the files behind it cannot be read.
    """
    report = read_report(report_path)
    files = ReportFiles(report=report_path)
    ground_truth, predictions = (_read_json(path, report) for path in (files.ground_truth, files.predictions))
    points = {key: value for key, value in report["operating_points"].items() if key != "all_classes"}
    points["classes"] = [
        {
            "name": entry["name"],
            "threshold": entry["threshold"],
            "origin": entry["threshold_origin"],
            "note": entry["threshold_note"],
        }
        for entry in report["classes"]
    ]
    return Scored(
        ground_truth=ground_truth,
        predictions=predictions,
        metrics=compute_coco_metrics(ground_truth, predictions),
        points=operating_points_from_dict(points),
        provenance=provenance_from_report(report),
        num_resamples=report["intervals"]["num_resamples"] if report["intervals"] else 0,
        convergence=report["convergence"],
        fusion=report["fusion"],
        text_maps=_text_maps(report, files.folder),
        text_evidence=report["text_evidence"],
        created=datetime.datetime.fromisoformat(report["created"]),
    )


def prediction_sheet(shipped: SplitResults, read: ReadImage, *, title: str) -> Image.Image:
    """Draw ground truth and detections of a fixed random choice of images.

    Args:
        shipped: A split with the detections to be drawn.
        read: Gives the image at a position of the split; None leaves it out.
        title: First line of the sheet.
    """
    chosen = random.Random(0).sample(range(shipped.num_images), min(MAX_SAMPLES, shipped.num_images))
    samples = []
    for position in sorted(chosen):
        image = read(position)
        if image is None:
            continue
        truth, found = shipped.truth, shipped.found
        boxes, ones = truth.image == position, found.image == position
        samples.append(
            SheetEntry(
                image=image,
                caption=shipped.file_names[position],
                boxes_xyxy=xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh[boxes])),
                labels=torch.from_numpy(truth.label[boxes]),
                detections=Detections(
                    boxes_xyxy=xywh_to_xyxy(torch.from_numpy(found.boxes_xywh[ones])),
                    scores=torch.from_numpy(found.scores[ones]),
                    labels=torch.from_numpy(found.label[ones]),
                    queries=torch.from_numpy(found.query[ones]),
                ),
            )
        )
    return contact_sheet(samples, title=title, class_names=shipped.class_names)


class ImageFolder:
    """Images of a split, read by their position; those that are not there are remembered.

    Args:
        folder: What the file names are relative to.
        file_names: By position.
    """

    def __init__(self, folder: Path, file_names: Sequence[str]) -> None:
        self._folder = folder
        self._file_names = file_names
        self._missing: dict[str, None] = {}

    def read(self, position: int) -> Image.Image | None:
        """The image upright, in RGB with 8 bits; None if it is not there.

        Raises:
            DataError: If it is there but damaged.
        """
        path = self._folder / self._file_names[position]
        if not path.is_file():
            self._missing[self._file_names[position]] = None
            return None
        return read_preview(path)

    def describe_missing(self) -> str:
        """What was asked for and not there, in a sentence; empty if nothing was."""
        if not self._missing:
            return ""
        first = next(iter(self._missing))
        return (
            f"Pictures of {len(self._missing)} images are left out: the images, such as {first}, are not in "
            f"{self._folder}."
        )


def _draw_gallery(analysis: SplitAnalysis, images: ImageFolder) -> list[Picture]:
    pictures = []
    for entry in analysis.gallery:
        image = images.read(entry.image)
        if image is not None:
            drawn = draw_entry(
                entry,
                image,
                shipped=analysis.shipped,
                kinds=analysis.kinds,
                score_thresholds=analysis.points.thresholds,
            )
            pictures.append(embed_image(drawn, entry.caption))
    return pictures


def _text_maps(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """The pictures of phase 2 that still lie in a report's folder."""
    names = report["fusion"]["text_maps"] if report["fusion"] else []
    return [folder / name for name in names if (folder / name).is_file()]


def _take_along(pictures: Sequence[Path], folder: Path) -> list[Picture]:
    """Copy pictures into the folder, if they are not there, and take them into the page."""
    for path in pictures:
        if path.parent.resolve() != folder.resolve():
            shutil.copyfile(path, folder / path.name)
    return [embed_image(Image.open(path), path.stem) for path in pictures]


def _write_json(content: Any, path: Path) -> None:
    write_whole(json.dumps(content, ensure_ascii=False, allow_nan=False), path)


def _read_json(path: Path, report: Mapping[str, Any]) -> Any:
    advice = (
        "A report is made again from the files in the folder beside it; evaluate the checkpoint anew with "
        "tools/evaluate.py."
    )
    try:
        if sha256_of_file(path) != report["files"][path.name]:
            raise DataError(f"{path}: is not the file that the report was made from. {advice}")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). {advice}") from None
