"""The result of an ablation: the one source of console, page and chart. Written as JSON by `deim.records`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from deim.metrics.bootstrap import LEVEL, SampledScore, ScoreSamples, interval, mean_over_runs
from multimodal.ablation.build import TrialPlan
from multimodal.ablation.trials import TrialScores
from multimodal.ablation.variants import ABLATED_VARIANTS, VARIANTS
from multimodal.ablation.verdict import RULE, Delta, Verdict, compute_delta, compute_deltas, decide

SCHEMA_VERSION = 2
"""Raised whenever a key changes its name or its meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An AP in [0, 1]; None without ground truth."""

    value: float | None
    interval: tuple[float, float] | None
    """95 % interval."""


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
    """Scores of one model, as the mean over its seeds."""

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
class SwappedPair:
    """The two classes whose texts are exchanged at test time."""

    first: str
    second: str
    origin: str
    """Why these two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """Everything that is known about the trials."""

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
    plan: TrialPlan, scores: TrialScores, *, seeds: Sequence[int], minutes: float, created: datetime
) -> Ablation:
    """Judge the trials and collect all results; `created` has a time zone."""
    names = (plan.class_names[plan.pair[0]], plan.class_names[plan.pair[1]])
    decision = decide(compute_deltas(scores, pair=plan.pair), pair_names=names)
    frozen, epochs = scores.frozen, plan.context.timeline.epochs
    text = mean_over_runs(scores.variants["text"])
    num_images, num_boxes = len(frozen.image_ids), frozen.mean_ap50.num_boxes
    conditions = (
        f"Verdict: {decision.verdict} ({len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} of {epochs} "
        f"epochs; {num_images} images, {num_boxes} boxes; text by {plan.encoder})."
    )
    models = [
        ("frozen", "the frozen detector", (frozen,)),
        *((variant, VARIANTS[variant], samples) for variant, samples in scores.variants.items()),
        ("swapped", "the real text, two exchanged", scores.swapped),
    ]
    return Ablation(
        schema_version=SCHEMA_VERSION,
        created=created.astimezone(UTC).isoformat(timespec="seconds"),
        verdict=decision.verdict,
        summary=(conditions, *decision.reasons),
        rule=RULE,
        detector=plan.detector,
        encoder=plan.encoder,
        epochs=epochs,
        seeds=tuple(seeds),
        num_images=num_images,
        num_boxes=num_boxes,
        level=LEVEL,
        num_resamples=len(frozen.mean_ap50.resampled),
        pair=SwappedPair(first=names[0], second=names[1], origin=plan.pair_origin),
        not_trained=tuple(VARIANTS[name] for name in ABLATED_VARIANTS if name not in scores.variants),
        minutes=round(minutes, 2),
        models=tuple(
            _model_result(name, description, samples, frozen=frozen, text=text)
            for name, description, samples in models
        ),
    )


def _model_result(
    name: str, description: str, samples: Sequence[ScoreSamples], *, frozen: ScoreSamples, text: ScoreSamples
) -> ModelResult:
    mean = mean_over_runs(samples)
    return ModelResult(
        name=name,
        description=description,
        ap=_to_score(mean.mean_ap),
        ap50=_to_score(mean.mean_ap50),
        ap50_of_seeds=tuple(seed.mean_ap50.value for seed in samples),
        frozen_delta=compute_delta(frozen.mean_ap50, mean.mean_ap50),
        text_delta=compute_delta(mean.mean_ap50, text.mean_ap50),
        classes=tuple(
            ClassResult(
                name=class_name,
                num_boxes=mean.ap50[label].num_boxes,
                ap=_to_score(mean.ap[label]),
                ap50=_to_score(mean.ap50[label]),
                text_delta=compute_delta(mean.ap50[label], text.ap50[label]),
            )
            for label, class_name in enumerate(mean.class_names)
        ),
    )


def _to_score(score: SampledScore) -> Score:
    ends = interval(score)
    return Score(value=score.value, interval=None if ends is None else (ends.low, ends.high))
