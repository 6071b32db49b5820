"""From the scores of all models to one of three verdicts, and its reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from deim.metrics.bootstrap import SampledScore, difference, mean_over_classes, mean_over_runs
from multimodal.ablation.trials import TrialScores
from multimodal.ablation.variants import ABLATED_VARIANTS, VARIANTS, Variant

Verdict = Literal["text helps", "training helps, text does not", "nothing helps"]

RULE: Final = (
    "The text helps if mAP50 with the real text is above the frozen detector and above every other variant, "
    "and the mean AP50 of two classes falls when their texts are exchanged at test time: each by a paired "
    "95 % interval that excludes 0. If not, training helps if mAP50 of any variant is above the frozen "
    "detector in the same way. Otherwise nothing helps."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """A difference of two scores of the same images, with its paired 95 % interval."""

    value: float
    """In [-1, 1]."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDeltas:
    """The differences that a verdict rests on; None where there is no ground truth."""

    over_frozen: Mapping[Variant, Delta | None]
    """mAP50 of each trained variant minus mAP50 of the frozen detector."""
    over_ablated: Mapping[Variant, Delta | None]
    """mAP50 of the real text minus mAP50 of each other trained variant."""
    over_swapped: Delta | None
    """Mean AP50 of the pair with the right texts minus that with exchanged texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A verdict and its reasons."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Sentences."""


def compute_delta(a: SampledScore, b: SampledScore) -> Delta | None:
    """Compute b minus a; None without ground truth, or if only one image has a box."""
    delta = difference(a, b)
    if delta.value is None or delta.low is None or delta.high is None:
        return None
    return Delta(value=delta.value, low=delta.low, high=delta.high)


def compute_deltas(scores: TrialScores, *, pair: tuple[int, int]) -> TextDeltas:
    """Compute the differences of the means over seeds; `pair` are the classes whose texts were exchanged."""
    means = {variant: mean_over_runs(samples) for variant, samples in scores.variants.items()}
    text, swapped = means.pop("text"), mean_over_runs(scores.swapped)
    return TextDeltas(
        over_frozen={
            variant: compute_delta(scores.frozen.mean_ap50, mean.mean_ap50)
            for variant, mean in {"text": text, **means}.items()
        },
        over_ablated={
            variant: compute_delta(mean.mean_ap50, text.mean_ap50) for variant, mean in means.items()
        },
        over_swapped=compute_delta(
            mean_over_classes([swapped.ap50[label] for label in pair]),
            mean_over_classes([text.ap50[label] for label in pair]),
        ),
    )


def decide(deltas: TextDeltas, *, pair_names: tuple[str, str]) -> Decision:
    """Judge by `RULE`.

    A variant that was not trained may do as well as the text: unless all are trained, the verdict is never
    *text helps*.

    Args:
        deltas: From `compute_deltas`.
        pair_names: The classes whose texts were exchanged.
    """
    not_trained = [variant for variant in ABLATED_VARIANTS if variant not in deltas.over_ablated]
    conditions = [
        not not_trained,
        is_above(deltas.over_frozen["text"]),
        all(map(is_above, deltas.over_ablated.values())),
        is_above(deltas.over_swapped),
    ]
    verdict: Verdict = "nothing helps"
    if all(conditions):
        verdict = "text helps"
    elif any(map(is_above, deltas.over_frozen.values())):
        verdict = "training helps, text does not"
    return Decision(verdict=verdict, reasons=tuple(_reasons(deltas, not_trained, pair_names)))


def is_above(delta: Delta | None) -> bool:
    """Tell whether the interval of a difference lies above 0."""
    return delta is not None and delta.low > 0


def _reasons(deltas: TextDeltas, not_trained: Sequence[Variant], pair_names: tuple[str, str]) -> list[str]:
    over_frozen, over_swapped = deltas.over_frozen["text"], deltas.over_swapped
    position = "not distinguishable from"
    if over_frozen is None:
        position = "not comparable with"
    elif is_above(over_frozen) or over_frozen.high < 0:
        position = "above" if is_above(over_frozen) else "below"
    lines = [f"With the real text, mAP50 is {position} the frozen detector ({format_delta(over_frozen)})."]
    groups: dict[str, dict[Variant, Delta | None]] = {
        "Also above the frozen detector": {
            name: delta for name, delta in deltas.over_frozen.items() if name != "text" and is_above(delta)
        },
        "The real text beats": {name: d for name, d in deltas.over_ablated.items() if is_above(d)},
        "The real text does not beat": {
            name: d for name, d in deltas.over_ablated.items() if not is_above(d)
        },
    }
    for start, group in groups.items():
        if group:
            items = [f"{VARIANTS[name]} ({format_delta(delta)})" for name, delta in group.items()]
            lines.append(f"{start}: {', '.join(items)}.")
    if not_trained:
        names = ", ".join(VARIANTS[name] for name in not_trained)
        lines.append(f"Not trained: {names}. Without them the verdict cannot be that the text helps.")
    falls = is_above(over_swapped)
    lines.append(
        f"With the texts of {' and '.join(pair_names)} exchanged at test time, the mean AP50 of the two "
        f"{'falls' if falls else 'does not clearly fall'} ({format_delta(over_swapped)}): the head "
        f"{'uses its text' if falls else 'hardly uses their texts'}."
    )
    lines.append("In brackets: differences, of mAP50 unless stated otherwise, with paired 95 % intervals.")
    return lines


def format_delta(delta: Delta | None) -> str:
    """Format a difference with its interval."""
    if delta is None:
        return "no ground truth"
    return f"{delta.value:+.3f}, {delta.low:+.3f} to {delta.high:+.3f}"
