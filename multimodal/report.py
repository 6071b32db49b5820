"""From a trained fusion and a split to a report on it, on its detector alone, and on how they differ.

report.json              the fused detector; its `task_section` says how it differs from the detector
report_detector.json     the detector alone, on the same images
report_comparison.json   both side by side: classes with intervals, confusion before and after
report/text_map_*.png    where the text of a class answers

Each JSON file has its page beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deim.engine.trained_detector import TrainedDetector
from deim.inference.evaluator import Evaluator
from deim.metrics.assignment import assign, compute_overlaps
from deim.metrics.confusion import compute_confusion
from deim.records import to_json
from deim.report.build import ReportInputs
from deim.report.compare.build import compare_detections, read_runs
from deim.report.compare.files import write_comparison
from deim.report.compare.schema import RunDifference, ScoreDifference
from deim.report.evaluate import WrittenReport, evaluate_split
from deim.report.files import ReportFiles, write_report_files
from deim.report.schema import CheckpointInfo, Provenance, TaskSection, check_report_path
from multimodal.confused_pairs import tracked_pair
from multimodal.task import detector_alone, fusion_options
from multimodal.text_bank import TextBank, text_bank_from_dict
from multimodal.text_maps import write_text_maps

TASK = "text_fusion"

FUSION_KEYS = {
    "text": "encoder, hash of its weights, and the texts of each class that were embedded",
    "detector": "where the detector came from, its report here, and its `ap` and `ap50`",
    "comparison": "name of the comparison's file",
    "confusion": "for the tracked pair: boxes of one predicted as the other, before and with text",
    "difference": "`RunDifference` of the fused detector from the detector alone",
    "class_tolerance": "loss of AP of a class beyond which the detector alone is said to be better for it",
    "losing_classes": "names of the classes that lose more",
}
"""Keys of `TaskSection.data`; `ablation` is added by tools/ablate_text.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedEvaluation:
    """What `evaluate_fused` wrote."""

    fused: WrittenReport
    alone: ReportFiles
    """Report on the detector alone."""
    comparison: Path
    """JSON file of the comparison."""


