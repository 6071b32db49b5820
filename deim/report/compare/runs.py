"""Runs side by side on the same images: what differs, and whether the difference is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deim.errors import DataError
from deim.inference.detection_table import SplitResults, split_results
from deim.metrics.assignment import COCO_IOU_THRESHOLDS, Assignment, assign, compute_overlaps
from deim.metrics.bootstrap import (
    LEVEL,
    Difference,
    PairedComparison,
    ScoreSamples,
    compare_paired,
    resample_scores,
)
from deim.report.build import read_report, to_json_types
from deim.report.files import read_scored

SCHEMA_VERSION = 1
"""Raised whenever a key of the comparison changes its name or its meaning."""
NUM_RESAMPLES = 1000

COMPARISON_KEYS = {
    "schema_version": "this version of the comparison's keys",
    "split": "name of the split that all runs were scored on",
    "dataset": "of the first run's report",
    "level": "share of intervals that hold the truth",
    "num_resamples": "resamples of the images behind the intervals",
    "runs": "for each run its name, where its report lies, and the report's numbers to stand side by side",
    "differences": "for each further run its difference from the first: `RunDifference`",
}
"""What each key of a comparison holds."""

Verdict = Literal["better", "worse", "not distinguishable", "cannot be told"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run of a comparison."""

    name: str
    """Short, and different from those of the other runs."""
    path: Path
    """Its report."""
    report: Mapping[str, Any]
    results: SplitResults
    """Raw detections."""
    shipped: SplitResults
    """Those that count at the run's operating points."""
    assignment: Assignment
    """Of these, at IoU 0.5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreDifference:
    """How a score of a run differs from the first run's."""

    value: float | None
    """The run's score minus the first run's, in [-1, 1]; None if one of them has none."""
    low: float | None
    """Lower end of the interval of the difference; None if nothing can be said."""
    high: float | None
    """Upper end."""
    num_boxes: int | None
    """Ground-truth boxes that the score is about."""
    verdict: Verdict
    """Whether the interval lies above 0, below it, or holds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDifference:
    """How a run differs from the first one."""

    name: str
    """Of the run."""
    ap: ScoreDifference
    """Of mAP."""
    ap50: ScoreDifference
    """Of mAP50."""
    class_ap: tuple[ScoreDifference, ...]
    """Of AP of each class, by class index."""
    class_ap50: tuple[ScoreDifference, ...]
    """Of AP50 of each class, by class index."""


def read_runs(paths: Sequence[Path], *, split: str) -> list[ComparedRun]:
    """Read the reports of runs, and the predictions behind them.

    Args:
        paths: Run folders, or JSON reports; at least two.
        split: Which report of a folder: `val` is the one that training ended with, others come from
            tools/evaluate.py.

    Raises:
        DataError: If there are fewer than two, one cannot be read, or they are not of the same images,
            boxes and classes.
    """
    if len(paths) < 2:
        raise DataError(f"a comparison needs at least two runs, got {len(paths)}. Name their folders.")
    places = [_report_path(path, split) for path in paths]
    runs = []
    for place, name in zip(places, _short_names(paths), strict=True):
        scored = read_scored(place)
        results = split_results(
            scored.ground_truth, scored.predictions, normal_class=scored.provenance.dataset.normal_class
        )
        shipped = results.with_found(scored.points.keep(results.found))
        runs.append(
            ComparedRun(
                name=name,
                path=place,
                report=read_report(place),
                results=results,
                shipped=shipped,
                assignment=assign(shipped, compute_overlaps(shipped)),
            )
        )
    for run in runs[1:]:
        differing = _differing(runs[0].results, run.results)
        if differing:
            raise DataError(
                f"{run.path}: not of the same {differing} as {runs[0].path}. Runs can only be compared on "
                f"the same annotation file. Evaluate both with --set data.root=… on the same set."
            )
    return runs


def compare_runs(runs: Sequence[ComparedRun], *, num_resamples: int = NUM_RESAMPLES) -> dict[str, Any]:
    """Compare each run with the first.

    Args:
        runs: From `read_runs`.
        num_resamples: Resamples of the images, the same for all runs; at least 2.

    Returns:
        The comparison, of JSON types only; see `COMPARISON_KEYS`.
    """
    samples = [_sample(run.results, num_resamples) for run in runs]
    differences = [
        asdict(_run_difference(run.name, compare_paired(samples[0], own)))
        for run, own in zip(runs[1:], samples[1:], strict=True)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "split": runs[0].report["split"],
        "dataset": dict(runs[0].report["dataset"]),
        "level": LEVEL,
        "num_resamples": num_resamples,
        "runs": [_run_entry(run) for run in runs],
        "differences": to_json_types(differences),
    }


def compare_results(
    base: SplitResults, other: SplitResults, *, name: str, num_resamples: int = NUM_RESAMPLES
) -> RunDifference:
    """Compare the detections of two detectors on the same images.

    Args:
        base: Of the one to compare with.
        other: Of the other.
        name: Of the other.
        num_resamples: Resamples of the images; at least 2.
    """
    return _run_difference(name, compare_paired(_sample(base, num_resamples), _sample(other, num_resamples)))


def describe_comparison(comparison: Mapping[str, Any]) -> list[str]:
    """What a comparison says, in sentences.

    Args:
        comparison: From `compare_runs`.
    """
    first = comparison["runs"][0]["name"]
    names = [row["name"] for row in comparison["runs"][0]["classes"]]
    lines = []
    for entry in comparison["differences"]:
        lines.append(f"{entry['name']} against {first}: mAP50 {_in_words(entry['ap50'], comparison)}.")
        for verdict in ("better", "worse"):
            told = [
                f"{name} ({difference['value']:+.3f})"
                for name, difference in zip(names, entry["class_ap50"], strict=True)
                if difference["verdict"] == verdict
            ]
            if told:
                lines.append(f"{entry['name']} is {verdict} than {first} in AP50 of {', '.join(told)}.")
    return lines


def images_that_differ(runs: Sequence[ComparedRun], number: int) -> list[int]:
    """Positions of the images on which the runs differ most in their errors.

    Args:
        runs: From `read_runs`.
        number: The most images wanted.

    Returns:
        Ascending positions; those with the largest difference in false and missed boxes between any two runs,
        of equals the first.
    """
    errors = np.stack([_errors_per_image(run) for run in runs])
    spread = errors.max(axis=0) - errors.min(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:number].tolist())


def _errors_per_image(run: ComparedRun) -> NDArray[np.int64]:
    shipped, assignment = run.shipped, run.assignment
    is_missed = ~shipped.truth.is_crowd
    is_missed[assignment.truth[0, assignment.is_hit[0]]] = False
    counts: NDArray[np.int64] = np.bincount(
        shipped.found.image[assignment.is_false[0]], minlength=shipped.num_images
    ) + np.bincount(shipped.truth.image[is_missed], minlength=shipped.num_images)
    return counts


def _report_path(path: Path, split: str) -> Path:
    if path.suffix == ".json":
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder or report. Name the folder that holds best.pth.")
    # Training writes report.json on val; an evaluation since then has the newer thresholds.
    names = [f"evaluation_{split}.json", *(["report.json"] if split == "val" else [])]
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise DataError(
            f"{path}: has no {names[0]}. Make it with tools/evaluate.py {path / 'best.pth'} --split {split}."
        )
    return max(found, key=lambda place: place.stat().st_mtime)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; more parts, or a number, where that does not tell them apart."""
    parts = [(path.with_suffix("") if path.suffix == ".json" else path).resolve().parts for path in paths]
    for length in range(1, max(len(one) for one in parts) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    names = [one[-1] for one in parts]
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _differing(a: SplitResults, b: SplitResults) -> str:
    """What two splits do not share, in words; empty if they share everything but the detections."""
    pairs = {
        "classes": (a.class_names == b.class_names),
        "images": (a.image_ids == b.image_ids),
        "boxes": np.array_equal(a.truth.boxes_xywh, b.truth.boxes_xywh)
        and np.array_equal(a.truth.label, b.truth.label)
        and np.array_equal(a.truth.is_crowd, b.truth.is_crowd),
        "normal class": a.normal_class == b.normal_class,
    }
    return " and ".join(name for name, is_same in pairs.items() if not is_same)


def _sample(results: SplitResults, num_resamples: int) -> ScoreSamples:
    assignment = assign(results, compute_overlaps(results), iou_thresholds=COCO_IOU_THRESHOLDS)
    return resample_scores(results, assignment, num_resamples=num_resamples)


def _run_difference(name: str, paired: PairedComparison) -> RunDifference:
    return RunDifference(
        name=name,
        ap=score_difference(paired.mean_ap),
        ap50=score_difference(paired.mean_ap50),
        class_ap=tuple(score_difference(one) for one in paired.ap),
        class_ap50=tuple(score_difference(one) for one in paired.ap50),
    )


def score_difference(found: Difference | None) -> ScoreDifference:
    """A difference with what it means.

    Args:
        found: Of the bootstrap; None where it has nothing to say.
    """
    if found is None:
        return ScoreDifference(value=None, low=None, high=None, num_boxes=None, verdict="cannot be told")
    verdict: Verdict = "not distinguishable"
    if found.is_distinguishable:
        verdict = "better" if found.value > 0 else "worse"
    return ScoreDifference(
        value=found.value,
        low=found.interval.low,
        high=found.interval.high,
        num_boxes=found.num_boxes,
        verdict=verdict,
    )


def _run_entry(run: ComparedRun) -> dict[str, Any]:
    report = run.report
    convergence = report["convergence"] or {}
    parts = report["image_level"]["at_operating_points"]
    return {
        "name": run.name,
        "report": str(run.path),
        "checkpoint_sha256": report["checkpoint"]["sha256"],
        "model": report["model"]["name"],
        "parameters": report["model"]["parameters"],
        "image_size_hw": report["image_size_hw"],
        "epochs": convergence["last_epoch"] + 1 if convergence else None,
        "hours": convergence.get("hours"),
        "ms_per_image": report["time_per_image_ms"]["network"],
        "ap": report["summary"]["ap"],
        "ap50": report["summary"]["ap50"],
        "ap50_interval": report["intervals"]["ap50"] if report["intervals"] else None,
        **{key: report["operating_points"]["all_classes"][key] for key in ("precision", "recall", "f1")},
        "escape_rate": parts["escape_rate"],
        "overkill_rate": parts["overkill_rate"],
        "classes": [
            {
                key: row[key]
                for key in ("name", "num_boxes", "ap", "ap50", "ap_interval", "ap50_interval", "f1")
            }
            for row in report["classes"]
        ],
    }


def _in_words(difference: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    if difference["value"] is None:
        return "cannot be compared, for want of ground truth"
    return (
        f"{difference['value']:+.3f}, {comparison['level']:.0%} interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f} ({comparison['dataset']['num_images']} images): {difference['verdict']}"
    )
