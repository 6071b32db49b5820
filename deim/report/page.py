"""Pages of reports and comparisons: one HTML file each, readable offline and on paper."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import jinja2
from PIL import Image

from deim.language import ENGLISH, Language
from deim.metrics.convergence import describe_convergence
from deim.report.schema import Report
from deim.report.summary import describe_data, describe_report
from deim.report.tables import Cell, Table, class_table, operating_table
from deim.report.verdict import Verdict, judge

JPEG_QUALITY = 88
SMALLEST_SCALE = 0.62
"""Charts and images are not shown smaller than this on narrow windows, but scroll."""
MAX_IMAGE_WIDTH_PX = 1000
"""Wider images may be shrunk as far as this one."""
DIRECTION_MARKS: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
CSS_PIXELS = {"px": 1.0, "pt": 4 / 3}
"""Size of each unit of an SVG file."""

READING_HELP = (
    "AP is COCO's average precision, the mean over the IoU thresholds 0.50 to 0.95; AP50 at IoU 0.50 alone. "
    "AP S, M and L count boxes with an area up to 32², from 32² to 96² and above 96² px. Crowd regions "
    "are no boxes.",
    "Precision, recall and F1 hold at the stated threshold and IoU 0.50; they are not COCO metrics.",
    "An escape is a defective image on which no detection overlaps a defect by IoU 0.50 or more, whatever "
    "their classes; overkill is a good image with any detection of a defect class.",
    "Intervals say how far a score would move with other images of the same kind. They do not include the "
    "chance in training: another seed gives another detector. In simulations nineteen of twenty held the "
    "truth, but only about nine of ten for mAP over IoU 0.50 to 0.95.",
)

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """An image inside the page."""

    title: str
    """Description for readers who cannot see it."""
    data: str
    """The image as a data URL."""
    min_width_px: int
    """Least width in CSS pixels at which it can be read."""
    caption: str = ""
    """Text below it; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureColumns:
    """Figures side by side in columns with headings, below each other on narrow windows."""

    title: str
    columns: Mapping[str, Sequence[Figure]]
    """Figures by the heading of their column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page: sentences, then tables, then figures, then figures in columns."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    figures_in_columns: bool = False
    """Figures stand side by side where the window is wide enough."""
    groups: Sequence[FigureColumns] = ()


def embed_charts(charts: Mapping[str, Path]) -> list[Figure]:
    """Embed SVG files by their titles."""
    figures = []
    for title, path in charts.items():
        content = path.read_bytes()
        size = re.search(rb'<svg[^>]*? width="([0-9.]+)(px|pt)"', content)
        assert size is not None
        width = float(size[1]) * CSS_PIXELS[size[2].decode()]
        data = _data_url(content, "image/svg+xml")
        figures.append(Figure(title=title, data=data, min_width_px=round(SMALLEST_SCALE * width)))
    return figures


def embed_image(image: Image.Image, title: str, *, caption: str = "") -> Figure:
    """Embed an image as JPEG, described by `title`; transparency is dropped."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format="JPEG", quality=JPEG_QUALITY)
    data = _data_url(content.getvalue(), "image/jpeg")
    width = round(SMALLEST_SCALE * min(image.width, MAX_IMAGE_WIDTH_PX))
    return Figure(title=title, data=data, min_width_px=width, caption=caption)


def css_string(text: str) -> str:
    """Escape a text for a CSS string in a `<style>` element, where HTML escapes are not read."""
    return "".join(each if each.isalnum() or each == " " else f"\\{ord(each):x} " for each in text)


def drop_direction_marks(value: object) -> object:
    """Drop the characters of a text that turn all text after them around, such as in a class name."""
    return DIRECTION_MARKS.sub("", value) if type(value) is str else value