def evaluate_checkpoint(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> WrittenReport:
    """Evaluate a fused detector on a split and write its report; see `evaluate_fused`."""
    return evaluate_fused(trained, evaluator, split_name=split_name, report_path=report_path).fused


def evaluate_share(trained: TrainedDetector, evaluator: Evaluator) -> None:
    """Do a process's share of `evaluate_checkpoint` in the main process.

    Args:
        trained: The same detector as there.
        evaluator: Evaluator of the same split.
    """
    evaluator.evaluate(detector_alone(trained).model)
    evaluator.evaluate(trained.model)


def evaluate_fused(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> FusedEvaluation:
    """Evaluate a fused detector and its detector alone on a split, and write the reports of both.

    Args:
        trained: A detector with text fusion.
        evaluator: Evaluator of the split.
        split_name: `train`, `val` or `test`, for the report.
        report_path: The JSON report; the other files lie beside it.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    check_report_path(report_path)
    alone_files = ReportFiles(report=report_path.with_name(f"{report_path.stem}_detector.json"))
    comparison_path = report_path.with_name(f"{report_path.stem}_comparison.json")
    # Its thresholds belong to the detector's own checkpoint, which stays as it is.
    alone = evaluate_split(detector_alone(trained), evaluator, split_name=split_name, store_points=False)
    # The log in this folder is that of the fusion, and the checkpoint holds the detector of another.
    alone = replace(
        alone, convergence=None, provenance=_provenance_alone(alone, trained.task_state["detector"])
    )
    write_report_files(alone, alone_files.report)
    fused = evaluate_split(trained, evaluator, split_name=split_name)
    files = ReportFiles(report=report_path)
    for old in files.folder.glob("text_map_*.png"):  # of other classes
        old.unlink()
    maps = write_text_maps(trained, evaluator.split, tracked_pair(trained), files.folder)
    section = _task_section(
        trained, alone, fused, alone_name=alone_files.report.name, comparison_name=comparison_path.name
    )
    model = replace(fused.provenance.model, name=f"{fused.provenance.model.name} with text fusion")
    fused = replace(
        fused,
        provenance=replace(fused.provenance, model=model),
        task_section=replace(section, images=tuple(path.name for path in maps)),
    )
    report = write_report_files(fused, report_path)
    write_comparison(read_runs([alone_files.report, report_path], split=split_name), comparison_path)
    return FusedEvaluation(
        fused=WrittenReport(report=report, files=files),
        alone=alone_files,
        comparison=comparison_path,
    )


def _task_section(
    trained: TrainedDetector,
    alone: ReportInputs,
    fused: ReportInputs,
    *,
    alone_name: str,
    comparison_name: str,
) -> TaskSection:
    """Say how the fused detector differs from the detector alone; see `FUSION_KEYS`."""
    fusion, options = trained.task_state, fusion_options(trained.config)
    bank = text_bank_from_dict(fusion["text_bank"], where=str(trained.path))
    difference = compare_detections(fused.ground_truth, alone.detections, fused.detections, name="with text")
    names = trained.class_names
    changes = [
        None if new.ap is None or old.ap is None else new.ap - old.ap
        for old, new in zip(alone.metrics.classes, fused.metrics.classes, strict=True)
    ]
    losing = [
        label
        for label, change in enumerate(changes)
        if change is not None and change < -options.class_tolerance
    ]
    confusions = _confusions(trained, alone, fused)
    data = {
        "text": {
            "encoder": bank.encoder,
            "weights_hash": bank.weights_hash,
            "prompts": dict(zip(bank.class_names, map(list, bank.prompt_texts), strict=True)),
            "background": list(bank.background_texts),
        },
        "detector": {
            "path": fusion["detector"]["path"],
            "report": alone_name,
            "ap": alone.metrics.summary.ap,
            "ap50": alone.metrics.summary.ap50,
        },
        "comparison": comparison_name,
        "confusion": confusions,
        "difference": to_json(difference),
        "class_tolerance": options.class_tolerance,
        "losing_classes": [names[label] for label in losing],
    }
    summary = (
        _mean_line(difference, bank),
        *(_confusion_line(entry) for entry in confusions),
        *_class_lines(alone, fused, difference, losing, tolerance=options.class_tolerance),
        *([_advice(losing, names, fusion["detector"]["path"])] if losing else []),
    )
    return TaskSection(task=TASK, title="Text fusion", summary=summary, data=data)


def _provenance_alone(alone: ReportInputs, detector: Mapping[str, Any]) -> Provenance:
    checkpoint = CheckpointInfo(
        path=detector["path"],
        sha256=detector["sha256"],
        epoch=detector["epoch"],
        weights=detector["weights"],
    )
    return replace(alone.provenance, checkpoint=checkpoint)


def _confusions(trained: TrainedDetector, alone: ReportInputs, fused: ReportInputs) -> list[dict[str, Any]]:
    """Count both directions of the tracked pair, at the operating points of each."""
    pair = tracked_pair(trained)
    if len(pair) < 2:
        return []
    old, new = (_confusion_counts(inputs) for inputs in (alone, fused))
    return [
        {
            "class": trained.class_names[label],
            "predicted_as": trained.class_names[other],
            "num_boxes": int(old[label].sum()),
            "before": int(old[label, other]),
            "after": int(new[label, other]),
        }
        for label, other in (pair, pair[::-1])
    ]


def _confusion_counts(inputs: ReportInputs) -> NDArray[np.int64]:
    kept = inputs.detections.take(inputs.points.keep(inputs.detections))
    overlaps = compute_overlaps(inputs.ground_truth, kept)
    assignment = assign(inputs.ground_truth, kept, overlaps=overlaps)
    confusion = compute_confusion(inputs.ground_truth, kept, overlaps=overlaps, assignment=assignment)
    return np.array(confusion.counts, dtype=np.int64)


def _mean_line(difference: RunDifference, bank: TextBank) -> str:
    parts = [
        f"{name} {_format_difference(delta)}"
        for name, delta in (("mAP", difference.ap), ("mAP50", difference.ap50))
    ]
    return f"With text ({bank.encoder}) against the detector alone: {'; '.join(parts)}."


def _format_difference(delta: ScoreDifference) -> str:
    if delta.value is None:
        return "cannot be compared"
    return f"{delta.value:+.3f} (95% interval {delta.low:+.3f} to {delta.high:+.3f}, {delta.verdict})"


def _confusion_line(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['class']} predicted as {entry['predicted_as']}: {entry['before']} of "
        f"{entry['num_boxes']} boxes before, {entry['after']} with text."
    )


def _class_lines(
    alone: ReportInputs,
    fused: ReportInputs,
    difference: RunDifference,
    losing: Sequence[int],
    *,
    tolerance: float,
) -> list[str]:
    """A line for each class that loses too much."""
    unknown = [row.name for row in alone.metrics.classes if row.ap is None]
    lines = [f"Without boxes, and so not compared: {', '.join(unknown)}."] if unknown else []
    if not losing and len(unknown) < len(alone.metrics.classes):
        points = f"{100 * tolerance:g} {'point' if tolerance == 0.01 else 'points'}"
        lines.append(f"No {'other ' if unknown else ''}class loses more than {points} of AP by the text.")
    for label in losing:
        old, new, delta = (
            alone.metrics.classes[label],
            fused.metrics.classes[label],
            difference.class_ap[label],
        )
        assert old.ap is not None
        assert new.ap is not None
        spread = (
            ""
            if delta.value is None
            else f" (95% interval {delta.low:+.3f} to {delta.high:+.3f}, {delta.verdict})"
        )
        lines.append(
            f"{old.name} loses {100 * (old.ap - new.ap):.1f} points of AP by the text: {old.ap:.3f} to "
            f"{new.ap:.3f}{spread}."
        )
    return lines


def _advice(losing: Sequence[int], names: Sequence[str], path: str) -> str:
    listed = ", ".join(names[label] for label in losing)
    return f"For {listed} the detector alone is better: {path}."
