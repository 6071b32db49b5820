"""The page of a report: what `report.json` says, with charts and the worst errors, in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deim.report.page import Cell, Picture, Section, Table, embed_svg, render_page
from deim.report.summary import describe_report
from deim.report.tables import DASH

READING_HELP = (
    "AP is COCO's average precision, the mean over the IoU thresholds 0.50 to 0.95; AP50 at IoU 0.50 alone. "
    "n counts ground-truth boxes, crowd regions left out.",
    "Precision, recall and F1 are those at the stated threshold and IoU 0.50, no point of the COCO table.",
    "An escape is a defective image on which no detection overlaps a defect by IoU 0.50 or more, whatever "
    "their classes; overkill is a good image with any detection of a defect class.",
    "Intervals say how far a score would move with other images of the same kind. They leave out the chance "
    "in training: another seed is another detector. In simulations nineteen of twenty held the truth, but of "
    "those of mAP over IoU 0.50 to 0.95 only about nine of ten.",
)


TEXT_MAPS_HELP = (
    "Each pixel shows the highest value of the queries whose boxes cover it: the detector's own score of the "
    "class, the cosine of the query with the text of the class, and the score after the fusion."
)


def render_report(
    report: Mapping[str, Any],
    *,
    charts: Mapping[str, Path],
    gallery: Sequence[Picture],
    missing_images: str,
    text_maps: Sequence[Picture] = (),
) -> str:
    """Lay a report out as one HTML page.

    Args:
        report: From `build_report`.
        charts: Path of each chart's SVG by its title.
        gallery: The worst errors.
        missing_images: Why the gallery lacks pictures; empty if it lacks none.
        text_maps: Of phase 2: where the text of a class answers.

    Returns:
        HTML that needs no other file.
    """
    sections = [
        Section(title="In words", lines=describe_report(report)),
        Section(title="Classes", tables=[_class_table(report), _operating_table(report)]),
        Section(
            title="Charts",
            pictures=[embed_svg(path, title) for title, path in charts.items()],
            pictures_in_columns=True,
        ),
        Section(
            title="The worst errors of each class",
            lines=_gallery_lines(gallery, missing_images),
            pictures=gallery,
        ),
    ]
    if text_maps:
        sections.append(Section(title="Where the text answers", lines=[TEXT_MAPS_HELP], pictures=text_maps))
    if report["convergence"]:
        sections.append(Section(title="Convergence", lines=report["convergence"]["in_words"].splitlines()))
    if report["text_evidence"]:
        sections.append(Section(title="Does the text help?", lines=report["text_evidence"]["in_words"]))
    sections += [
        Section(title="Made from", tables=[_provenance_table(report)]),
        Section(title="How to read this", lines=READING_HELP),
    ]
    title = f"{report['model']['name']} on {report['split']}"
    subtitle = (
        f"{report['dataset']['annotations_file']}, {report['dataset']['num_images']} images, "
        f"{report['dataset']['num_boxes']} boxes; made {report['created']}"
    )
    return render_page(title, subtitle, sections)


def _class_table(report: Mapping[str, Any]) -> Table:
    keys = ("ap50", "ap", "ap75", "ar100", "ap_small", "ap_medium", "ap_large")
    rows = []
    for entry in report["classes"]:
        rows.append(
            [
                Cell(text=entry["name"], small=entry["note"] or "", is_text=True),
                Cell(text=str(entry["num_images"])),
                Cell(text=str(entry["num_boxes"])),
                *(_score_cell(entry[key], entry.get(f"{key}_interval")) for key in keys),
            ]
        )
    summary, dataset, intervals = report["summary"], report["dataset"], report["intervals"] or {}
    rows.append(
        [
            Cell(text="all", is_text=True),
            Cell(text=str(dataset["num_images"])),
            Cell(text=str(dataset["num_boxes"])),
            *(_score_cell(summary[key], intervals.get(key)) for key in keys),
        ]
    )
    notes = []
    if intervals:
        notes.append(
            f"Small numbers: {intervals['level']:.0%} intervals from {intervals['num_resamples']} resamples "
            f"of the {intervals['num_images']} images ({intervals['method']})."
        )
    return Table(
        title="Average precision, over all raw detections",
        heads=["class", "images", "n", "AP50", "AP", "AP75", "AR100", "AP small", "AP medium", "AP large"],
        rows=rows,
        has_total=True,
        notes=notes,
    )


def _operating_table(report: Mapping[str, Any]) -> Table:
    points = report["operating_points"]
    rows = []
    for entry in [*report["classes"], points["all_classes"] | {"name": "all", "threshold": None}]:
        rows.append(
            [
                Cell(text=entry["name"], small=_threshold_note(entry), is_text=True),
                Cell(text=str(entry["num_right"] + entry["num_missed"])),
                *(_score_cell(entry[key]) for key in ("threshold", "precision", "recall", "f1")),
                *(Cell(text=str(entry[key])) for key in ("num_right", "num_false", "num_missed")),
            ]
        )
    return Table(
        title=f"At the operating points: {points['goal']}, chosen on {points['chosen_on']}",
        heads=["class", "n", "threshold", "precision", "recall", "F1", "right", "false", "missed"],
        rows=rows,
        has_total=True,
    )


def _threshold_note(entry: Mapping[str, Any]) -> str:
    if not entry.get("threshold_note"):
        return ""
    origin = entry["threshold_origin"]
    return entry["threshold_note"] + ("" if origin == "its own boxes" else f"; threshold: {origin}")


def _score_cell(value: float | None, ends: Sequence[float] | None = None) -> Cell:
    if value is None:
        return Cell(text=DASH)
    return Cell(text=f"{value:.3f}", small=f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "")


def _gallery_lines(gallery: Sequence[Picture], missing_images: str) -> list[str]:
    lines = [missing_images] if missing_images else []
    if gallery:
        lines.append("Blue is right, red is wrong; the yellow frame marks the box that a picture is about.")
    elif not missing_images:
        lines.append("No box was missed and no detection was false.")
    return lines


def _provenance_table(report: Mapping[str, Any]) -> Table:
    checkpoint, dataset = report["checkpoint"], report["dataset"]
    height, width = report["image_size_hw"]
    time, tiles = report["time_per_image_ms"], report["tiles"]
    of_tiles = f", of tiles of {tiles['size']} px, overlap {tiles['overlap']:g}" if tiles else ""
    epoch = "" if checkpoint["epoch"] is None else f", epoch {checkpoint['epoch'] + 1}"
    pairs = {
        "checkpoint": f"{checkpoint['path']} ({checkpoint['weights']} weights{epoch})",
        "checkpoint SHA-256": checkpoint["sha256"],
        "annotations": dataset["annotations_file"],
        "annotations SHA-256": dataset["sha256"],
        "images without boxes": str(dataset["num_images_without_boxes"]),
        "normal class": dataset["normal_class"] or "none",
        "model": f"{report['model']['name']}, {report['model']['parameters'] / 1e6:.1f} M parameters",
        "network input": f"{height} x {width} px (height x width), {report['resize']}{of_tiles}",
        "raw detections an image": str(report["max_detections"]),
        "time an image": "; ".join(
            f"{key} {value:.1f} ms" for key, value in time.items() if value is not None
        ),
        "device": report["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "report version": str(report["schema_version"]),
    }
    rows = [[Cell(text=name, is_text=True), Cell(text=text, is_text=True)] for name, text in pairs.items()]
    return Table(heads=["what", "which"], rows=rows)
