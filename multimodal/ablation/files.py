"""The files of the trials: numbers, page and charts, and the verdict in the report of the run.

evidence.json        the numbers
evidence.html        the page, with everything in it
evidence/*.png *.svg the charts
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deim.files import write_text
from deim.report.files import read_report_inputs, write_report_files
from deim.report.page import Cell, Section, Table, embed_svg, render_page
from deim.report.schema import TaskSection
from deim.report.tables import DASH
from multimodal.ablation.charts import draw_evidence_charts
from multimodal.ablation.schema import REPORTED_KEYS
from multimodal.ablation.trials import FROZEN

logger = logging.getLogger(__name__)

READING_HELP = (
    "A few fixed text vectors enter a learned head only through their cosines. A fused model that beats the "
    "frozen detector may owe it to its training: the controls are trained in the same way, with other "
    "vectors or with none.",
    "All models are trained on the same findings of the frozen detector, with the same seeds, batches and "
    "epochs, and scored at the end of the training: no epoch is chosen by its score.",
    "Intervals say how far a score would move with other images of the same kind; those of differences are "
    "paired. They leave out the chance in training: the scores of the seeds show it.",
)


def write_evidence(evidence: Mapping[str, Any], folder: Path) -> Path:
    """Write all files.

    Args:
        evidence: From `build_evidence`.
        folder: Where to put them; it is made if it does not exist.

    Returns:
        Path of the JSON file; the page lies beside it.

    Raises:
        OSError: If a file cannot be written.
    """
    path = folder / "evidence.json"
    charts_folder = folder / "evidence"
    charts_folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(evidence, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    charts = draw_evidence_charts(evidence, charts_folder)
    write_text(path.with_suffix(".html"), _page(evidence, charts))
    return path


def add_to_report(evidence: Mapping[str, Any], report_path: Path) -> bool:
    """Write the verdict into the report of the run whose text it is about, and make its page again.

    Args:
        evidence: From `build_evidence`.
        report_path: The JSON report of the run.

    Returns:
        Whether there is such a report, of the same classes.

    Raises:
        DataError: If the report cannot be read.
        OSError: If a file cannot be written.
    """
    if not report_path.is_file():
        return False
    inputs = read_report_inputs(report_path)
    if list(inputs.ground_truth.class_names) != [row["name"] for row in evidence["models"][0]["classes"]]:
        logger.warning("%s: is of other classes, and does not get the verdict", report_path)
        return False
    entry = {key: evidence[key] for key in REPORTED_KEYS}
    section = inputs.task_section
    if section is None:
        section = TaskSection(task="text_fusion", title="Text fusion", summary=(), data={})
    earlier = section.data.get("ablation", {}).get("in_words", ())
    summary = tuple(line for line in section.summary if line not in earlier)
    section = replace(
        section, summary=(*summary, *entry["in_words"]), data={**section.data, "ablation": entry}
    )
    write_report_files(replace(inputs, task_section=section), report_path)
    return True


def _page(evidence: Mapping[str, Any], charts: Mapping[str, Path]) -> str:
    sections = [
        Section(title="In words", lines=[*evidence["in_words"], evidence["rule"]]),
        Section(title="Models", tables=[_model_table(evidence)]),
        Section(title="Charts", figures=[embed_svg(path, title) for title, path in charts.items()]),
        Section(title="Classes", tables=[_class_table(evidence), _lead_table(evidence)]),
        Section(title="How to read this", lines=READING_HELP),
    ]
    pair = evidence["pair"]
    subtitle = (
        f"{evidence['detector']}; texts of {pair['first']} and {pair['second']} exchanged "
        f"({pair['origin']}); made {evidence['created']}"
    )
    return render_page("Does the text help?", subtitle, sections)


def _model_table(evidence: Mapping[str, Any]) -> Table:
    rows = [
        [
            Cell(text=model["description"], is_text=True),
            _score_cell(model["ap50"], model["ap50_interval"]),
            Cell(text=", ".join(_number(value) for value in model["ap50_of_seeds"])),
            _score_cell(model["ap"], model["ap_interval"]),
            Cell(text="") if model["name"] == FROZEN else _difference_cell(model["over_frozen"]),
            Cell(text="") if model["name"] == "text" else _difference_cell(model["text_over_it"]),
        ]
        for model in evidence["models"]
    ]
    return Table(
        heads=["model", "mAP50", "of each seed", "mAP", "above the frozen detector", "real text above it"],
        rows=rows,
        notes=[
            f"Small numbers: {evidence['level']:.0%} intervals from {evidence['num_resamples']} resamples of "
            f"the {evidence['num_images']} images, the same for all models. Differences are of mAP50."
        ],
    )


def _class_table(evidence: Mapping[str, Any]) -> Table:
    models = evidence["models"]
    rows = [
        [
            Cell(text=row["name"], small=f"n = {row['num_boxes']}", is_text=True),
            *(
                _score_cell(model["classes"][label]["ap50"], model["classes"][label]["ap50_interval"])
                for model in models
            ),
        ]
        for label, row in enumerate(models[0]["classes"])
    ]
    return Table(
        title="AP50 of each class",
        heads=["class", *(model["description"] for model in models)],
        rows=rows,
    )


def _lead_table(evidence: Mapping[str, Any]) -> Table:
    others = [model for model in evidence["models"] if model["name"] != "text"]
    rows = [
        [
            Cell(text=row["name"], small=f"n = {row['num_boxes']}", is_text=True),
            *(_difference_cell(model["classes"][label]["text_over_it"]) for model in others),
        ]
        for label, row in enumerate(others[0]["classes"])
    ]
    return Table(
        title="How much more AP50 the real text has",
        heads=["class", *(model["description"] for model in others)],
        rows=rows,
    )


def _score_cell(value: float | None, ends: Sequence[float] | None) -> Cell:
    return Cell(text=_number(value), small=f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "")


def _difference_cell(found: Mapping[str, Any]) -> Cell:
    if found["value"] is None:
        return Cell(text=DASH)
    return Cell(text=f"{found['value']:+.3f}", small=f"{found['low']:+.3f} to {found['high']:+.3f}")


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
