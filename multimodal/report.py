"""Reports on a fused detector, on its detector alone, and on how they differ.

Beside `report.json` lie `report_detector.json`, `report_comparison.json` and the text maps in `report/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from deim.engine.trained_detector import TrainedDetector
from deim.inference.evaluator import Evaluator
from deim.language import ENGLISH
from deim.metrics.bootstrap import ScoreDifference
from deim.metrics.confusion import compute_confusion
from deim.records import to_json
from deim.report.build import ReportInputs
from deim.report.compare import RunDifference, compare_detections, read_runs
from deim.report.compare_files import write_comparison
from deim.report.evaluate import evaluate_split
from deim.report.files import ReportFiles, write_report_files
from deim.report.languages import read_language
from deim.report.schema import CheckpointInfo, Report, TaskSection, check_report_path
from multimodal.confused_pairs import tracked_pair
from multimodal.task import detector_alone, fusion_options, read_state
from multimodal.text_maps import write_text_maps


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedText:
    """The texts behind a fusion."""

    encoder: str
    weights_hash: str | None
    prompts: Mapping[str, tuple[str, ...]]
    """By class name."""
    background: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorResult:
    """The frozen detector and its result alone."""

    path: str
    report: str
    """Name of its report."""
    ap: float | None
    ap50: float | None


Confusion = TypedDict(
    "Confusion", {"class": str, "predicted_as": str, "num_boxes": int, "before": int, "after": int}
)
"""Boxes of a class that are predicted as another, by the detector alone and with text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionComparison:
    """How a fused detector differs from its detector alone: the data of the report's `task_section`."""

    text: EmbeddedText
    detector: DetectorResult
    comparison: str
    """Name of the comparison's file."""
    confusion: tuple[Confusion, ...]
    """Both directions of the tracked pair."""
    difference: RunDifference
    class_tolerance: float
    """Loss of AP of a class beyond which the detector alone is said to be better for it."""
    losing_classes: tuple[str, ...]
    """Names of the classes that lose more."""


