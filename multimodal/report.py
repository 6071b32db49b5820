"""From a trained fusion and a split to a report on it, on its detector alone, and on how they differ.

report.json              the fused detector; its block `fusion` says how it differs from the detector
report_detector.json     the detector alone, on the same images
report_comparison.json   both side by side: classes with intervals, confusion before and after
report/text_map_*.png    where the text of a class answers

Each JSON file has its page beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deim.engine.checkpoints import TrainedDetector
from deim.inference.detection_table import SplitResults, split_results
from deim.inference.evaluator import Evaluator
from deim.metrics.assignment import assign, compute_overlaps
from deim.metrics.confusion import compute_confusion
from deim.report.build import to_json_types
from deim.report.compare.files import write_comparison
from deim.report.compare.runs import RunDifference, ScoreDifference, compare_results, read_runs
from deim.report.evaluate import Assessment, score
from deim.report.files import ReportFiles, Scored, check_report_path, write_report_files
from deim.report.provenance import CheckpointInfo, Provenance
from multimodal.confused_pairs import tracked_pair
from multimodal.task import detector_alone, fusion_options
from multimodal.text_bank import TextBank, text_bank_from_dict
from multimodal.text_maps import write_text_maps

FUSION_KEYS = {
    "text": "encoder, hash of its weights, and the texts of each class that were embedded",
    "detector": "where the detector came from, its report here, and its `ap` and `ap50`",
    "comparison": "name of the comparison's file",
    "confusion": "for the pair to be watched: boxes of one taken for the other, before and with text",
    "difference": "`RunDifference` of the fused detector from the detector alone",
    "class_tolerance": "loss of AP of a class beyond which the detector alone is said to be better for it",
    "losing_classes": "names of the classes that lose more",
    "text_maps": "names of the pictures of `text_maps.py` in the report's folder",
    "in_words": "what this says, in sentences",
}
"""What the block `fusion` of a report holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedEvaluation:
    """What `evaluate_fused` wrote."""

    fused: Assessment
    alone: ReportFiles
    """Report on the detector alone."""
    comparison: Path
    """JSON file of the comparison."""


def evaluate_checkpoint(
    trained: TrainedDetector, evaluator: Evaluator, *, split_name: str, report_path: Path
) -> Assessment:
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
    """Score a fused detector, and its detector alone beside it; see `assess`.

    Args:
        trained: Of phase 2.
        evaluator: Of the split to score on.
        split_name: `train`, `val` or `test`, for the report.
        report_path: The JSON report; the other files lie beside it.

    Raises:
        DataError: If an image is damaged, or `report_path` is a folder.
    """
    check_report_path(report_path)
    alone_files = ReportFiles(report=report_path.with_name(f"{report_path.stem}_detector.json"))
    comparison_path = report_path.with_name(f"{report_path.stem}_comparison.json")
    # Its thresholds belong to the detector's own checkpoint, which stays as it is.
    _, alone = score(detector_alone(trained), evaluator, split_name=split_name, store_points=False)
    # The log in this folder is that of the fusion, and the checkpoint holds the detector of another.
    alone = replace(
        alone, convergence=None, provenance=_provenance_alone(alone, trained.task_state["detector"])
    )
    write_report_files(alone, alone_files.report)
    evaluation, scored = score(trained, evaluator, split_name=split_name)
    files = ReportFiles(report=report_path)
    for old in files.folder.glob("text_map_*.png"):  # of other classes
        old.unlink()
    maps = write_text_maps(trained, evaluator.split, tracked_pair(trained), files.folder)
    entry = _fusion_entry(
        trained, alone, scored, alone_name=alone_files.report.name, comparison_name=comparison_path.name
    ) | {"text_maps": [path.name for path in maps]}
    report = write_report_files(replace(scored, fusion=entry, text_maps=maps), report_path)
    write_comparison(read_runs([alone_files.report, report_path], split=split_name), comparison_path)
    return FusedEvaluation(
        fused=Assessment(evaluation=evaluation, report=report, files=files),
        alone=alone_files,
        comparison=comparison_path,
    )


