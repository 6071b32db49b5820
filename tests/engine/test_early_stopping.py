"""Early stopping on series of scores."""

import pytest

from deim.engine.early_stopping import EarlyStoppingOptions, EarlyStoppingState

NAN = float("nan")


def stops_after(
    scores: list[float | None],
    *,
    patience: int | None = 3,
    min_delta: float = 0.0,
    final: int = 0,
    early: bool = False,
) -> int | None:
    """Epoch after which the run ends; None if it goes to the end."""
    config = EarlyStoppingOptions(patience=patience, min_delta=min_delta, before_final_stage=early)
    state = EarlyStoppingState()
    for epoch, score in enumerate(scores):
        if state.should_stop(score, config, epoch=epoch, last_stage_epoch=final):
            return epoch
    return None


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], None),
        ([0.1, 0.2, 0.3, 0.4, 0.5], None),
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.9], 4),
        ([0.3, 0.3, 0.3, 0.3, 0.3], 3),
        ([0.3, NAN, NAN, NAN, 0.9], 3),
        ([NAN, NAN, NAN, 0.1], 2),
        ([None, None, None], 2),
        ([0.1, NAN, 0.2, None, 0.3, NAN, NAN, 0.4], None),
        ([0.3, 0.2, 0.2, 0.4, 0.2, 0.2], None),
        ([0.3, 0.2, 0.2, 0.4, 0.2, 0.2, 0.2], 6),
    ],
    ids=["empty", "rising", "plateau", "tie", "NaN", "NaN only", "no boxes", "gaps", "late gain", "after it"],
)
def test_a_run_ends_when_patience_is_used_up(scores: list[float | None], expected: int | None) -> None:
    assert stops_after(scores) == expected
    assert stops_after(scores, patience=None) is None


def test_a_gain_is_more_than_min_delta() -> None:
    scores: list[float | None] = [0.300, 0.304, 0.308, 0.309, 0.320]
    assert stops_after(scores) is None
    assert stops_after(scores, min_delta=0.01) == 3


def test_small_gains_add_up_until_they_count() -> None:
    assert stops_after([0.300, 0.304, 0.308, 0.312, 0.316, 0.320, 0.324], min_delta=0.01) is None


def test_patience_counts_from_the_final_stage_unless_told_otherwise() -> None:
    scores: list[float | None] = [0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert stops_after(scores, final=4) == 6
    assert stops_after(scores, final=4, early=True) == 3
    assert stops_after(scores, final=99) is None
    assert stops_after(scores, final=0) == 3


def test_gains_are_told_in_words() -> None:
    options, state = EarlyStoppingOptions(), EarlyStoppingState()
    state.should_stop(NAN, options, epoch=0, last_stage_epoch=0)
    assert state.describe() == "no validation has given a score; does the validation split have boxes?"
    state.should_stop(0.3, options, epoch=4, last_stage_epoch=0)
    assert state.describe() == "no improvement since epoch 5"
