"""Runs side by side on the same images: what differs, and whether the difference is more than chance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deim.config.loader import OptionValue
from deim.engine.task import load_task
from deim.errors import DataError
from deim.inference.detection_table import GroundTruthTable
from deim.language import ENGLISH, Language
from deim.metrics.assignment import Overlaps, compute_overlaps
from deim.metrics.bootstrap import (
    LEVEL,
    Interval,
    ScoreDifference,
    ScoreSamples,
    difference,
    resample_scores,
)
from deim.report.files import ReportFiles, read_tables
from deim.report.schema import DatasetInfo, Report, read_report
from deim.report.tables import DASH

COMPARISON_VERSION = 2
"""Raised whenever a key of the comparison changes its name or its meaning."""
NUM_RESAMPLES = 1000
NOT_COMPARED = ("output_dir", "evaluation.language")
"""Options that change no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """One run of a comparison, in memory."""

    name: str
    """Short, and different from those of the other runs."""
    path: Path
    report: Report
    raw: Overlaps
    """Raw detections beside the ground truth, which is that of all runs."""
    kept: Overlaps
    """Detections that the run's operating points keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDifference:
    """Difference of a run from the first one."""

    name: str
    ap: ScoreDifference
    ap50: ScoreDifference
    class_ap: tuple[ScoreDifference, ...]
    class_ap50: tuple[ScoreDifference, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Main numbers of one run; all others stand in its report."""

    name: str
    report: str
    checkpoint_sha256: str
    model: str
    parameters: int | None = None
    """All parameters of the model; None in older comparisons, as in the fields below."""
    image_size_hw: tuple[int, int] | None = None
    """Size of the network input in pixels."""
    epochs: int | None = None
    """Epochs that were trained; None without the log of the run."""
    training_hours: float | None = None
    """See `Convergence.training_hours`."""
    ap: float | None
    ap50: float | None
    ap50_interval: Interval | None = None
    """None if the report has none."""
    class_ap50: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptionDifference:
    """An option of the experiment that is not the same in all runs."""

    name: str
    """Dotted key, such as `recipe.lr`."""
    values: tuple[OptionValue | None, ...]
    """One for each run; None where the run has no such option, or its report names no options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs side by side, and the difference of each from the first."""

    schema_version: int
    split: str
    """Split that all runs were evaluated on."""
    dataset: DatasetInfo
    num_images: int
    num_boxes: int
    level: float
    """Share of intervals that hold the truth."""
    num_resamples: int
    class_names: tuple[str, ...]
    runs: tuple[RunSummary, ...]
    differences: tuple[RunDifference, ...]
    """One for each run but the first."""
    options: tuple[OptionDifference, ...] = ()
    """In the order of the schema, without those of `NOT_COMPARED`."""
    runs_without_options: tuple[str, ...] = ()
    """Names of the runs whose reports are of an older version and name no options."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of a newer version."""


def read_runs(paths: Sequence[Path], *, split: str) -> list[ComparedRun]:
    """Read the reports of runs, and the detections behind them.

    Args:
        paths: Run folders, or JSON reports; at least two.
        split: Which report of a folder: `val` is the one that training ended with, others come from
            `deim evaluate`.

    Raises:
        DataError: If there are fewer than two, one cannot be read, or they are not of the same images,
            boxes and classes.
    """
    if len(paths) < 2:
        raise DataError(f"a comparison needs at least two runs, got {len(paths)}. Name their folders.")
    runs = [
        _read_run(_report_path(path, split), name)
        for path, name in zip(paths, _short_names(paths), strict=True)
    ]
    for run in runs[1:]:
        differing = _describe_mismatch(runs[0].raw.ground_truth, run.raw.ground_truth)
        if differing:
            raise DataError(
                f"{run.path}: not of the same {differing} as {runs[0].path}. Runs can only be compared on "
                f"the same annotation file. Evaluate both with --set data.root=… on the same set."
            )
    return runs