def evaluate_checkpoint(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> Report:
    """Evaluate a fused detector and its detector alone on a split, and write the reports of both.

    Arguments and errors are those of `deim.report.evaluate.evaluate_checkpoint`; `report_path` is that of the
    fused detector, whose report is returned.
    """
    check_report_path(report_path)
    alone_path = report_path.with_name(f"{report_path.stem}_detector.json")
    comparison_path = report_path.with_name(f"{report_path.stem}_comparison.json")
    state = read_state(trained, trained.path)
    origin, pair = state.detector, tracked_pair(state.confused, state.text_bank)
    # Its thresholds belong to the detector's own checkpoint, which stays as it is.
    alone = evaluate_split(detector_alone(trained), evaluator, split_name=split_name, store_points=False)
    checkpoint = CheckpointInfo(
        path=origin.path, sha256=origin.sha256, epoch=origin.epoch, weights=origin.weights
    )
    # The log in this folder is that of the fusion.
    alone = replace(alone, convergence=None, provenance=replace(alone.provenance, checkpoint=checkpoint))
    write_report_files(alone, alone_path)
    fused = evaluate_split(trained, evaluator, split_name=split_name)
    files = ReportFiles(report_path)
    for old in files.folder.glob("text_map_*.png"):  # of other classes
        old.unlink()
    language = read_language(trained.config.evaluation.language)
    maps = write_text_maps(trained, evaluator.split, pair, files.folder, language=language)
    data = _compare(
        trained, alone, fused, pair, alone_name=alone_path.name, comparison_name=comparison_path.name
    )
    section = TaskSection(
        task=trained.task,
        title=ENGLISH.text("Text fusion"),
        summary=tuple(_summary(data, alone, fused)),
        data=to_json(data),
        images=tuple(path.name for path in maps),
    )
    model = replace(
        fused.provenance.model,
        name=ENGLISH.text("{model} with text fusion", model=fused.provenance.model.name),
    )
    fused = replace(fused, provenance=replace(fused.provenance, model=model), task_section=section)
    report = write_report_files(fused, report_path)
    write_comparison(read_runs([alone_path, report_path], split=split_name), comparison_path)
    return report


def evaluate_share(trained: TrainedDetector, evaluator: Evaluator) -> None:
    """Do a process's share of `evaluate_checkpoint`, with an evaluator of the same split."""
    evaluator.evaluate(detector_alone(trained).model)
    evaluator.evaluate(trained.model)


def _compare(
    trained: TrainedDetector,
    alone: ReportInputs,
    fused: ReportInputs,
    pair: tuple[int, ...],
    *,
    alone_name: str,
    comparison_name: str,
) -> FusionComparison:
    state, summary = read_state(trained, trained.path), alone.metrics.summary
    tolerance = fusion_options(trained.config).class_tolerance
    rows = zip(alone.metrics.classes, fused.metrics.classes, strict=True)
    return FusionComparison(
        text=EmbeddedText(
            encoder=state.text_bank.encoder,
            weights_hash=state.text_bank.weights_hash,
            prompts=dict(zip(trained.class_names, state.text_bank.prompt_texts, strict=True)),
            background=state.text_bank.background_texts,
        ),
        detector=DetectorResult(
            path=state.detector.path, report=alone_name, ap=summary.ap, ap50=summary.ap50
        ),
        comparison=comparison_name,
        confusion=_confusions(pair, alone, fused),
        difference=compare_detections(alone.raw, fused.raw, name="with text"),
        class_tolerance=tolerance,
        losing_classes=tuple(
            old.name
            for old, new in rows
            if old.ap is not None and new.ap is not None and new.ap - old.ap < -tolerance
        ),
    )


def _confusions(pair: tuple[int, ...], alone: ReportInputs, fused: ReportInputs) -> tuple[Confusion, ...]:
    """Count both directions of the tracked pair, at the operating points of each."""
    if len(pair) < 2:
        return ()
    names = alone.ground_truth.class_names
    old, new = _confusion_counts(alone), _confusion_counts(fused)
    return tuple(
        {
            "class": names[label],
            "predicted_as": names[other],
            "num_boxes": int(old[label].sum()),
            "before": int(old[label, other]),
            "after": int(new[label, other]),
        }
        for label, other in (pair, pair[::-1])
    )


def _confusion_counts(inputs: ReportInputs) -> NDArray[np.int64]:
    return np.array(compute_confusion(inputs.kept).counts, dtype=np.int64)


def _summary(data: FusionComparison, alone: ReportInputs, fused: ReportInputs) -> list[str]:
    """Say in sentences what the comparison shows."""
    difference = data.difference
    lines = [
        ENGLISH.text(
            "With text ({encoder}) against the detector alone: mAP {ap_phrase}; mAP50 {ap50_phrase}.",
            encoder=data.text.encoder,
            ap_phrase=_format(difference.ap),
            ap50_phrase=_format(difference.ap50),
        )
    ]
    lines += [
        ENGLISH.text(
            "{name} predicted as {other_name}: {before:d} of {boxes:d} boxes before, {after:d} with text.",
            name=row["class"],
            other_name=row["predicted_as"],
            before=row["before"],
            boxes=row["num_boxes"],
            after=row["after"],
        )
        for row in data.confusion
    ]
    unknown = [row.name for row in alone.metrics.classes if row.ap is None]
    if unknown:
        lines.append(ENGLISH.text("Without boxes, and so not compared: {names}.", names=", ".join(unknown)))
    if not data.losing_classes and len(unknown) < len(alone.metrics.classes):
        points = ENGLISH.text("{number:g} points", number=100 * data.class_tolerance)
        if data.class_tolerance == 0.01:
            points = ENGLISH.text("1 point")
        template = "No class loses more than {points_phrase} of AP by the text."
        if unknown:
            template = "No other class loses more than {points_phrase} of AP by the text."
        lines.append(ENGLISH.text(template, points_phrase=points))
    rows = zip(alone.metrics.classes, fused.metrics.classes, difference.class_ap, strict=True)
    lines += [
        ENGLISH.text(
            "{name} loses {points:.1f} points of AP by the text: {change_phrase}.",
            name=old.name,
            points=100 * (old.ap - new.ap),
            change_phrase=_format_change(old.ap, new.ap, delta),
        )
        for old, new, delta in rows
        if old.name in data.losing_classes and old.ap is not None and new.ap is not None
    ]
    if data.losing_classes:
        lines.append(
            ENGLISH.text(
                "For {names} the detector alone is better: {path}.",
                names=", ".join(data.losing_classes),
                path=data.detector.path,
            )
        )
    return lines


def _format(delta: ScoreDifference) -> str:
    if delta.value is None:
        return ENGLISH.text("cannot be compared")
    return ENGLISH.text(
        "{value:+.3f} ({interval_phrase})", value=delta.value, interval_phrase=_format_interval(delta)
    )


def _format_change(before: float, after: float, delta: ScoreDifference) -> str:
    ends = {"before": before, "after": after}
    if delta.value is None:
        return ENGLISH.text("{before:.3f} to {after:.3f}", **ends)
    return ENGLISH.text(
        "{before:.3f} to {after:.3f} ({interval_phrase})", **ends, interval_phrase=_format_interval(delta)
    )


def _format_interval(delta: ScoreDifference) -> str:
    return ENGLISH.text(
        "95% interval {low:+.3f} to {high:+.3f}, {verdict_phrase}",
        low=delta.low,
        high=delta.high,
        verdict_phrase=delta.verdict,
    )