def render_page(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    *,
    verdict: Verdict | None = None,
    language: Language = ENGLISH,
) -> str:
    """Render a page as HTML that needs no other file, the verdict first; all texts are escaped.

    The texts are in the language already, which the page names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=drop_direction_marks,
        trim_blocks=True,
    )
    environment.filters["css_string"] = css_string
    return environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, verdict=verdict, language=language
    )


def render_report(
    report: Report,
    *,
    charts: Mapping[str, Path],
    gallery: Sequence[FigureColumns],
    missing_images: str,
    task_images: Sequence[Figure] = (),
    language: Language = ENGLISH,
) -> str:
    """Render a report as one HTML page that needs no other file.

    Args:
        report: The report.
        charts: Path of each chart's SVG by its title.
        gallery: Errors and correct detections of each class.
        missing_images: Why the gallery lacks images; empty if it lacks none.
        task_images: Images of the task section.
        language: Language of the page; that of the other arguments.
    """
    gallery_lines = [missing_images] if missing_images else []
    if gallery:
        gallery_lines.append(
            language.text("Blue is correct, orange is wrong; a yellow frame marks the box in question.")
        )
    elif not missing_images:
        gallery_lines.append(language.text("There is neither a box nor a detection."))
    gallery_title = language.text("Errors and correct detections of each class")
    sections = [
        Section(title=language.text("Summary"), lines=describe_report(report, language)),
        Section(title=language.text("Classes"), tables=[operating_table(report, language)]),
        Section(title=language.text("Charts"), figures=embed_charts(charts), figures_in_columns=True),
        Section(title=language.text("COCO metrics"), tables=[class_table(report, language)]),
        Section(title=gallery_title, lines=gallery_lines, groups=gallery),
    ]
    task, convergence = report.task_section, report.convergence
    if task is not None:
        lines = list(map(language.sentence, task.summary))
        sections.append(Section(title=language.sentence(task.title), lines=lines, figures=task_images))
    if convergence is not None:
        lines = [describe_convergence(convergence, language)]
        sections.append(Section(title=language.text("Convergence"), lines=lines))
    sections += [
        Section(title=language.text("Provenance"), tables=[_provenance_table(report, language)]),
        Section(title=language.text("How to read this"), lines=list(map(language.text, READING_HELP))),
    ]
    created = datetime.fromisoformat(report.created)
    subtitle = language.text(
        "{file}, {images}, {boxes}; {day} {month} {year}, {time} UTC",
        file=report.provenance.dataset.annotations_file,
        images=language.count("image", report.num_images),
        boxes=language.count("box", report.num_boxes),
        day=created.day,
        month=language.text(MONTHS[created.month - 1]),
        year=created.year,
        time=f"{created:%H:%M}",
    )
    title = language.text("Evaluation of {report}", report=report_title(report, language))
    return render_page(title, subtitle, sections, verdict=judge(report, language), language=language)


def report_title(report: Report, language: Language = ENGLISH) -> str:
    """Return the model and the split, for headings."""
    source = report.provenance
    return language.text("{model} on {split}", model=language.sentence(source.model.name), split=source.split)


def _provenance_table(report: Report, language: Language) -> Table:
    source = report.provenance
    checkpoint, dataset, tiles = source.checkpoint, source.dataset, source.tiles
    height, width = source.image_size_hw
    times = source.time_per_image_ms
    weights = language.text("{path} ({kind} weights)", path=checkpoint.path, kind=checkpoint.weights)
    if checkpoint.epoch is not None:
        weights = language.text(
            "{path} ({kind} weights, epoch {epoch})",
            path=checkpoint.path,
            kind=checkpoint.weights,
            epoch=checkpoint.epoch + 1,
        )
    network_input = language.text(
        "{height} x {width} px (height x width), {resize}", height=height, width=width, resize=source.resize
    )
    if tiles:
        cut = {"size": tiles.size, "overlap": tiles.overlap}
        network_input += language.text(", tiles of {size} px, overlap {overlap:g}", **cut)
    not_measured = language.text("not measured")
    rates = [
        f"{language.text(name)} {ms:.1f} ms"
        for name, ms in (
            ("network and post-processing", times.network),
            ("with reading and preparing", times.total),
        )
        if ms is not None
    ]
    latency = not_measured
    if times.latency is not None:
        latency = language.text("{ms:.1f} ms, median, network and post-processing", ms=times.latency)
    parameters = source.model.parameters / 1e6
    values = {
        "checkpoint": weights,
        "checkpoint SHA-256": checkpoint.sha256,
        "annotations": dataset.annotations_file,
        "annotations SHA-256": dataset.sha256,
        "data": describe_data(report, language),
        "normal class": dataset.normal_class or language.text("none"),
        "model": language.text(
            "{model}, {parameters:.1f} M parameters",
            model=language.sentence(source.model.name),
            parameters=parameters,
        ),
        "network input": network_input,
        "raw detections per image": str(source.max_detections),
        "latency, one tile at a time" if tiles else "latency, one image at a time": latency,
        "time per image in batches": "; ".join(rates) or not_measured,
        "counted per image and class": str(source.counted_detections),
        "device": source.device,
        "versions": ", ".join(f"{name} {version}" for name, version in source.versions.items()),
        "report version": str(report.schema_version),
    }
    rows = [
        [Cell(text=language.text(name), is_text=True), Cell(text=text, is_text=True)]
        for name, text in values.items()
    ]
    return Table(heads=[language.text("item"), language.text("value")], rows=rows)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
