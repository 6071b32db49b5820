"""How the scores of a run grew: the best epoch, a plateau, what each phase brought, and a length to try next.

Everything is read from the `metrics.jsonl` of the run folder. Scores are COCO AP of the validation split, by
which `best.pth` is chosen; a point of mAP is 0.01 of it.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deim.engine.schedule import Timeline
from deim.errors import DataError

MIN_VALIDATIONS = 5
"""Scores below which neither a trend nor a plateau can be told."""
MIN_TOLERANCE = 0.005
"""AP in [0, 1]; gains up to this are never called gains, however smooth the curve."""
NOISE_FACTOR = 2.0
"""EarlyStoppingState up to this many times the noise are not called gains either."""
NOISE_SHARE, MIN_NOISE_VALIDATIONS = 1 / 3, 10
"""Noise is measured on this share of the validations, the last ones, and on at least so many."""
TREND_SHARE, MIN_TREND_VALIDATIONS = 0.2, 5
"""The last part of a run, whose trend says whether it is still rising: share and number of validations."""
TREND_ERRORS = 2.5
"""A trend is above noise if it gains more than this many of its standard errors."""
PLATEAU_SHARE, MIN_PLATEAU_VALIDATIONS = 0.1, 4
"""A plateau is at least so long: share and number of validations."""
SMOOTHING_SHARE = 0.1
"""Share of the validations that a smoothed point is the mean of; fewer than 20 stay as they are."""
MOST = 0.95
"""Share of the best score that counts as most of it."""
LONGER, SHORTER = 1.5, 0.5
"""A suggestion is at most, and at least, this share of the planned length."""
LONG_RUN = 50
"""Epochs; suggestions for longer runs are rounded up to tens."""
FINAL_STAGE = "final stage"
"""Name of the phase without changes of color."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What the log of a run says of each epoch. E counts the epochs in the log, at least 1."""

    epochs: NDArray[np.int64]
    """(E,) 0-based, ascending."""
    ap: NDArray[np.float64]
    """(E,) AP of the validation split in [0, 1]; NaN where there was no validation, or no box to score."""
    ap50: NDArray[np.float64]
    """(E,) the same at IoU 0.50."""
    seconds: NDArray[np.float64]
    """(E,) training and validation of the epoch; NaN where the log does not say."""
    hours: NDArray[np.float64]
    """(E,) sum of `seconds` up to and including the epoch, in hours; NaN from the first unknown on."""
    stopped_early: bool
    """Whether early stopping ended the run after the last of these epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseGain:
    """What one phase of the schedule brought."""

    name: str
    """`warm-up`, `flat`, `falling` (the learning rate), `final stage`; `whole run` without a timeline."""
    first_epoch: int
    """0-based, the first epoch of the phase in the log."""
    last_epoch: int
    """0-based, the last epoch of the phase in the log."""
    hours: float | None
    """Training and validation; None if the log does not say."""
    gain: float | None
    """Points of mAP by which the best score so far rose, counted from the first score of the run.

    None if the phase has no validation, or only the first of the run.
    """
    points_per_hour: float | None
    """`gain` by `hours`; None if one of them is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convergence:
    """How a run came to its best score. Epochs are 0-based, scores in [0, 1]."""

    planned_epochs: int
    """Length of the run as configured."""
    first_epoch: int
    """First epoch in the log; above 0 if the run was continued from another folder."""
    last_epoch: int
    """Last epoch in the log."""
    num_validations: int
    """Epochs with a score."""
    is_finished: bool
    """Whether the run has come to its end, as planned or by early stopping."""
    stopped_early: bool
    """Whether early stopping ended it before the planned length."""
    hours: float | None
    """Training and validation of all epochs in the log; None if the log does not say."""
    metric: str
    """The score that everything here is about: `ap`, as `best.pth` is chosen by."""
    best_epoch: int
    """Epoch of the best score; of equal scores the last, as for `best.pth`."""
    best_score: float
    """That score."""
    ap50_at_best: float | None
    """AP at IoU 0.50 in that epoch."""
    hours_to_best: float | None
    """Hours up to and including that epoch; None if the log does not say."""
    most_of_best_epoch: int
    """First epoch with 95 % of the best score."""
    is_last: bool
    """Whether the last validation is the best."""
    noise: float | None
    """Standard deviation of a score around the curve, see `_noise`; None with fewer than 5 validations."""
    tolerance: float | None
    """EarlyStoppingState up to this are not called gains: the higher of 0.005 and twice the noise; None without noise."""
    still_rising: bool | None
    """Whether the best lies in the last fifth of the validations and their trend is above noise, a step at
    the start of the final stage left aside; None with fewer than 5 validations."""
    plateau_epoch: int | None
    """First epoch from which the smoothed scores before the final stage never gain more than `tolerance`.
    None if there is none, if the run is still rising, or with fewer than 5 validations."""
    fall_at_end: float | None
    """Highest smoothed score less the highest of the last five; None if the run is still rising, or with
    fewer than 5 validations."""
    phases: tuple[PhaseGain, ...]
    """The phases that the log has reached, in order."""
    suggested_epochs: int | None
    """Length to try next, a round number; None if nothing can be said."""
    reason: str
    """Why this length, or why none, in one or two sentences."""


