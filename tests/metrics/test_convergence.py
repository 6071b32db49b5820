"""The best epoch and the trend of a run, from its log."""

import json
from pathlib import Path
from typing import Any

import pytest

from deim.metrics.convergence import Convergence, describe_convergence, read_convergence


def epoch_line(epoch: int, ap: float | None, **more: Any) -> str:
    return json.dumps({"event": "epoch", "epoch": epoch, "ap": ap, "ap50": ap, "seconds": 1800.0} | more)


def read(path: Path, scores: list[float | None], *, planned_epochs: int | None = None) -> Convergence:
    lines = [epoch_line(epoch, ap) for epoch, ap in enumerate(scores)]
    path.write_text("\n".join(lines))
    result = read_convergence(path, planned_epochs=planned_epochs or len(scores))
    assert result is not None
    return result


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_the_last_of_equal_scores_is_the_best(log: Path) -> None:
    result = read(log, [0.1, 0.5, None, 0.5, 0.4])
    assert (result.best_epoch, result.best_ap, result.epochs[-1]) == (3, 0.5, 4)
    assert result.hours == pytest.approx(2.5)
    assert result.ap == (0.1, 0.5, None, 0.5, 0.4)


@pytest.mark.parametrize(
    ("scores", "still_rising"),
    [
        ([0.1, 0.2, 0.3, 0.4], None),
        ([0.1, 0.2, 0.3, 0.4, 0.5], True),
        ([0.1 + 0.01 * k for k in range(40)], True),
        ([min(0.1 + 0.05 * k, 0.6) for k in range(40)], False),
        ([0.5 + 0.0001 * k for k in range(40)], False),
        ([0.9, *(0.1 + 0.01 * k for k in range(40))], False),
        ([0.6 - 0.01 * k for k in range(40)], False),
    ],
)
def test_the_trend_at_the_end(log: Path, scores: list[float | None], still_rising: bool | None) -> None:
    result = read(log, scores)
    assert result.still_rising is still_rising
    ending = {True: "still rises", False: "no longer rises", None: "Too few validations"}[still_rising]
    assert ending in describe_convergence(result)


def test_a_resumed_run_replaces_the_epochs_that_it_repeats(log: Path) -> None:
    lines = [epoch_line(0, 0.1), epoch_line(1, 0.9), epoch_line(2, 0.9), epoch_line(1, 0.2), '{"event": "epo']
    log.write_text("\n".join([json.dumps({"event": "start"}), *lines]))
    result = read_convergence(log, planned_epochs=4)
    assert result is not None
    assert (result.epochs, result.ap, result.best_epoch) == ((0, 1), (0.1, 0.2), 1)
    assert "The run is not finished: 2 epochs are done." in describe_convergence(result)


def test_early_stopping_is_named(log: Path) -> None:
    log.write_text(epoch_line(0, 0.1, stopped_early=True))
    result = read_convergence(log, planned_epochs=9)
    assert result is not None
    assert result.stopped_early
    assert "Early stopping ended the run after epoch 1." in describe_convergence(result)


def test_a_log_without_times_or_scores(log: Path) -> None:
    log.write_text(json.dumps({"event": "epoch", "epoch": 0, "ap": 0.1}))
    result = read_convergence(log, planned_epochs=1)
    assert result is not None
    assert (result.hours, result.ap50) == (None, (None,))
    log.write_text(json.dumps({"event": "epoch", "epoch": 0}))
    assert read_convergence(log, planned_epochs=1) is None
    assert read_convergence(log.with_name("absent.jsonl"), planned_epochs=1) is None


@pytest.mark.parametrize("val_loss", [[2.5, None, 2.0], [None, None, None]])
def test_losses_of_the_last_layer_are_read(log: Path, val_loss: list[float | None]) -> None:
    terms = {"loss_mal": 0.5, "loss_bbox": 1.0, "loss_giou": 1.5, "loss_mal_aux_0": 9.0}
    lines = [epoch_line(k, 0.1, terms=terms, val_loss=value) for k, value in enumerate(val_loss)]
    log.write_text("\n".join(lines))
    result = read_convergence(log, planned_epochs=3)
    assert result is not None
    assert result.loss == (3.0, 3.0, 3.0)
    assert result.val_loss == (tuple(val_loss) if any(val_loss) else ())


def test_a_log_of_another_loss_has_none(log: Path) -> None:
    log.write_text(epoch_line(0, 0.1, terms={"loss_classifier": 1.0}))
    result = read_convergence(log, planned_epochs=1)
    assert result is not None
    assert result.loss == ()


@pytest.mark.parametrize(
    ("lines", "hours"),
    [
        # Validation is taken off, also where there is none.
        ([(0, None, 3600.0, None), (1, 0.2, 3600.0, 600.0)], 2 - 1 / 6),
        # A repeated epoch counts once.
        (
            [
                (0, 0.1, 1800.0, 0.0),
                (1, 0.2, 7200.0, 0.0),
                (2, 0.2, 7200.0, 0.0),
                (1, 0.3, 1800.0, 0.0),
            ],
            1,
        ),
        # Part of the run is not in the log, at its start or in between.
        ([(1, 0.1, 3600.0, 0.0), (2, 0.2, 3600.0, 0.0)], None),
        ([(0, 0.1, 3600.0, 0.0), (2, 0.2, 3600.0, 0.0)], None),
        # Older logs do not say how long the validation took.
        ([(0, 0.1, 3600.0, None), (1, 0.2, 3600.0, 60.0)], None),
        ([(0, 0.1, None, 60.0)], None),
    ],
)
def test_the_time_of_training_is_that_of_all_epochs_or_unknown(
    log: Path, lines: list[tuple[int, float | None, float | None, float | None]], hours: float | None
) -> None:
    log.write_text(
        "\n".join(
            epoch_line(epoch, ap, seconds=seconds, validation_seconds=validation)
            for epoch, ap, seconds, validation in lines
        )
    )
    result = read_convergence(log, planned_epochs=3)
    assert result is not None
    assert result.training_hours == (None if hours is None else pytest.approx(hours))
