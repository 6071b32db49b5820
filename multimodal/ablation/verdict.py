"""From the scores of all models to one of three verdicts, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from deim.metrics.bootstrap import Difference, difference, mean_over_classes, mean_over_runs
from multimodal.ablation.trials import TrialScores
from multimodal.ablation.variants import CONTROLS, VARIANTS, Variant

Verdict = Literal["text helps", "training helps, text does not", "nothing helps"]

RULE: Final = (
    "The text helps if mAP50 with the real text lies above that of the frozen detector and above that of "
    "every control, and the mean AP50 of two classes falls when their texts are exchanged at test time: each "
    "by a paired 95 % interval that does not reach 0. If not, training helps if mAP50 with the real text or "
    "any control lies above that of the frozen detector in the same way. Else nothing helps."
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EarlyStoppingState:
    """The differences that a verdict rests on; None where the bootstrap has nothing to say."""

    over_frozen: Mapping[Variant, Difference | None]
    """mAP50 of the real text and of each control that was trained, less that of the frozen detector."""
    over_controls: Mapping[Variant, Difference | None]
    """mAP50 of the real text, less that of each control that was trained."""
    over_swapped: Difference | None
    """Mean AP50 of the pair with its own text, less that with each other's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A verdict and its reasons."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Sentences: what speaks for the text and what against it, all that was asked."""


def compute_gains(scores: TrialScores, *, pair: tuple[int, int]) -> EarlyStoppingState:
    """Differences of the means over seeds, with paired intervals.

    Args:
        scores: Of all models.
        pair: The class indices whose text was exchanged.
    """
    means = {variant: mean_over_runs(samples) for variant, samples in scores.variants.items()}
    text, swapped = means["text"], mean_over_runs(scores.swapped)
    return EarlyStoppingState(
        over_frozen={
            variant: difference(scores.frozen.mean_ap50, mean.mean_ap50) for variant, mean in means.items()
        },
        over_controls={
            variant: difference(mean.mean_ap50, text.mean_ap50)
            for variant, mean in means.items()
            if variant != "text"
        },
        over_swapped=difference(
            mean_over_classes([swapped.ap50[label] for label in pair]),
            mean_over_classes([text.ap50[label] for label in pair]),
        ),
    )


def decide(gains: EarlyStoppingState, *, pair_names: tuple[str, str]) -> Decision:
    """Judge by `RULE`.

    A control that was not trained may be the one that does as well as the text: without all of them the
    verdict is never *text helps*.

    Args:
        gains: From `compute_gains`.
        pair_names: The classes whose text was exchanged.
    """
    left_out = [variant for variant in CONTROLS if variant not in gains.over_controls]
    speaks_for_text = [
        not left_out,
        is_above(gains.over_frozen["text"]),
        all(is_above(gain) for gain in gains.over_controls.values()),
        is_above(gains.over_swapped),
    ]
    verdict: Verdict = "nothing helps"
    if all(speaks_for_text):
        verdict = "text helps"
    elif any(is_above(gain) for gain in gains.over_frozen.values()):
        verdict = "training helps, text does not"
    return Decision(verdict=verdict, reasons=tuple(_reasons(gains, left_out, pair_names)))


def is_above(gain: Difference | None) -> bool:
    """Whether the interval of a difference lies above 0."""
    return gain is not None and gain.interval.low > 0


def _reasons(
    gains: EarlyStoppingState, left_out: Sequence[Variant], pair_names: tuple[str, str]
) -> list[str]:
    trained = [name for name, gain in gains.over_frozen.items() if name != "text" and is_above(gain)]
    beaten = [name for name, gain in gains.over_controls.items() if is_above(gain)]
    equal = [name for name in gains.over_controls if name not in beaten]
    over_frozen, over_swapped = gains.over_frozen["text"], gains.over_swapped
    lines = [
        f"With the real text, mAP50 is {_against(over_frozen, 'that of the frozen detector')}.",
        f"With {_listed(trained, gains.over_frozen)}, it lies above the frozen detector too."
        if trained
        else "No control lies above the frozen detector.",
    ]
    if beaten:
        lines.append(f"The real text beats {_listed(beaten, gains.over_controls)}.")
    if equal:
        lines.append(f"The real text does not beat {_listed(equal, gains.over_controls)}.")
    if left_out:
        lines.append(
            f"Not tried: {', '.join(VARIANTS[name] for name in left_out)}. Without them nobody can say that "
            f"the text helps."
        )
    one, other = pair_names
    lines.append(
        f"With the texts of {one} and {other} exchanged at test time, the mean AP50 of the two "
        + (
            f"falls by {over_swapped.value:.3f} ({_ends(over_swapped)}): the head reads its text."
            if over_swapped is not None and is_above(over_swapped)
            else f"does not fall for certain ({_ends(over_swapped)}): the head hardly reads their text."
        )
    )
    lines.append("In brackets: differences, of mAP50 if not said otherwise, with paired 95 % intervals.")
    return lines


def _against(gain: Difference | None, other: str) -> str:
    if gain is None:
        return f"not to be compared with {other}, for want of ground truth"
    if is_above(gain):
        return f"above {other} ({_with_ends(gain)})"
    if gain.interval.high < 0:
        return f"below {other} ({_with_ends(gain)})"
    return f"not distinguishable from {other} ({_with_ends(gain)})"


def _listed(variants: Sequence[Variant], gains: Mapping[Variant, Difference | None]) -> str:
    return ", ".join(f"{VARIANTS[variant]} ({_with_ends(gains[variant])})" for variant in variants)


def _with_ends(gain: Difference | None) -> str:
    return "no ground truth" if gain is None else f"{gain.value:+.3f}, {_ends(gain)}"


def _ends(gain: Difference | None) -> str:
    return "no ground truth" if gain is None else f"{gain.interval.low:+.3f} to {gain.interval.high:+.3f}"