def _fusion_entry(
    trained: TrainedDetector, alone: Scored, fused: Scored, *, alone_name: str, comparison_name: str
) -> dict[str, Any]:
    """The block `fusion` of the report; see `FUSION_KEYS`."""
    fusion, options = trained.task_state, fusion_options(trained.config)
    bank = text_bank_from_dict(fusion["text_bank"], where=str(trained.path))
    before, after = _results(alone), _results(fused)
    difference = compare_results(before, after, name="with text")
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
    confusions = _confusions(trained, before, alone, after, fused)
    return {
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
        "difference": to_json_types(asdict(difference)),
        "class_tolerance": options.class_tolerance,
        "losing_classes": [names[label] for label in losing],
        "in_words": [
            _mean_line(difference, bank),
            *(_confusion_line(one) for one in confusions),
            *_class_lines(alone, fused, difference, losing, tolerance=options.class_tolerance),
            *([_advice(losing, names, fusion["detector"]["path"])] if losing else []),
        ],
    }


def _provenance_alone(alone: Scored, detector: Mapping[str, Any]) -> Provenance:
    checkpoint = CheckpointInfo(
        path=detector["path"],
        sha256=detector["sha256"],
        epoch=detector["epoch"],
        weights=detector["weights"],
    )
    return replace(alone.provenance, checkpoint=checkpoint)


def _results(scored: Scored) -> SplitResults:
    normal_class = scored.provenance.dataset.normal_class
    return split_results(scored.ground_truth, scored.predictions, normal_class=normal_class)


def _confusions(
    trained: TrainedDetector, before: SplitResults, alone: Scored, after: SplitResults, fused: Scored
) -> list[dict[str, Any]]:
    """Both directions of the pair to be watched, at the operating points of each."""
    pair = tracked_pair(trained)
    if len(pair) < 2:
        return []
    old, new = (_confusion_counts(results, one) for results, one in ((before, alone), (after, fused)))
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


def _confusion_counts(results: SplitResults, scored: Scored) -> NDArray[np.int64]:
    shipped = results.with_found(scored.points.keep(results.found))
    overlaps = compute_overlaps(shipped)
    counts: NDArray[np.int64] = np.asarray(
        compute_confusion(shipped, overlaps, assign(shipped, overlaps)).counts, dtype=np.int64
    )
    return counts


def _mean_line(difference: RunDifference, bank: TextBank) -> str:
    parts = [f"{name} {_in_words(one)}" for name, one in (("mAP", difference.ap), ("mAP50", difference.ap50))]
    return f"With text ({bank.encoder}) against the detector alone: {'; '.join(parts)}."


def _in_words(one: ScoreDifference) -> str:
    if one.value is None:
        return "cannot be compared"
    return f"{one.value:+.3f} (95% interval {one.low:+.3f} to {one.high:+.3f}, {one.verdict})"


def _confusion_line(entry: Mapping[str, Any]) -> str:
    return (
        f"{entry['class']} taken for {entry['predicted_as']}: {entry['before']} of {entry['num_boxes']} boxes "
        f"before, {entry['after']} with text."
    )


def _class_lines(
    alone: Scored, fused: Scored, difference: RunDifference, losing: Sequence[int], *, tolerance: float
) -> list[str]:
    """A line for each class that loses too much."""
    unknown = [row.name for row in alone.metrics.classes if row.ap is None]
    lines = [f"Without boxes, and so not compared: {', '.join(unknown)}."] if unknown else []
    if not losing and len(unknown) < len(alone.metrics.classes):
        points = f"{100 * tolerance:g} {'point' if tolerance == 0.01 else 'points'}"
        lines.append(f"No {'other ' if unknown else ''}class loses more than {points} of AP by the text.")
    for label in losing:
        old, new, one = alone.metrics.classes[label], fused.metrics.classes[label], difference.class_ap[label]
        assert old.ap is not None
        assert new.ap is not None
        spread = (
            "" if one.value is None else f" (95% interval {one.low:+.3f} to {one.high:+.3f}, {one.verdict})"
        )
        lines.append(
            f"{old.name} loses {100 * (old.ap - new.ap):.1f} points of AP by the text: {old.ap:.3f} to "
            f"{new.ap:.3f}{spread}."
        )
    return lines


def _advice(losing: Sequence[int], names: Sequence[str], path: str) -> str:
    listed = ", ".join(names[label] for label in losing)
    return f"For {listed} the detector alone is better: {path}."
