"""The page of a report: its numbers, charts and worst errors in one HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deim.metrics.bootstrap import Interval
from deim.metrics.choose_thresholds import Counts
from deim.metrics.coco import ClassMetrics, CocoSummary
from deim.metrics.convergence import describe_convergence
from deim.report.page import Cell, Figure, Section, Table, embed_svg, render_page
from deim.report.schema import Report
from deim.report.summary import describe_report
from deim.report.tables import ap_values, format_interval, format_number

READING_HELP = (
    "AP is COCO's average precision, the mean over the IoU thresholds 0.50 to 0.95; AP50 at IoU 0.50 alone. "
    "n counts ground-truth boxes, crowd regions left out.",
    "Precision, recall and F1 hold at the stated threshold and IoU 0.50; they are not COCO metrics.",
    "An escape is a defective image on which no detection overlaps a defect by IoU 0.50 or more, whatever "
    "their classes; overkill is a good image with any detection of a defect class.",
    "Intervals say how far a score would move with other images of the same kind. They do not include the "
    "chance in training: another seed gives another detector. In simulations nineteen of twenty held the "
    "truth, but only about nine of ten for mAP over IoU 0.50 to 0.95.",
)


def render_report(
    report: Report,
    *,
    charts: Mapping[str, Path],
    gallery: Sequence[Figure],
    missing_images: str,
    task_images: Sequence[Figure] = (),
) -> str:
    """Render a report as one HTML page that needs no other file.

    Args:
        report: The report.
        charts: Path of each chart's SVG by its title.
        gallery: The worst errors.
        missing_images: Why the gallery lacks images; empty if it lacks none.
        task_images: Images of the task section.
    """
    gallery_lines = [missing_images] if missing_images else []
    if gallery:
        gallery_lines.append("Blue is correct, red is wrong; a yellow frame marks the box in question.")
    elif not missing_images:
        gallery_lines.append("No box was missed and no detection was false.")
    sections = [
        Section(title="Summary", lines=describe_report(report)),
        Section(title="Classes", tables=[_class_table(report), _operating_table(report)]),
        Section(
            title="Charts",
            figures=[embed_svg(path, title) for title, path in charts.items()],
            figures_in_columns=True,
        ),
        Section(title="The worst errors of each class", lines=gallery_lines, figures=gallery),
    ]
    if report.task_section is not None:
        task = report.task_section
        sections.append(Section(title=task.title, lines=task.summary, figures=task_images))
    if report.convergence is not None:
        sections.append(Section(title="Convergence", lines=[describe_convergence(report.convergence)]))
    sections += [
        Section(title="Provenance", tables=[_provenance_table(report)]),
        Section(title="How to read this", lines=READING_HELP),
    ]
    subtitle = (
        f"{report.provenance.dataset.annotations_file}, {report.num_images} images, {report.num_boxes} "
        f"boxes; made {report.created}"
    )
    return render_page(report.title, subtitle, sections)


def number_cell(value: float | None, interval: Interval | None = None) -> Cell:
    """Build the cell of a number and its interval."""
    return Cell(text=format_number(value), small=format_interval(interval))


def _class_table(report: Report) -> Table:
    rows = [
        _class_row(
            Cell(text=row.metrics.name, small=row.metrics.note or "", is_text=True),
            row.metrics,
            num_images=row.metrics.num_images,
            num_boxes=row.metrics.num_boxes,
            intervals=(row.ap50_interval, row.ap_interval),
        )
        for row in report.classes
    ]
    intervals = report.intervals
    rows.append(
        _class_row(
            Cell(text="all", is_text=True),
            report.summary,
            num_images=report.num_images,
            num_boxes=report.num_boxes,
            intervals=(intervals.ap50, intervals.ap) if intervals else (None, None),
        )
    )
    notes = []
    if intervals:
        notes.append(
            f"Small numbers: {intervals.level:.0%} intervals from {intervals.num_resamples} resamples "
            f"of the {intervals.num_images} images ({intervals.method})."
        )
    return Table(
        title="Average precision, over all raw detections",
        heads=["class", "images", "n", "AP50", "AP", "AP75", "AR100", "AP small", "AP medium", "AP large"],
        rows=rows,
        has_total=True,
        notes=notes,
    )


def _class_row(
    name: Cell,
    metrics: ClassMetrics | CocoSummary,
    *,
    num_images: int,
    num_boxes: int,
    intervals: tuple[Interval | None, Interval | None],
) -> list[Cell]:
    ap50, ap, *others = ap_values(metrics)
    return [
        name,
        Cell(text=str(num_images)),
        Cell(text=str(num_boxes)),
        number_cell(ap50, intervals[0]),
        number_cell(ap, intervals[1]),
        *map(number_cell, others),
    ]


def _operating_table(report: Report) -> Table:
    points = report.operating_points
    rows = []
    for row, point in zip(report.classes, points.classes, strict=True):
        origin = "" if point.origin == "its own boxes" else f"; threshold: {point.origin}"
        note = f"{point.note}{origin}" if point.note else ""
        name = Cell(text=row.metrics.name, small=note, is_text=True)
        rows.append(_counts_row(name, point.threshold, row.counts))
    rows.append(_counts_row(Cell(text="all", is_text=True), None, report.counts))
    return Table(
        title=f"At the operating points: {points.goal}, chosen on {points.chosen_on}",
        heads=["class", "n", "threshold", "precision", "recall", "F1", "TP", "FP", "FN"],
        rows=rows,
        has_total=True,
        notes=["TP: boxes found; FP: false boxes; FN: missed boxes."],
    )


def _counts_row(name: Cell, threshold: float | None, counts: Counts) -> list[Cell]:
    return [
        name,
        Cell(text=str(counts.num_boxes)),
        *map(number_cell, (threshold, counts.precision, counts.recall, counts.f1)),
        *(Cell(text=str(number)) for number in (counts.tp, counts.fp, counts.fn)),
    ]


def _provenance_table(report: Report) -> Table:
    source = report.provenance
    checkpoint, dataset, tiles = source.checkpoint, source.dataset, source.tiles
    height, width = source.image_size_hw
    cut = f", tiles of {tiles.size} px, overlap {tiles.overlap:g}" if tiles else ""
    epoch = "" if checkpoint.epoch is None else f", epoch {checkpoint.epoch + 1}"
    times = {"network": source.time_per_image_ms.network, "total": source.time_per_image_ms.total}
    values = {
        "checkpoint": f"{checkpoint.path} ({checkpoint.weights} weights{epoch})",
        "checkpoint SHA-256": checkpoint.sha256,
        "annotations": dataset.annotations_file,
        "annotations SHA-256": dataset.sha256,
        "images without boxes": str(report.num_images_without_boxes),
        "normal class": dataset.normal_class or "none",
        "model": f"{source.model.name}, {source.model.parameters / 1e6:.1f} M parameters",
        "network input": f"{height} x {width} px (height x width), {source.resize}{cut}",
        "raw detections per image": str(source.max_detections),
        "time per image": "; ".join(f"{key} {ms:.1f} ms" for key, ms in times.items() if ms is not None),
        "device": source.device,
        "versions": ", ".join(f"{name} {version}" for name, version in source.versions.items()),
        "report version": str(report.schema_version),
    }
    rows = [[Cell(text=name, is_text=True), Cell(text=text, is_text=True)] for name, text in values.items()]
    return Table(heads=["item", "value"], rows=rows)
