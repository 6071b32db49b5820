"""The files of a comparison: its numbers, its page, its charts.

comparison.json
comparison.html      with everything in it
comparison/          *.png *.svg, and images.png: the same images with the detections of each run
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from deim.boxes import xywh_to_xyxy
from deim.report.build import write_whole
from deim.report.compare.charts import draw_comparison_charts, draw_confusion_pairs
from deim.report.compare.runs import ComparedRun, compare_runs, describe_comparison, images_that_differ
from deim.report.draw import Panel, PanelRow, panel_sheet, shown_names
from deim.report.files import ImageFolder, check_report_path
from deim.report.gallery import NEUTRAL_COLOR, RIGHT_COLOR, WRONG_COLOR
from deim.report.page import Cell, Section, Table, embed_image, embed_svg, render_page
from deim.report.tables import DASH

NUM_IMAGES = 8
"""Images that are shown with the detections of each run."""
CAUTION = (
    "Each interval stands alone: of twenty comparisons of equal runs, one is expected to look different. "
    "The intervals hold for other images of the same kind; another seed of the same training may differ too."
)


def write_comparison(runs: Sequence[ComparedRun], path: Path) -> dict[str, Any]:
    """Compare runs and write all files of the comparison.

    Args:
        runs: From `read_runs`.
        path: The JSON file; the page and the folder of charts lie beside it.

    Returns:
        The comparison, see `compare.COMPARISON_KEYS`.

    Raises:
        DataError: If `path` is a folder or has another suffix than `.json`.
        OSError: If a file cannot be written.
    """
    check_report_path(path)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("confusion_*"):  # of more runs than now
        old.unlink()
    comparison = compare_runs(runs)
    charts = draw_comparison_charts(runs, folder)
    confusions = draw_confusion_pairs(runs, folder)
    images = ImageFolder(Path(runs[0].report["dataset"]["image_dir"]), runs[0].results.file_names)
    sheet = _image_sheet(runs, images)
    sheet.save(folder / "images.png")
    page = render_page(
        f"{len(runs)} runs on {comparison['split']}",
        f"{comparison['dataset']['annotations_file']}, {comparison['dataset']['num_images']} images, "
        f"{comparison['dataset']['num_boxes']} boxes",
        [
            Section(title="In words", lines=[*describe_comparison(comparison), CAUTION]),
            Section(
                title="Side by side",
                tables=[_run_table(comparison), *_difference_tables(comparison)],
            ),
            Section(
                title="Charts",
                pictures=[embed_svg(chart, title) for title, chart in charts.items()],
                pictures_in_columns=True,
            ),
            Section(
                title="Confusion of classes",
                pictures=[embed_svg(chart, title) for title, chart in confusions.items()],
            ),
            Section(
                title="The images on which the runs differ most",
                lines=[line for line in (images.describe_missing(),) if line],
                pictures=[embed_image(sheet, "ground truth, and the detections of each run")],
            ),
        ],
    )
    write_whole(page, path.with_suffix(".html"))
    write_whole(json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)
    return comparison


def _run_table(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for run in comparison["runs"]:
        ends = run["ap50_interval"]
        rows.append(
            [
                Cell(text=run["name"], small=run["model"], is_text=True),
                Cell(text=_number(run["ap50"]), small=f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""),
                *(Cell(text=_number(run[key])) for key in ("ap", "precision", "recall", "f1")),
                *(
                    Cell(text=DASH if run[key] is None else f"{run[key]:.1%}")
                    for key in ("escape_rate", "overkill_rate")
                ),
                Cell(text=DASH if run["epochs"] is None else str(run["epochs"])),
                Cell(text=_number(run["hours"], digits=2)),
                Cell(text=f"{run['parameters'] / 1e6:.1f}"),
                Cell(text=_number(run["ms_per_image"], digits=1)),
            ]
        )
    heads = ["run", "mAP50", "mAP", "precision", "recall", "F1", "escapes", "overkill"]
    return Table(
        title="Runs",
        heads=[*heads, "epochs", "hours", "parameters, M", "network, ms an image"],
        rows=rows,
        notes=["Precision, recall, F1, escapes and overkill are those at each run's own operating points."],
    )


def _difference_tables(comparison: Mapping[str, Any]) -> list[Table]:
    first = comparison["runs"][0]
    tables = []
    for run, entry in zip(comparison["runs"][1:], comparison["differences"], strict=True):
        rows = [
            [
                Cell(text=own["name"], is_text=True),
                Cell(text=str(own["num_boxes"])),
                Cell(text=_number(before["ap50"])),
                Cell(text=_number(own["ap50"])),
                *_difference_cells(difference),
            ]
            for before, own, difference in zip(
                first["classes"], run["classes"], entry["class_ap50"], strict=True
            )
        ]
        total = [
            Cell(text="all (mAP50)", is_text=True),
            Cell(text=str(comparison["dataset"]["num_boxes"])),
            Cell(text=_number(first["ap50"])),
            Cell(text=_number(run["ap50"])),
            *_difference_cells(entry["ap50"]),
        ]
        tables.append(
            Table(
                title=f"AP50 of {run['name']} against {first['name']}",
                heads=["class", "n", first["name"], run["name"], "difference", "verdict"],
                rows=[*rows, total],
                has_total=True,
                notes=[
                    f"Small numbers: {comparison['level']:.0%} intervals of the difference on the same "
                    f"{comparison['num_resamples']} resamples of the images."
                ],
            )
        )
    return tables


def _difference_cells(difference: Mapping[str, Any]) -> list[Cell]:
    if difference["value"] is None:
        return [Cell(text=DASH), Cell(text=difference["verdict"], is_text=True)]
    return [
        Cell(
            text=f"{difference['value']:+.3f}", small=f"{difference['low']:+.3f} to {difference['high']:+.3f}"
        ),
        Cell(text=difference["verdict"], is_text=True),
    ]


def _number(value: float | None, *, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _image_sheet(runs: Sequence[ComparedRun], images: ImageFolder) -> Image.Image:
    names = shown_names(runs[0].results.class_names)
    rows = []
    for position in images_that_differ(runs, NUM_IMAGES):
        image = images.read(position)
        if image is None:
            continue
        truth = runs[0].results.truth
        boxes = truth.image == position
        panels = [
            Panel(
                caption=f"ground truth: {int(boxes.sum())}",
                boxes_xyxy=xywh_to_xyxy(torch.from_numpy(truth.boxes_xywh[boxes])),
                texts=[names[label] for label in truth.label[boxes]],
                colors=[RIGHT_COLOR] * int(boxes.sum()),
            )
        ]
        for run in runs:
            found = run.shipped.found
            ones = (found.image == position).nonzero()[0]
            labels, scores = found.label[ones].tolist(), found.scores[ones].tolist()
            is_right, is_false = run.assignment.is_hit[0, ones], run.assignment.is_false[0, ones]
            panels.append(
                Panel(
                    caption=f"{run.name}: {int(is_right.sum())} right, {int(is_false.sum())} wrong",
                    boxes_xyxy=xywh_to_xyxy(torch.from_numpy(found.boxes_xywh[ones])),
                    texts=[
                        f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)
                    ],
                    colors=[
                        RIGHT_COLOR if right else WRONG_COLOR if false else NEUTRAL_COLOR
                        for right, false in zip(is_right, is_false, strict=True)
                    ],
                )
            )
        rows.append(PanelRow(image=image, caption=runs[0].results.file_names[position], panels=panels))
    return panel_sheet(
        rows, title="Detections that count: blue is right, red is wrong, gray in a crowd region"
    )
