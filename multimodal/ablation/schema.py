"""What the trials found, as a tree of JSON types: the one source of console, page, charts and report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from deim.metrics.bootstrap import (
    LEVEL,
    SampledScore,
    ScoreSamples,
    compare_paired,
    interval,
    mean_over_runs,
)
from deim.records import to_json
from deim.report.compare.schema import ScoreDifference
from multimodal.ablation.build import TrialPlan
from multimodal.ablation.trials import FROZEN, SWAPPED, TrialScores
from multimodal.ablation.variants import CONTROLS, VARIANTS
from multimodal.ablation.verdict import RULE, compute_gains, decide

SCHEMA_VERSION = 1
"""Raised whenever a key of the evidence changes its name or its meaning."""

EVIDENCE_KEYS = {
    "schema_version": "this version of the evidence's keys",
    "created": "time of the trials, ISO 8601 in UTC",
    "verdict": "`Verdict`, by the rule",
    "in_words": "verdict, what it was tried on and its reasons, in sentences",
    "rule": "how a verdict comes about",
    "detector": "path of the frozen detector",
    "encoder": "what embedded the text",
    "epochs": "of each training",
    "seeds": "of weights, vectors and the order of images; a training each",
    "num_images": "images that all models are scored on",
    "num_boxes": "their ground-truth boxes",
    "level": "share of intervals that hold the truth",
    "num_resamples": "resamples of these images behind the intervals",
    "pair": "the two classes whose text is exchanged at test time, and why these",
    "left_out": "controls that were not tried",
    "minutes": "time of all trials",
    "models": "the frozen detector, the real text, the controls, the exchanged text: scores and differences",
}
"""What each key of the evidence holds."""

REPORTED_KEYS = tuple(key for key in EVIDENCE_KEYS if key not in ("schema_version", "models"))
"""What the report of a run says of it."""


def build_evidence(
    plan: TrialPlan, scores: TrialScores, *, seeds: Sequence[int], minutes: float, created: datetime
) -> dict[str, Any]:
    """Judge the trials and put all there is to say into one tree.

    Args:
        plan: What was tried.
        scores: What came out.
        seeds: Those of the trainings.
        minutes: What they took.
        created: Time of the trials, with a time zone.

    Returns:
        The evidence, of JSON types only; see `EVIDENCE_KEYS`.
    """
    one, other = (plan.class_names[label] for label in plan.pair)
    decision = decide(compute_gains(scores, pair=plan.pair), pair_names=(one, other))
    frozen, text = scores.frozen, scores.variants["text"]
    epochs = plan.setting.timeline.epochs
    summary = (
        f"Verdict: {decision.verdict} ({len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} of {epochs} "
        f"epochs; {len(frozen.image_ids)} images, {frozen.mean_ap50.num_boxes} boxes; text by "
        f"{plan.encoder})."
    )
    models = [
        (FROZEN, "the frozen detector", (frozen,)),
        *((variant, VARIANTS[variant], samples) for variant, samples in scores.variants.items()),
        (SWAPPED, "the real text, two exchanged", scores.swapped),
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created.astimezone(UTC).isoformat(timespec="seconds"),
        "verdict": decision.verdict,
        "in_words": [summary, *decision.reasons],
        "rule": RULE,
        "detector": plan.detector,
        "encoder": plan.encoder,
        "epochs": epochs,
        "seeds": list(seeds),
        "num_images": len(frozen.image_ids),
        "num_boxes": frozen.mean_ap50.num_boxes,
        "level": LEVEL,
        "num_resamples": len(frozen.mean_ap50.resampled),
        "pair": {"first": one, "second": other, "origin": plan.pair_origin},
        "left_out": [VARIANTS[name] for name in CONTROLS if name not in scores.variants],
        "minutes": round(minutes, 2),
        "models": [
            _model_entry(name, description, samples, frozen=frozen, text=text)
            for name, description, samples in models
        ],
    }


def _model_entry(
    name: str,
    description: str,
    samples: Sequence[ScoreSamples],
    *,
    frozen: ScoreSamples,
    text: Sequence[ScoreSamples],
) -> dict[str, Any]:
    """Scores of one model, and how far it lies above the frozen detector and the real text above it."""
    mean = mean_over_runs(samples)
    gain, lead = compare_paired(frozen, mean), compare_paired(mean, mean_over_runs(text))
    return {
        "name": name,
        "description": description,
        "ap50": mean.mean_ap50.value,
        "ap50_interval": _ends(mean.mean_ap50),
        "ap": mean.mean_ap.value,
        "ap_interval": _ends(mean.mean_ap),
        "ap50_of_seeds": [one.mean_ap50.value for one in samples],
        "over_frozen": to_json(ScoreDifference.from_difference(gain.mean_ap50)),
        "text_over_it": to_json(ScoreDifference.from_difference(lead.mean_ap50)),
        "classes": [
            {
                "name": mean.class_names[label],
                "num_boxes": mean.ap50[label].num_boxes,
                "ap50": mean.ap50[label].value,
                "ap50_interval": _ends(mean.ap50[label]),
                "ap": mean.ap[label].value,
                "ap_interval": _ends(mean.ap[label]),
                "text_over_it": to_json(ScoreDifference.from_difference(lead.ap50[label])),
            }
            for label in range(len(mean.class_names))
        ],
    }


def model_of(evidence: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry of one model.

    Args:
        evidence: From `build_evidence`.
        name: `frozen`, a variant that was tried, or `swapped`.
    """
    return next(entry for entry in evidence["models"] if entry["name"] == name)


def _ends(score: SampledScore) -> list[float] | None:
    found = interval(score)
    return None if found is None else [found.low, found.high]
