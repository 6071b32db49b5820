"""Errors and correct detections of each class: which ones are shown, what happened, and an image of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.language import ENGLISH, Language
from deim.metrics.assignment import IOU_50, Overlaps, iou_with
from deim.metrics.tide import ErrorKind
from deim.report.build import ReportInputs
from deim.report.draw import Panel, PanelRow, draw_row, short_names
from deim.report.palette import EMPTY, MARK_COLOR, Color, outcome_colors

ENTRIES_PER_CLASS = 4
"""Most misses, and most false alarms, of each class."""
CORRECT_RANKS = (0.0, 0.5, 1.0)
"""Which correct detections of a class are shown, as shares of their number by falling score: the best, the
median and the weakest."""
SIDE, MARGIN, MARK_DISTANCE = 520, 10, 5
"""Side of a panel, margin around the crop in it, and distance of the mark from its box, in pixels."""
MIN_CONTEXT, MAX_CONTEXT, SHARE_OF_IMAGE, MIN_CROP = 3.0, 9.0, 0.25, 32
"""The crop is a quarter of the longer side of the image, but at least 3 and at most 9 times as long as the
box, and at least 32 px."""
MAX_TAGS = 12
"""Further boxes of a panel get no tag."""


EntryKind = Literal["miss", "false alarm", "correct"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryEntry:
    """One error, or one correct detection."""

    kind: EntryKind
    label: int
    """Class index of the missed box or of the detection."""
    image: int
    position: int
    """Position of the box: in the ground truth for a miss, else in the kept detections."""
    box_xywh: tuple[float, ...]
    score: float | None
    """Score of a detection. Highest score of its class on the box for a miss; None if there is none."""
    caption: str


def choose_gallery(inputs: ReportInputs, language: Language = ENGLISH) -> list[GalleryEntry]:
    """Choose the worst misses and the strongest false alarms of each class, and some correct detections.

    A miss is a ground-truth box that no kept detection hits. The worst have the lowest raw scores of their
    class, or none at all; of equals the largest box comes first.

    Returns:
        Entries by class, the misses of each before its false alarms, the worst first, then the correct
        detections, the best first.
    """
    ground_truth, kept, kinds = inputs.ground_truth, inputs.kept.detections, inputs.kinds
    best_score = _best_scores_on_truth(inputs.raw)
    is_miss = ~ground_truth.is_crowd & ~inputs.kept.is_hit
    worst_first = np.lexsort((-ground_truth.boxes_xywh[:, 2:].prod(axis=1), best_score))
    worst_first = worst_first[is_miss[worst_first]]
    by_score = np.argsort(-kept.score, kind="stable")
    strongest_first = by_score[kinds.kind[by_score] >= 0]

    entries = []
    for label in range(ground_truth.num_classes):
        misses = worst_first[ground_truth.label[worst_first] == label][:ENTRIES_PER_CLASS]
        false_alarms = strongest_first[kept.label[strongest_first] == label][:ENTRIES_PER_CLASS]
        for row in misses.tolist():
            score = float(best_score[row]) if best_score[row] >= 0 else None
            caption = _miss_caption(inputs, row, score, language)
            entries.append(_entry("miss", ground_truth, row, score=score, caption=caption))
        for row in false_alarms.tolist():
            caption = _false_alarm_caption(inputs, row, language)
            entries.append(_entry("false alarm", kept, row, score=float(kept.score[row]), caption=caption))
        correct = by_score[(kinds.kind[by_score] == ErrorKind.TP) & (kept.label[by_score] == label)]
        chosen = dict.fromkeys(round(share * (len(correct) - 1)) for share in CORRECT_RANKS if len(correct))
        for row in correct[list(chosen)].tolist():
            iou = _iou_text(kept, row, ground_truth, int(kinds.truth[row]))
            caption = language.text(
                "{name} found at {score:.2f} ({iou})",
                name=ground_truth.class_names[label],
                score=kept.score[row],
                iou=iou,
            )
            entries.append(_entry("correct", kept, row, score=float(kept.score[row]), caption=caption))
    return entries


def draw_entry(
    entry: GalleryEntry, image: Image.Image, inputs: ReportInputs, language: Language = ENGLISH
) -> Image.Image:
    """Draw an entry: the ground truth and the kept detections around its box.

    Blue is correct and orange is wrong; a yellow frame marks the box in both panels. Crowd regions, and
    detections in them, are gray.

    Args:
        entry: From `choose_gallery`.
        image: The image of the entry, upright, 8 bits per channel.
        inputs: As for `choose_gallery`.
        language: Language of the captions of both panels.

    Returns:
        An RGB image of constant size.
    """
    ground_truth, kept = inputs.ground_truth, inputs.kept.detections
    crop = _crop_around(entry.box_xywh, image.size)
    x1, y1, x2, y2 = crop
    scale = (SIDE - 2 * MARGIN) / max(x2 - x1, y2 - y1)
    width, height = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    corner = (SIDE - width) // 2, (SIDE - height) // 2
    canvas = Image.new("RGB", (SIDE, SIDE), EMPTY)
    canvas.paste(image.crop(crop).convert("RGB").resize((width, height)), corner)

    def panel(
        caption: str, boxes_xywh: NDArray[np.float64], texts: Sequence[str], colors: Sequence[Color]
    ) -> Panel:
        """Build a panel of boxes in pixels of the original, with the mark below them."""
        boxes = np.concatenate([boxes_xywh, [entry.box_xywh]])
        low = (boxes[:, :2] - (x1, y1)) * scale + corner
        boxes = np.concatenate([low, low + boxes[:, 2:] * scale], axis=1)
        boxes[-1] += (-MARK_DISTANCE, -MARK_DISTANCE, MARK_DISTANCE, MARK_DISTANCE)
        tags = [text if number < MAX_TAGS else "" for number, text in enumerate(texts)]
        return Panel(
            caption=caption,
            boxes_xyxy=torch.from_numpy(boxes),
            texts=[*tags, ""],
            colors=[*colors, MARK_COLOR],
        )

    names = short_names(ground_truth.class_names, kind=language.text("class"))
    truths = _rows_in_crop(ground_truth, entry, crop)
    rows = _rows_in_crop(kept, entry, crop)
    truth_panel = panel(
        language.text("ground truth, {file}", file=ground_truth.file_names[entry.image]),
        ground_truth.boxes_xywh[truths],
        [names[ground_truth.label[row]] for row in truths],
        outcome_colors(inputs.kept.is_hit[truths], ground_truth.is_crowd[truths]),
    )
    detection_panel = panel(
        language.text(
            "kept detections, {width} x {height} px at x {x}, y {y}",
            width=x2 - x1,
            height=y2 - y1,
            x=x1,
            y=y1,
        ),
        kept.boxes_xywh[rows],
        [f"{names[kept.label[row]]} {kept.score[row]:.2f}" for row in rows],
        outcome_colors(inputs.kept.assignment.is_tp[0, rows], inputs.kept.assignment.is_ignored[0, rows]),
    )
    row = PanelRow(image=canvas, caption="", panels=[truth_panel, detection_panel])
    return draw_row(row, panel_wh=(SIDE, SIDE))


def _entry(
    kind: EntryKind,
    table: GroundTruthTable | DetectionTable,
    row: int,
    *,
    score: float | None,
    caption: str,
) -> GalleryEntry:
    return GalleryEntry(
        kind=kind,
        label=int(table.label[row]),
        image=int(table.image[row]),
        position=row,
        box_xywh=tuple(table.boxes_xywh[row].tolist()),
        score=score,
        caption=caption,
    )


def _best_scores_on_truth(raw: Overlaps) -> NDArray[np.float64]:
    """(G,) highest raw score of its class on each ground-truth box, by IoU 0.5 or more; -1 without any."""
    fits = raw.is_same_class & (raw.iou >= IOU_50)
    best = np.full(len(raw.ground_truth), -1.0)
    np.maximum.at(best, raw.truth[fits], raw.detections.score[raw.detection[fits]])
    return best


def _miss_caption(inputs: ReportInputs, box: int, best_score: float | None, language: Language) -> str:
    ground_truth, kept, kinds = inputs.ground_truth, inputs.kept.detections, inputs.kinds
    label = ground_truth.label[box]
    threshold = float(inputs.points.thresholds[label])
    if best_score is None:
        cause = language.text("no detection of it at any score")
    elif best_score < threshold:
        # More digits where two would make the numbers look alike.
        digits = 2 if f"{best_score:.2f}" != f"{threshold:.2f}" else 4
        cause = language.text(
            "best score {score}, threshold {threshold}",
            score=f"{best_score:.{digits}f}",
            threshold=f"{threshold:.{digits}f}",
        )
    else:
        rows = kept.rows_of_image(int(ground_truth.image[box]))
        fits = iou_with(kept.boxes_xywh[rows], ground_truth.boxes_xywh[box]) >= IOU_50
        is_kept = (fits & (kept.label[rows] == label)).any()
        cause = language.text("best score {score:.2f} was removed by NMS", score=best_score)
        if is_kept:
            cause = language.text("best score {score:.2f} hits another box", score=best_score)
    text = language.text("{name} missed: {cause}", name=ground_truth.class_names[label], cause=cause)
    explains = np.isin(kinds.kind, (ErrorKind.CLASSIFICATION, ErrorKind.LOCALIZATION))
    for row in np.flatnonzero(explains & (kinds.truth == box))[:1].tolist():
        if kinds.kind[row] == ErrorKind.CLASSIFICATION:
            text += language.text(
                "; predicted as {name} at {score:.2f}",
                name=ground_truth.class_names[kept.label[row]],
                score=kept.score[row],
            )
        else:
            text += language.text(
                "; the box at {score:.2f} overlaps it too little ({iou})",
                score=kept.score[row],
                iou=_iou_text(kept, row, ground_truth, box),
            )
    return text


def _false_alarm_caption(inputs: ReportInputs, row: int, language: Language) -> str:
    ground_truth, kept, kinds = inputs.ground_truth, inputs.kept.detections, inputs.kinds
    about = int(kinds.truth[row])
    values = {
        "detection": language.text(
            "{name} at {score:.2f}", name=ground_truth.class_names[kept.label[row]], score=kept.score[row]
        ),
    }
    if about < 0:
        return language.text("{detection} where there is none", **values)
    values["other"] = ground_truth.class_names[ground_truth.label[about]]
    iou = _iou_text(kept, row, ground_truth, about)
    match ErrorKind(int(kinds.kind[row])):
        case ErrorKind.CLASSIFICATION:
            return language.text("{detection} on a box of {other}", **values)
        case ErrorKind.LOCALIZATION:
            template = "{detection} overlaps the box of {other} too little ({iou})"
            return language.text(template, **values, iou=iou)
        case ErrorKind.DUPLICATE:
            return language.text("{detection} on a box of {other} that a higher score hits", **values)
        case _:
            return language.text("{detection} beside a box of {other} ({iou})", **values, iou=iou)


def _iou_text(kept: DetectionTable, row: int, ground_truth: GroundTruthTable, box: int) -> str:
    iou = iou_with(kept.boxes_xywh[row], ground_truth.boxes_xywh[box])
    return f"IoU {np.floor(100 * iou[0]) / 100:.2f}"  # 0.498 must not read 0.50


def _crop_around(box_xywh: Sequence[float], image_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners in whole pixels of the crop to show: a square where the image is large enough."""
    x, y, width, height = box_xywh
    longer = max(width, height)
    quarter = min(SHARE_OF_IMAGE * max(image_wh), MAX_CONTEXT * longer)
    side = round(max(MIN_CONTEXT * longer, quarter, MIN_CROP))
    corners = []
    for center, length in ((x + width / 2, image_wh[0]), (y + height / 2, image_wh[1])):
        extent = min(side, length)
        low = min(max(round(center - extent / 2), 0), length - extent)
        corners.append((low, low + extent))
    (x1, x2), (y1, y2) = corners
    return x1, y1, x2, y2


def _rows_in_crop(
    table: GroundTruthTable | DetectionTable, entry: GalleryEntry, crop: tuple[int, int, int, int]
) -> NDArray[np.int64]:
    """Rows of the boxes in the crop, those that overlap the box of the entry most first."""
    x, y, width, height = table.boxes_xywh.T
    x1, y1, x2, y2 = crop
    inside = (table.image == entry.image) & (x < x2) & (x + width > x1) & (y < y2) & (y + height > y1)
    rows = np.flatnonzero(inside)
    overlap = iou_with(table.boxes_xywh[rows], np.array(entry.box_xywh))
    return rows[np.argsort(-overlap, kind="stable")]