def compare_runs(runs: Sequence[ComparedRun], *, num_resamples: int = NUM_RESAMPLES) -> Comparison:
    """Compare each run with the first, on at least 2 resamples of the images, the same for all runs."""
    first, *others = [resample_scores(run.raw, num_resamples=num_resamples) for run in runs]
    report = runs[0].report
    return Comparison(
        schema_version=COMPARISON_VERSION,
        split=report.provenance.split,
        dataset=report.provenance.dataset,
        num_images=report.num_images,
        num_boxes=report.num_boxes,
        level=LEVEL,
        num_resamples=num_resamples,
        class_names=report.class_names,
        runs=tuple(map(_summarize, runs)),
        differences=tuple(
            _run_difference(run.name, first, samples) for run, samples in zip(runs[1:], others, strict=True)
        ),
        options=_option_differences([run.report.provenance.options or {} for run in runs]),
        runs_without_options=tuple(run.name for run in runs if run.report.provenance.options is None),
    )


def compare_detections(base: Overlaps, other: Overlaps, *, name: str) -> RunDifference:
    """Compare the raw detections of a detector, called `name`, with those of another on the same images."""
    before, after = (resample_scores(raw, num_resamples=NUM_RESAMPLES) for raw in (base, other))
    return _run_difference(name, before, after)


def describe_comparison(comparison: Comparison, language: Language = ENGLISH) -> list[str]:
    """Return the differences as sentences."""
    first = comparison.runs[0]
    templates = {
        "better": "{run} is better than {first} in AP50 of {classes}.",
        "worse": "{run} is worse than {first} in AP50 of {classes}.",
    }
    lines = []
    for entry in comparison.differences:
        runs = {"run": entry.name, "first": first.name}
        change = _describe(entry.ap50, comparison, language)
        lines.append(language.text("{run} against {first}: mAP50 {change}.", **runs, change=change))
        for verdict, template in templates.items():
            listed = [
                f"{name} ({change.value:+.3f})"
                for name, change in zip(comparison.class_names, entry.class_ap50, strict=True)
                if change.verdict == verdict
            ]
            if listed:
                lines.append(language.text(template, **runs, classes=", ".join(listed)))
    return lines


def describe_options(comparison: Comparison, language: Language = ENGLISH) -> str:
    """Return how many options differ, and which runs have told none, as sentences."""
    told = language.text(
        "Options that differ, except {names}: {number}.",
        names=", ".join(NOT_COMPARED),
        number=len(comparison.options) or language.text("none"),
    )
    unknown = ", ".join(comparison.runs_without_options)
    if not unknown:
        return told
    advice = "Those of {runs} are unknown: evaluate the checkpoint again with deim evaluate."
    return f"{told} {language.text(advice, runs=unknown)}"


def option_text(value: OptionValue | None) -> str:
    """Return the value of an option as YAML has it; a dash for None."""
    return DASH if value is None else value if isinstance(value, str) else json.dumps(value)


def _option_differences(runs: Sequence[Mapping[str, OptionValue]]) -> tuple[OptionDifference, ...]:
    """Find the options that are not the same in all runs that tell their options."""
    known = [options for options in runs if options]
    names = dict.fromkeys(name for options in known for name in options if name not in NOT_COMPARED)
    return tuple(
        OptionDifference(name=name, values=tuple(options.get(name) for options in runs))
        for name in names
        if len({option_text(options.get(name)) for options in known}) > 1
    )


def images_that_differ(runs: Sequence[ComparedRun], number: int) -> list[int]:
    """Find at most `number` images on which the runs differ most in their errors.

    Returns:
        Ascending positions of the images with the largest difference in false positives and false negatives
        between any two runs, of equals the first.
    """
    errors = np.stack([_errors_per_image(run.kept) for run in runs])
    spread = errors.max(axis=0) - errors.min(axis=0)
    return sorted(np.argsort(-spread, kind="stable")[:number].tolist())