def read_curve(metrics_path: Path) -> Curve:
    """Read the scores and times of a run from its log.

    Lines of other events and lines that are cut off are left out. A line of an epoch replaces whatever stands
    above it of that epoch and of later ones: the run was resumed there.

    Args:
        metrics_path: The `metrics.jsonl` of a run folder.

    Raises:
        DataError: If the file is missing, cannot be read, or holds no epoch.
    """
    try:
        text = metrics_path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise DataError(
            f"{metrics_path}: no such file. It is written into the run folder while a run trains. Name the "
            f"metrics.jsonl of a run that has trained for at least one epoch."
        ) from None
    except OSError as error:
        raise DataError(f"{metrics_path}: cannot be read ({error.strerror}).") from None
    entries: list[dict[str, Any]] = []
    for line in text.splitlines():
        entry = _epoch_entry(line)
        if entry is None:
            continue
        while entries and entries[-1]["epoch"] >= entry["epoch"]:
            entries.pop()
        entries.append(entry)
    if not entries:
        content = "no line of an epoch" if text else "an empty file"
        raise DataError(
            f"{metrics_path}: holds no epoch, got {content}. Each finished epoch has a line here. Wait until "
            f"the first epoch is over, or name the metrics.jsonl of another run."
        )
    seconds = _column(entries, "seconds")
    return Curve(
        epochs=np.array([entry["epoch"] for entry in entries], dtype=np.int64),
        ap=_column(entries, "ap"),
        ap50=_column(entries, "ap50"),
        seconds=seconds,
        hours=np.cumsum(seconds) / 3600,
        stopped_early=entries[-1].get("stopped_early") is True,
    )


