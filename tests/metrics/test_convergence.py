"""Reading the log of a run, and what is said of curves whose truth is known."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deim.engine.schedule import ScheduleOptions, Timeline, resolve_schedule
from deim.errors import DataError
from deim.metrics.convergence import (
    Convergence,
    Curve,
    analyze_convergence,
    describe_convergence,
    read_curve,
)

NOISE = 0.004
SECONDS = 60.0
SEEDS = range(20)


def make_timeline(epochs: int, **options: Any) -> Timeline:
    return resolve_schedule(ScheduleOptions(**options), epochs=epochs, steps_per_epoch=400)


def make_curve(scores: Sequence[float], *, every: int = 1, stopped_early: bool = False) -> Curve:
    """A score for each epoch, of which every so many (and the last) are validated, a minute an epoch."""
    ap = np.array(scores, dtype=np.float64)
    epochs = np.arange(len(ap))
    is_validated = ((epochs + 1) % every == 0) | (epochs == len(ap) - 1)
    ap = np.where(is_validated, ap, math.nan)
    seconds = np.full(len(ap), SECONDS)
    return Curve(
        epochs=epochs,
        ap=ap,
        ap50=ap + 0.16,
        seconds=seconds,
        hours=np.cumsum(seconds) / 3600,
        stopped_early=stopped_early,
    )


def saturating(
    epochs: int, *, time_constant: float, seed: int = 0, noise: float = NOISE
) -> NDArray[np.float64]:
    """AP that comes to 0.62, with noise."""
    rise = 0.62 * (1 - np.exp(-np.arange(epochs) / time_constant))
    return rise + np.random.default_rng(seed).normal(0, noise, epochs)


def run_5(seed: int) -> NDArray[np.float64]:
    """The user's run of 300 epochs: best at about 187, then a plateau that falls by very little."""
    return saturating(300, time_constant=38, seed=seed) - 5e-5 * np.maximum(np.arange(300) - 187, 0)


def analyze(
    scores: Sequence[float], planned_epochs: int | None = None, *, knows_timeline: bool = True, **options: Any
) -> Convergence:
    planned_epochs = planned_epochs or len(scores)
    timeline = make_timeline(planned_epochs) if knows_timeline else None
    result = analyze_convergence(make_curve(scores, **options), timeline, planned_epochs=planned_epochs)
    assert result is not None
    return result


def write_lines(path: Path, entries: Sequence[dict[str, Any]], *, end: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end, encoding="utf-8")
    return path


def entry(epoch: int, **values: Any) -> dict[str, Any]:
    return {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "seconds": 36.0} | values


@pytest.mark.parametrize("seed", SEEDS)
def test_run_4_is_still_rising(seed: int) -> None:
    scores = saturating(120, time_constant=50, seed=seed)
    result = analyze_convergence(make_curve(scores), make_timeline(120, flat_epochs=70), planned_epochs=120)
    assert result is not None
    assert result.still_rising is True
    assert result.plateau_epoch is None
    assert result.best_epoch >= 100
    assert result.suggested_epochs == 180
    assert "still rising in epoch 120: train longer." in describe_convergence(result)


@pytest.mark.parametrize("seed", SEEDS)
def test_run_5_has_a_plateau_and_could_be_shorter(seed: int) -> None:
    result = analyze_convergence(
        make_curve(run_5(seed)), make_timeline(300, flat_epochs=70), planned_epochs=300
    )
    assert result is not None
    assert result.still_rising is False
    assert result.plateau_epoch is not None
    assert 145 <= result.plateau_epoch <= 190
    assert result.suggested_epochs in (170, 180, 190, 200, 210, 220)
    assert result.noise == pytest.approx(NOISE, rel=0.4)
    assert result.tolerance == pytest.approx(2 * result.noise)
    assert result.most_of_best_epoch < result.plateau_epoch < result.best_epoch + 30


def test_run_5_is_mostly_said_to_need_180_to_200_epochs() -> None:
    timeline = make_timeline(300, flat_epochs=70)
    results = [
        analyze_convergence(make_curve(run_5(seed)), timeline, planned_epochs=300) for seed in range(60)
    ]
    lengths = [result.suggested_epochs for result in results if result is not None]
    assert len(lengths) == 60
    assert sum(length in (180, 190, 200) for length in lengths) >= 50