def _summarize(run: ComparedRun) -> RunSummary:
    report, source, convergence = run.report, run.report.provenance, run.report.convergence
    return RunSummary(
        name=run.name,
        report=str(run.path),
        checkpoint_sha256=source.checkpoint.sha256,
        model=source.model.name,
        parameters=source.model.parameters,
        image_size_hw=source.image_size_hw,
        epochs=convergence.epochs[-1] + 1 if convergence else None,
        training_hours=convergence.training_hours if convergence else None,
        ap=report.summary.ap,
        ap50=report.summary.ap50,
        ap50_interval=report.intervals.ap50 if report.intervals else None,
        class_ap50=tuple(row.metrics.ap50 for row in report.classes),
    )


def _read_run(path: Path, name: str) -> ComparedRun:
    report = read_report(path)
    limit = report.provenance.counted_detections
    raw = compute_overlaps(*read_tables(report, ReportFiles(path)), max_detections=limit)
    kept = raw.take(report.operating_points.keep(raw.detections))
    return ComparedRun(name=name, path=path, report=report, raw=raw, kept=kept)


def _errors_per_image(kept: Overlaps) -> NDArray[np.int64]:
    is_fn = ~kept.ground_truth.is_crowd & ~kept.is_hit
    images = np.concatenate([kept.detections.image[kept.assignment.is_fp[0]], kept.ground_truth.image[is_fn]])
    return np.bincount(images, minlength=kept.ground_truth.num_images)


def _report_path(path: Path, split: str) -> Path:
    if path.suffix == ".json":
        return path
    if path.is_file():
        path = path.parent  # the checkpoint of a run
    if not path.is_dir():
        raise DataError(f"{path}: no such run folder or report. Name the folder that holds best.pth.")
    # Training writes report.json on val; an evaluation since then has the newer thresholds.
    names = [f"evaluation_{split}.json", *(["report.json"] if split == "val" else [])]
    existing = [path / name for name in names if (path / name).is_file()]
    if not existing and any((path / name).is_file() for name in load_task("pretraining").run_files):
        raise DataError(
            f"{path}: a pretrained backbone, which detects nothing. Compare detectors that start from it."
        )
    if not existing:
        raise DataError(
            f"{path}: has no {names[0]}. Make it with deim evaluate {path / 'best.pth'} --split {split}."
        )
    return max(existing, key=lambda report: report.stat().st_mtime)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Take the last part of each path; more parts, or a number, where that does not tell them apart."""
    parts = [(path.with_suffix("") if path.suffix == ".json" else path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(item[-length:]) for item in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{item[-1]} ({number})" for number, item in enumerate(parts, start=1)]


def _describe_mismatch(a: GroundTruthTable, b: GroundTruthTable) -> str:
    """Name what two splits do not share; empty if they share everything."""
    is_same = {
        "classes": a.class_names == b.class_names,
        "images": a.image_ids == b.image_ids,
        "boxes": np.array_equal(a.boxes_xywh, b.boxes_xywh)
        and np.array_equal(a.label, b.label)
        and np.array_equal(a.is_crowd, b.is_crowd),
        "normal class": a.normal_class == b.normal_class,
    }
    return " and ".join(name for name, same in is_same.items() if not same)


def _run_difference(name: str, before: ScoreSamples, after: ScoreSamples) -> RunDifference:
    return RunDifference(
        name=name,
        ap=difference(before.mean_ap, after.mean_ap),
        ap50=difference(before.mean_ap50, after.mean_ap50),
        class_ap=tuple(map(difference, before.ap, after.ap)),
        class_ap50=tuple(map(difference, before.ap50, after.ap50)),
    )


def _describe(change: ScoreDifference, comparison: Comparison, language: Language) -> str:
    if change.value is None:
        return language.text("cannot be compared, because there is no ground truth")
    return language.text(
        "{value:+.3f}, {level} interval {low:+.3f} to {high:+.3f} ({images}): {verdict}",
        value=change.value,
        level=language.percent(comparison.level, 0),
        low=change.low,
        high=change.high,
        images=language.count("image", comparison.num_images),
        verdict=language.text(change.verdict),
    )