def analyze_convergence(
    curve: Curve, timeline: Timeline | None, *, planned_epochs: int
) -> Convergence | None:
    """Find the best epoch, the plateau and the gain of each phase, and suggest a length.

    The rules for the suggestion are those of `_suggest`.

    Args:
        curve: What `read_curve` gave.
        timeline: The phases of the run; None if they are not known.
        planned_epochs: Length of the run as configured. A log that is longer, as of a run that was shortened
            after the fact, counts as planned.

    Returns:
        The result, of JSON types only; None if no epoch was ever scored.
    """
    scored = np.flatnonzero(~np.isnan(curve.ap))
    if not scored.size:
        return None
    epochs, scores = curve.epochs[scored], curve.ap[scored]
    last_epoch = int(curve.epochs[-1])
    planned_epochs = max(planned_epochs, last_epoch + 1)
    best = len(scores) - 1 - int(np.argmax(scores[::-1]))
    final_stage = None if timeline is None else timeline.no_aug_epoch

    noise = tolerance = still_rising = plateau_epoch = fall_at_end = None
    if len(scores) >= MIN_VALIDATIONS:
        noise = _noise(scores)
        tolerance = max(MIN_TOLERANCE, NOISE_FACTOR * noise)
        still_rising = _is_rising(epochs, scores, final_stage, noise=noise, tolerance=tolerance)
        if not still_rising:
            plateau_epoch = _plateau(epochs, scores, final_stage, tolerance=tolerance)
            smooth = _smooth(scores)
            fall_at_end = float(smooth.max() - smooth[-MIN_VALIDATIONS:].max())
    stopped_early = curve.stopped_early and last_epoch + 1 < planned_epochs
    result = Convergence(
        planned_epochs=planned_epochs,
        first_epoch=int(curve.epochs[0]),
        last_epoch=last_epoch,
        num_validations=len(scores),
        is_finished=stopped_early or last_epoch + 1 == planned_epochs,
        stopped_early=stopped_early,
        hours=_known(curve.hours[-1]),
        metric="ap",
        best_epoch=int(epochs[best]),
        best_score=float(scores[best]),
        ap50_at_best=_known(curve.ap50[scored[best]]),
        hours_to_best=_known(curve.hours[scored[best]]),
        most_of_best_epoch=int(epochs[np.argmax(scores >= MOST * scores[best])]),
        is_last=best == len(scores) - 1,
        noise=noise,
        tolerance=tolerance,
        still_rising=still_rising,
        plateau_epoch=plateau_epoch,
        fall_at_end=fall_at_end,
        phases=_phases(curve, timeline),
        suggested_epochs=None,
        reason="",
    )
    # Later scores of the plateau may have fallen.
    level = scores[epochs >= (plateau_epoch or 0)][:MIN_PLATEAU_VALIDATIONS].mean()
    has_risen = plateau_epoch is None or level - scores[0] > tolerance
    suggested_epochs, reason = _suggest(result, final_stage, has_risen=has_risen)
    return replace(result, suggested_epochs=suggested_epochs, reason=reason)


def describe_convergence(convergence: Convergence) -> str:
    """The result in two to five lines of plain words; epochs count from 1 here.

    Args:
        convergence: What `analyze_convergence` gave.
    """
    lines = [_best_line(convergence), _trend_line(convergence)]
    gains = [
        f"{phase.name} {phase.gain:+.1f}"
        + ("" if phase.points_per_hour is None else f" ({phase.points_per_hour:.1f} an hour)")
        for phase in convergence.phases
        if phase.gain is not None
    ]
    if gains:
        lines.append(f"Points of mAP gained by phase: {', '.join(gains)}.")
    length = convergence.suggested_epochs
    lines.append((f"Suggested length: about {length} epochs. " if length else "") + convergence.reason)
    return "\n".join(lines)


def _epoch_entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None  # the line that was being written when the run was killed
    is_epoch = isinstance(entry, dict) and entry.get("event") == "epoch"
    return entry if is_epoch and isinstance(entry.get("epoch"), int) else None