def test_the_text_of_a_plateau() -> None:
    result = analyze([*np.linspace(0.1, 0.6, 51), *[0.6] * 39, *[0.62] * 10])
    timeline = make_timeline(100)
    assert (timeline.flat_end_epoch, timeline.no_aug_epoch) == (49, 90)
    assert result.plateau_epoch is not None
    assert describe_convergence(result) == (
        "Best mAP 0.620 (mAP50 0.780) in epoch 100 of 100, the last one scored, after 1.7 h of 1.7 h.\n"
        "From epoch 53 on, the scores gained no more than 0.005 mAP before the final stage: a plateau. "
        "95% of the best was reached in epoch 50.\n"
        "Points of mAP gained by phase: warm-up +4.0 (48.0 an hour), flat +44.0 (60.0 an hour), falling +2.0 "
        "(2.9 an hour), final stage +2.0 (12.0 an hour).\n"
        "Suggested length: about 60 epochs. That is as long as it took to the plateau, and the final stage "
        "on top."
    )


def test_a_step_of_the_final_stage_is_no_rise_and_hides_no_plateau() -> None:
    step = 0.03 * (np.arange(120) >= 108)
    results = [analyze(saturating(120, time_constant=15, seed=seed) + step) for seed in range(50)]
    level = [result for result in results if result.still_rising is False]
    assert len(level) >= 46
    for result in level:
        assert result.best_epoch >= 108
        assert result.plateau_epoch is not None
        assert 50 <= result.plateau_epoch <= 90
        assert result.suggested_epochs in (60, 70, 80, 90, 100)
        assert [phase.name for phase in result.phases] == ["warm-up", "flat", "falling", "final stage"]
        assert result.phases[-1].gain == pytest.approx(3, abs=1.5)
        assert "below their highest level" not in describe_convergence(result)


def test_a_strictly_rising_curve() -> None:
    result = analyze(np.linspace(0.1, 0.6, 60))
    assert (result.best_epoch, result.is_last, result.still_rising) == (59, True, True)
    assert result.noise == pytest.approx(0)
    assert result.tolerance == 0.005
    assert result.fall_at_end is None
    assert result.suggested_epochs == 90
    assert "in epoch 60 of 60, the last one scored" in describe_convergence(result)


def test_short_runs_are_not_rounded_to_tens() -> None:
    assert analyze(np.linspace(0.1, 0.6, 9)).suggested_epochs == 14


@pytest.mark.parametrize("level", [0.0, 0.5])
@pytest.mark.parametrize("count", [5, 12, 60])
def test_a_flat_line_says_nothing_about_the_length(level: float, count: int) -> None:
    result = analyze([level] * count)
    assert result.best_epoch == count - 1, "of equal scores the last, as for best.pth"
    assert (result.is_last, result.still_rising, result.plateau_epoch) == (True, False, 0)
    assert result.suggested_epochs is None
    assert "hardly rose" in result.reason


def test_noise_alone_is_no_rise() -> None:
    results = [analyze(np.random.default_rng(seed).normal(0.5, 0.01, 40)) for seed in range(100)]
    assert sum(result.still_rising is True for result in results) <= 5
    assert sum(result.plateau_epoch is not None for result in results) >= 95


def test_a_collapse_is_told() -> None:
    scores = [*saturating(60, time_constant=12), *np.full(40, 0.1)]
    result = analyze(scores)
    assert result.best_epoch < 60
    assert result.still_rising is False
    assert result.fall_at_end == pytest.approx(0.51, abs=0.02)
    assert "below their highest level" in describe_convergence(result)


def test_one_collapsed_validation_does_not_become_noise() -> None:
    scores = run_5(0)
    scores[280] = 0.0
    with_collapse, without = analyze(scores), analyze(run_5(0))
    assert with_collapse.noise == pytest.approx(without.noise, rel=0.15)


def test_an_early_plateau_is_not_trusted_below_half_of_the_length() -> None:
    result = analyze(saturating(300, time_constant=5))
    assert result.plateau_epoch is not None
    assert result.plateau_epoch < 40
    assert result.suggested_epochs == 150
    assert "try half of it before less" in result.reason


def test_a_late_plateau_keeps_the_length() -> None:
    result = analyze([*np.linspace(0.1, 0.6, 49), *[0.6] * 11])
    assert result.still_rising is False
    assert (result.plateau_epoch, result.suggested_epochs) == (49, 60)
    assert "The length fits" in result.reason


