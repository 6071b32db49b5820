"""From the scores of the trials to a verdict, its reasons and the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from deim.metrics.bootstrap import (
    LEVEL,
    SampledScore,
    ScoreSamples,
    difference,
    interval,
    mean_over_classes,
    mean_over_runs,
)
from deim.report.tables import DASH, format_number, format_table
from multimodal.ablation.trials import SwappedPair, TrialContext
from multimodal.ablation.variants import VARIANTS

SCHEMA_VERSION = 2
"""Raised whenever a key changes its name or its meaning."""

Verdict = Literal["text helps", "training helps, text does not", "nothing helps"]

RULE: Final = (
    "The text helps if mAP50 with the real text is above the frozen detector and above every other variant, "
    "and the mean AP50 of two classes falls when their texts are exchanged at test time: each by a paired "
    "95 % interval that excludes 0. If not, training helps if mAP50 of any variant is above the frozen "
    "detector in the same way. Otherwise nothing helps."
)
DESCRIPTIONS: Final[Mapping[str, str]] = {
    "frozen": "the frozen detector",
    **VARIANTS,
    "swapped": "the real text, two exchanged",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An AP in [0, 1]; None without ground truth."""

    value: float | None
    interval: tuple[float, float] | None
    """95 % interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A difference in [-1, 1] of two scores of the same images, with its paired 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassResult:
    """Scores of one class by one model."""

    name: str
    num_boxes: int
    ap: Score
    ap50: Score
    text_delta: Delta | None
    """AP50 of the real text minus AP50 of this model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult:
    """Scores of one model, as the mean over its seeds. A delta is None without ground truth."""

    name: str
    """`frozen`, the name of a variant, or `swapped`."""
    description: str
    ap: Score
    ap50: Score
    ap50_of_seeds: tuple[float | None, ...]
    frozen_delta: Delta | None
    """mAP50 of this model minus mAP50 of the frozen detector."""
    text_delta: Delta | None
    """mAP50 of the real text minus mAP50 of this model."""
    classes: tuple[ClassResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """Everything that is known about the trials; written as JSON by `deim.records`."""

    schema_version: int
    created: str
    """Time of the trials, ISO 8601 in UTC."""
    verdict: Verdict
    summary: tuple[str, ...]
    """Verdict, conditions of the trials and reasons, in sentences."""
    rule: str
    """How a verdict is reached."""
    detector: str
    """Path of the frozen detector."""
    encoder: str
    """Name of the text encoder."""
    epochs: int
    """Epochs of each training."""
    seeds: tuple[int, ...]
    """Seeds of weights, vectors and the order of images; one training of each variant for each."""
    num_images: int
    num_boxes: int
    """Ground-truth boxes of the images."""
    level: float
    """Share of intervals that contain the true value."""
    num_resamples: int
    pair: SwappedPair
    not_trained: tuple[str, ...]
    """Descriptions of the variants that were not trained."""
    minutes: float
    """Time of all trials."""
    models: tuple[ModelResult, ...]
    """The frozen detector, the real text, the other variants, the exchanged text."""


def build_ablation(
    context: TrialContext,
    scores: Mapping[str, Sequence[ScoreSamples]],
    *,
    seeds: Sequence[int],
    minutes: float,
) -> Ablation:
    """Judge the scores of `run_trials` and collect all results."""
    means = {name: mean_over_runs(samples) for name, samples in scores.items()}
    frozen, text, swapped = means["frozen"], means["text"], means["swapped"]
    models = tuple(
        ModelResult(
            name=name,
            description=DESCRIPTIONS[name],
            ap=_to_score(mean.mean_ap),
            ap50=_to_score(mean.mean_ap50),
            ap50_of_seeds=tuple(seed.mean_ap50.value for seed in scores[name]),
            frozen_delta=compute_delta(frozen.mean_ap50, mean.mean_ap50),
            text_delta=compute_delta(mean.mean_ap50, text.mean_ap50),
            classes=_class_results(mean, text),
        )
        for name, mean in means.items()
    )
    swapped_delta = compute_delta(
        *(mean_over_classes([mean.ap50[label] for label in context.pair_labels]) for mean in (swapped, text))
    )
    verdict, reasons = decide(models, swapped_delta, context.pair)
    epochs, num_images = context.timeline.epochs, len(frozen.image_ids)
    conditions = (
        f"Verdict: {verdict} ({len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} of {epochs} epochs; "
        f"{num_images} images, {frozen.mean_ap50.num_boxes} boxes; text by {context.encoder})."
    )
    return Ablation(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict,
        summary=(conditions, *reasons),
        rule=RULE,
        detector=context.options.detector,
        encoder=context.encoder,
        epochs=epochs,
        seeds=tuple(seeds),
        num_images=num_images,
        num_boxes=frozen.mean_ap50.num_boxes,
        level=LEVEL,
        num_resamples=context.num_resamples,
        pair=context.pair,
        not_trained=tuple(_not_trained(models)),
        minutes=round(minutes, 2),
        models=models,
    )


def _class_results(mean: ScoreSamples, text: ScoreSamples) -> tuple[ClassResult, ...]:
    return tuple(
        ClassResult(
            name=name,
            num_boxes=ap50.num_boxes,
            ap=_to_score(ap),
            ap50=_to_score(ap50),
            text_delta=compute_delta(ap50, text_ap50),
        )
        for name, ap, ap50, text_ap50 in zip(mean.class_names, mean.ap, mean.ap50, text.ap50, strict=True)
    )


def _to_score(score: SampledScore) -> Score:
    ends = interval(score)
    return Score(value=score.value, interval=None if ends is None else (ends.low, ends.high))


def compute_delta(a: SampledScore, b: SampledScore) -> Delta | None:
    """Compute b minus a; None without ground truth, or if only one image has a box."""
    delta = difference(a, b)
    if delta.value is None or delta.low is None or delta.high is None:
        return None
    return Delta(value=delta.value, low=delta.low, high=delta.high)


def decide(
    models: Sequence[ModelResult], swapped_delta: Delta | None, pair: SwappedPair
) -> tuple[Verdict, list[str]]:
    """Judge by `RULE`; return the verdict and its reasons in sentences.

    `swapped_delta` is the mean AP50 of the pair with the right texts minus that with exchanged texts. A
    variant that was not trained may do as well as the text: unless all are trained, the verdict is never
    *text helps*.
    """
    trained = {model.name: model for model in models if model.name in VARIANTS}
    text, others = trained["text"], [model for model in trained.values() if model.name != "text"]
    not_trained = _not_trained(models)
    verdict: Verdict = "nothing helps"
    if (
        _is_above(text.frozen_delta)
        and all(_is_above(model.text_delta) for model in others)
        and _is_above(swapped_delta)
        and not not_trained
    ):
        verdict = "text helps"
    elif any(_is_above(model.frozen_delta) for model in trained.values()):
        verdict = "training helps, text does not"
    position = "not distinguishable from"
    if text.frozen_delta is None:
        position = "not comparable with"
    elif text.frozen_delta.low > 0 or text.frozen_delta.high < 0:
        position = "above" if text.frozen_delta.low > 0 else "below"
    falls = _is_above(swapped_delta)
    missing = (
        f"Not trained: {', '.join(not_trained)}. Without them the verdict cannot be that the text helps."
    )
    return verdict, [
        f"With the real text, mAP50 is {position} the frozen detector ({_format_delta(text.frozen_delta)}).",
        *_compare_variants(others),
        *([missing] if not_trained else []),
        f"With the texts of {pair.first} and {pair.second} exchanged at test time, the mean AP50 of the two "
        f"{'falls' if falls else 'does not clearly fall'} ({_format_delta(swapped_delta)}): the head "
        f"{'uses its text' if falls else 'hardly uses their texts'}.",
        "In brackets: differences, of mAP50 unless stated otherwise, with paired 95 % intervals.",
    ]


def _compare_variants(others: Sequence[ModelResult]) -> list[str]:
    groups = {
        "Also above the frozen detector": [(m, m.frozen_delta) for m in others if _is_above(m.frozen_delta)],
        "The real text beats": [(m, m.text_delta) for m in others if _is_above(m.text_delta)],
        "The real text does not beat": [(m, m.text_delta) for m in others if not _is_above(m.text_delta)],
    }
    return [
        f"{start}: {', '.join(f'{model.description} ({_format_delta(delta)})' for model, delta in group)}."
        for start, group in groups.items()
        if group
    ]


def _not_trained(models: Sequence[ModelResult]) -> list[str]:
    names = {model.name for model in models}
    return [description for name, description in VARIANTS.items() if name not in names]


def _is_above(delta: Delta | None) -> bool:
    return delta is not None and delta.low > 0


def _format_delta(delta: Delta | None) -> str:
    if delta is None:
        return "no ground truth"
    return f"{delta.value:+.3f}, {delta.low:+.3f} to {delta.high:+.3f}"


def format_models(ablation: Ablation) -> str:
    """Format a row for each model: mAP50 with interval and seeds, and the lead of the real text."""
    rows = []
    for model in ablation.models:
        ends, delta = model.ap50.interval, model.text_delta
        lead = DASH if delta is None else f"{delta.value:+.3f} ({delta.low:+.3f} to {delta.high:+.3f})"
        rows.append(
            [
                model.description,
                format_number(model.ap50.value),
                DASH if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}",
                ", ".join(map(format_number, model.ap50_of_seeds)),
                "" if model.name == "text" else lead,
            ]
        )
    return format_table(["model", "mAP50", "95 % interval", "seeds", "real text above it"], rows)


def format_classes(ablation: Ablation) -> str:
    """Format a row for each class: AP50 by each model."""
    models = ablation.models
    rows = [
        [row.name, *(format_number(model.classes[label].ap50.value) for model in models)]
        for label, row in enumerate(models[0].classes)
    ]
    return format_table(["AP50", *(model.name for model in models)], rows)