def _column(entries: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    values = [entry.get(key) for entry in entries]
    numbers = [value if isinstance(value, int | float) else math.nan for value in values]
    return np.array(numbers, dtype=np.float64)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _noise(scores: NDArray[np.float64]) -> float:
    """Standard deviation of a score around the curve, from the steps between the last validations.

    Two estimates, each right for a level curve with normal noise, err on different sides: the spread of the
    steps bears a single jump but takes the bend of a short curve for noise; the mean fall is 0 for a curve
    that only rises but takes a collapse for noise. The smaller is the one that was not misled.
    """
    length = max(MIN_NOISE_VALIDATIONS, int(NOISE_SHARE * len(scores)))
    steps = np.diff(scores[-length:])
    # A step is the difference of two scores: its deviation is √2 times theirs; 1.4826 is that by the median.
    spread = 1.4826 / math.sqrt(2) * float(np.median(np.abs(steps - np.median(steps))))
    falls = math.sqrt(math.pi) * float(np.mean(np.maximum(-steps, 0)))
    return min(spread, falls)


def _is_rising(
    epochs: NDArray[np.int64],
    scores: NDArray[np.float64],
    final_stage: int | None,
    *,
    noise: float,
    tolerance: float,
) -> bool:
    """Whether the best lies in the last part and a straight line through that part gains more than noise.

    The final stage begins with a step of its own, which says nothing about longer training: the line may
    jump there. `epochs` and `scores` (V,) are those of the validations.
    """
    length = max(MIN_TREND_VALIDATIONS, int(TREND_SHARE * len(scores)))
    x, y = epochs[-length:], scores[-length:]
    if y.max() < scores.max():
        return False
    columns = [(x - x[0]) / (x[-1] - x[0]), np.ones(len(x))]
    if final_stage is not None and x[0] < final_stage <= x[-1]:
        columns.append((x >= final_stage).astype(np.float64))
    design = np.stack(columns, axis=1)
    gain = float(np.linalg.lstsq(design, y, rcond=None)[0][0])
    error = noise * math.sqrt(float(np.linalg.pinv(design.T @ design)[0, 0]))
    return gain > max(tolerance, TREND_ERRORS * error)


def _plateau(
    epochs: NDArray[np.int64], scores: NDArray[np.float64], final_stage: int | None, *, tolerance: float
) -> int | None:
    """First epoch from which the smoothed scores before the final stage never gain more than the tolerance.

    The final stage is left out because it usually brings a gain of its own, whatever went before. None if the
    plateau would be too short to be one. Arguments as in `_is_rising`.
    """
    count = len(epochs) if final_stage is None else int((epochs < final_stage).sum())
    shortest = max(MIN_PLATEAU_VALIDATIONS, int(PLATEAU_SHARE * count))
    if count < shortest:
        return None
    smooth = _smooth(scores[:count])
    to_come = np.maximum.accumulate(smooth[::-1])[::-1]
    start = int(np.argmax(to_come - smooth <= tolerance))
    return int(epochs[start]) if count - start >= shortest else None


def _smooth(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each score (V,) and its neighbors; near the ends of those that there are."""
    reach = int(SMOOTHING_SHARE * len(scores) / 2)
    sums = np.concatenate([[0.0], np.cumsum(scores)])
    middle = np.arange(len(scores))
    first, end = np.maximum(middle - reach, 0), np.minimum(middle + reach + 1, len(scores))
    return (sums[end] - sums[first]) / (end - first)


def _phases(curve: Curve, timeline: Timeline | None) -> tuple[PhaseGain, ...]:
    """The phases that the log has reached; the epoch in which warm-up ends is its last."""
    ends = {"whole run": math.inf}
    if timeline is not None:
        warmup_epochs = math.ceil(timeline.warmup_steps / timeline.steps_per_epoch)
        ends = {
            "warm-up": warmup_epochs,
            "flat": timeline.flat_end_epoch,
            "falling": timeline.no_aug_epoch,
            FINAL_STAGE: math.inf,
        }
    phases = []
    start = 0.0
    for name, end in ends.items():
        inside = (curve.epochs >= start) & (curve.epochs < end)
        if inside.any():
            phases.append(_phase_gain(curve, inside, name))
        start = max(start, end)
    return tuple(phases)


def _phase_gain(curve: Curve, inside: NDArray[np.bool_], name: str) -> PhaseGain:
    """What the epochs marked by `inside` (E,) brought."""
    positions = np.flatnonzero(inside)
    first, last = int(positions[0]), int(positions[-1])
    before, within = curve.ap[:first], curve.ap[first : last + 1]
    before, within = before[~np.isnan(before)], within[~np.isnan(within)]
    hours = _known(float(curve.seconds[inside].sum()) / 3600)
    gain = None
    if within.size and before.size + within.size > 1:
        start = float(before.max() if before.size else within[0])
        gain = 100 * max(float(within.max()) - start, 0.0)
    return PhaseGain(
        name=name,
        first_epoch=int(curve.epochs[first]),
        last_epoch=int(curve.epochs[last]),
        hours=hours,
        gain=gain,
        points_per_hour=gain / hours if gain is not None and hours else None,
    )


def _suggest(result: Convergence, final_stage: int | None, *, has_risen: bool) -> tuple[int | None, str]:
    """A length to try next, or None, and why.

    The phases of a run are shares of its length. So that the final stage does not eat into what led to the
    plateau, a run with one should be as long as it took to get there and the final stage's share on top. In a
    shorter run the learning rate also falls earlier, so what is known of this one says little about one much
    shorter: no suggestion is below half of the planned length, nor above one and a half times it.
    `has_risen` is false if the plateau is no higher than the first score.
    """
    planned = result.planned_epochs
    if result.still_rising is None:
        return None, (
            f"No length is suggested: that takes at least {MIN_VALIDATIONS} validations. Train longer, or "
            f"lower evaluation.every_epochs."
        )
    if not result.is_finished:
        return None, (
            "No length is suggested while the run is not finished: the falling learning rate and the final "
            "stage may still bring gains."
        )
    if not has_risen:
        return None, (
            "No length is suggested: the scores hardly rose after the first validation, so it is not the "
            "length that holds them back. If the run did not begin with a trained detector, check data and "
            "learning rate."
        )
    if result.stopped_early and result.plateau_epoch is None:
        return planned, (
            "Early stopping ended the run before its scores had levelled off. Give it more patience "
            "(early_stopping.patience)."
        )
    if result.still_rising:
        return _rounded_up(planned * LONGER, planned), (
            "The scores had not levelled off, and half as long again is a fair next try; how much it will "
            "bring cannot be known from this run."
        )
    if result.plateau_epoch is None:
        return planned, "The length fits: gains went on until late in the run, and then ended."
    before_final = planned if final_stage is None else min(max(final_stage, 1), planned)
    needed = (result.plateau_epoch + 1) * planned / before_final
    length = min(_rounded_up(max(needed, planned * SHORTER), planned), planned)
    if length == planned:
        return length, "The length fits: the plateau came late."
    if needed < planned * SHORTER:
        return length, "The plateau came early. Phases shrink with the run, so try half of it before less."
    on_top = ", and the final stage on top" if before_final < planned else ""
    return length, f"That is as long as it took to the plateau{on_top}."


def _rounded_up(epochs: float, planned_epochs: int) -> int:
    unit = 10 if planned_epochs > LONG_RUN else 1
    # 180.00000000000003 shall not become 190.
    return unit * math.ceil(round(epochs / unit, 6))


def _best_line(convergence: Convergence) -> str:
    ap50 = convergence.ap50_at_best
    text = f"Best mAP {convergence.best_score:.3f}" + ("" if ap50 is None else f" (mAP50 {ap50:.3f})")
    text += f" in epoch {convergence.best_epoch + 1} of {convergence.planned_epochs}"
    if convergence.is_last:
        text += ", the last one scored"
    if convergence.hours_to_best is not None and convergence.hours is not None:
        text += f", after {_duration(convergence.hours_to_best)} of {_duration(convergence.hours)}"
    text += "."
    if convergence.first_epoch:
        text += f" The log begins with epoch {convergence.first_epoch + 1}; what was before is not counted."
    if convergence.stopped_early:
        text += f" Early stopping ended the run after epoch {convergence.last_epoch + 1}."
    elif not convergence.is_finished:
        text += f" The run is not finished: {convergence.last_epoch + 1} epochs are done."
    return text


def _trend_line(convergence: Convergence) -> str:
    tolerance, fall = convergence.tolerance, convergence.fall_at_end
    if tolerance is None:
        return f"Too few validations to tell whether the scores still rise: {convergence.num_validations}."
    if convergence.still_rising:
        advice = ": train longer." if convergence.is_finished else "."
        return f"The scores are still rising in epoch {convergence.last_epoch + 1}{advice}"
    if convergence.plateau_epoch is None:
        text = "The scores no longer rise clearly, and there is no plateau yet."
    else:
        has_final_stage = any(phase.name == FINAL_STAGE for phase in convergence.phases)
        before = " before the final stage" if has_final_stage else ""
        text = (
            f"From epoch {convergence.plateau_epoch + 1} on, the scores gained no more than "
            f"{tolerance:.3f} mAP{before}: a plateau."
        )
    text += f" {MOST:.0%} of the best was reached in epoch {convergence.most_of_best_epoch + 1}."
    if fall is not None and fall > tolerance:
        text += f" At the end, the scores lie {fall:.3f} below their highest level."
    return text


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