def test_without_a_timeline_there_is_one_phase() -> None:
    result = analyze(run_5(0), knows_timeline=False)
    assert [phase.name for phase in result.phases] == ["whole run"]
    assert "final stage" not in describe_convergence(result)
    assert result.phases[0].hours == pytest.approx(5)
    assert result.hours == pytest.approx(5)
    assert result.suggested_epochs in (150, 160, 170, 180)


def test_gains_of_the_phases_add_up_and_are_counted_from_the_first_score() -> None:
    scores = run_5(3)
    result = analyze(scores)
    gains = [phase.gain for phase in result.phases]
    assert all(gain is not None for gain in gains)
    assert sum(gain or 0.0 for gain in gains) == pytest.approx(100 * (scores.max() - scores[0]))
    assert [phase.first_epoch for phase in result.phases[1:]] == [
        phase.last_epoch + 1 for phase in result.phases[:-1]
    ]
    assert sum(phase.hours or 0.0 for phase in result.phases) == pytest.approx(result.hours)
    for phase in result.phases:
        assert phase.hours is not None
        assert phase.points_per_hour == pytest.approx((phase.gain or 0.0) / phase.hours)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_validations_are_too_few(count: int) -> None:
    result = analyze(np.linspace(0.1, 0.5, count))
    assert (result.best_epoch, result.best_score, result.num_validations) == (
        count - 1,
        0.5 if count > 1 else 0.1,
        count,
    )
    assert (result.still_rising, result.plateau_epoch, result.suggested_epochs) == (None, None, None)
    assert (result.noise, result.tolerance) == (None, None)
    assert f"Too few validations to tell whether the scores still rise: {count}." in describe_convergence(
        result
    )
    assert "evaluation.every_epochs" in result.reason


def test_a_single_validation_gives_no_gain() -> None:
    result = analyze(np.linspace(0.1, 0.5, 20), every=20)
    assert result.num_validations == 1
    assert [phase.gain for phase in result.phases] == [None] * len(result.phases)
    assert "Points of mAP" not in describe_convergence(result)


@pytest.mark.parametrize("seed", SEEDS)
def test_validations_every_five_epochs(seed: int) -> None:
    rising = analyze(saturating(120, time_constant=50, seed=seed, noise=0.002), every=5)
    assert rising.still_rising is True
    level = analyze(run_5(seed), every=5)
    assert level.num_validations == 60
    assert level.plateau_epoch is not None
    assert level.plateau_epoch % 5 == 4
    assert 120 <= level.plateau_epoch <= 200


def test_epochs_that_were_never_scored() -> None:
    assert analyze_convergence(make_curve([math.nan] * 8), None, planned_epochs=8) is None


def test_unscored_epochs_among_scored_ones_change_nothing() -> None:
    scores = run_5(1)
    scores[[0, 17, 299]] = math.nan
    result = analyze(scores)
    assert result.num_validations == 297
    assert result.last_epoch == 299
    assert result.suggested_epochs in (180, 190, 200)


def test_a_run_that_goes_on_gets_no_suggestion() -> None:
    result = analyze(saturating(120, time_constant=10), 300)
    assert result.is_finished is False
    assert result.plateau_epoch is not None
    assert result.suggested_epochs is None
    assert "not finished" in result.reason
    text = describe_convergence(result)
    assert "of 300" in text
    assert "The run is not finished: 120 epochs are done." in text
    assert [phase.name for phase in result.phases] == ["warm-up", "flat"]


def test_a_run_that_goes_on_and_rises() -> None:
    text = describe_convergence(analyze(saturating(100, time_constant=60), 300))
    assert "still rising in epoch 100." in text
    assert "train longer" not in text


def test_an_early_stopped_run_with_a_plateau() -> None:
    result = analyze(run_5(0)[:230], 300, stopped_early=True)
    assert (result.stopped_early, result.is_finished) == (True, True)
    assert result.suggested_epochs in (180, 190, 200)
    assert "Early stopping ended the run after epoch 230." in describe_convergence(result)


def test_an_early_stopped_run_without_a_plateau_needs_patience() -> None:
    result = analyze(saturating(100, time_constant=60), 300, stopped_early=True)
    assert result.still_rising is True
    assert result.suggested_epochs == 300
    assert "early_stopping.patience" in result.reason


def test_stopping_at_the_planned_end_is_not_early() -> None:
    result = analyze(np.linspace(0.1, 0.6, 60), 60, stopped_early=True)
    assert (result.stopped_early, result.is_finished, result.suggested_epochs) == (False, True, 90)


def test_a_log_longer_than_planned_counts_as_planned() -> None:
    result = analyze(run_5(0), 200)
    assert (result.planned_epochs, result.is_finished) == (300, True)


def test_the_log_of_a_run_continued_elsewhere(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "metrics.jsonl", [entry(epoch, ap=0.01 * epoch) for epoch in range(40, 50)])
    result = analyze_convergence(read_curve(path), make_timeline(100), planned_epochs=100)
    assert result is not None
    assert (result.first_epoch, result.last_epoch) == (40, 49)
    assert result.hours == pytest.approx(0.1)
    assert "The log begins with epoch 41" in describe_convergence(result)


@pytest.mark.parametrize("count", [1, 3, 5, 60])
def test_a_result_is_plain_json(count: int) -> None:
    tree = asdict(analyze(saturating(count, time_constant=20)))
    assert json.loads(json.dumps(tree, allow_nan=False)).keys() == tree.keys()


def test_a_log_is_read(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"event": "step_refused", "step": 3, "ap": 9.0},
            entry(0, ap=None, ap50=None),
            entry(1),
            entry(2, ap=0.25, ap50=0.5, stopped_early=True),
        ],
    )
    curve = read_curve(path)
    np.testing.assert_array_equal(curve.epochs, [0, 1, 2])
    np.testing.assert_array_equal(curve.ap, [math.nan, math.nan, 0.25])
    np.testing.assert_array_equal(curve.ap50, [math.nan, math.nan, 0.5])
    np.testing.assert_array_equal(curve.seconds, [36.0] * 3)
    np.testing.assert_allclose(curve.hours, [0.01, 0.02, 0.03])
    assert curve.stopped_early is True


def test_a_cut_off_line_is_left_out(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "metrics.jsonl", [entry(0, ap=0.1), entry(1, ap=0.2)], end='{"event": "epo')
    np.testing.assert_array_equal(read_curve(path).epochs, [0, 1])
    path.write_bytes(path.read_bytes() + b"\xc3")
    np.testing.assert_array_equal(read_curve(path).epochs, [0, 1])


def test_a_resumed_run_replaces_what_it_trained_again(tmp_path: Path) -> None:
    lines = [entry(epoch, ap=0.1) for epoch in range(6)]
    again = [entry(epoch, ap=0.2) for epoch in (3, 4)]
    curve = read_curve(write_lines(tmp_path / "metrics.jsonl", [*lines, *again]))
    np.testing.assert_array_equal(curve.epochs, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(curve.ap, [0.1, 0.1, 0.1, 0.2, 0.2])


def test_unknown_times_stay_unknown(tmp_path: Path) -> None:
    lines = [entry(epoch, ap=0.1 * epoch) for epoch in range(6)]
    lines[2]["seconds"] = None
    curve = read_curve(write_lines(tmp_path / "metrics.jsonl", lines))
    assert np.isnan(curve.hours).tolist() == [False, False, True, True, True, True]
    result = analyze_convergence(curve, None, planned_epochs=6)
    assert result is not None
    assert (result.hours, result.phases[0].hours, result.phases[0].points_per_hour) == (None, None, None)
    assert "whole run +50.0." in describe_convergence(result)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file. It is written into the run folder"),
        (
            lambda path: path.touch(),
            "holds no epoch, got an empty file. .* Wait until the first epoch is over",
        ),
        (
            lambda path: path.write_text('{"event": "preflight"}\n[1]\n{"ev'),
            "holds no epoch, got no line of an epoch",
        ),
        (lambda path: path.mkdir(), "cannot be read"),
    ],
    ids=["missing", "empty", "no epoch", "folder"],
)
def test_a_log_without_epochs_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match=f"metrics.jsonl: {message}"):
        read_curve(tmp_path / "metrics.jsonl")


def test_a_real_run(tiny_run: Path) -> None:
    curve = read_curve(tiny_run / "metrics.jsonl")
    np.testing.assert_array_equal(curve.epochs, np.arange(40))
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(curve.ap)), [19, 35, 39])
    assert not curve.stopped_early
    assert (curve.seconds > 0).all()
    result = analyze_convergence(curve, make_timeline(40), planned_epochs=40)
    assert result is not None
    assert result.best_score == np.nanmax(curve.ap)
    assert result.still_rising is None
    assert result.hours == pytest.approx(curve.seconds.sum() / 3600)
    assert "Too few validations" in describe_convergence(result)
