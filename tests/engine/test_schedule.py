"""Phases of a run: they follow from the number of epochs, and what contradicts them is refused."""

import itertools

import pytest

from deim.engine.ema import EmaOptions, resolve_ema
from deim.engine.schedule import ScheduleOptions, Timeline, resolve_schedule
from deim.errors import ConfigError
from deim.files import count

IMAGES = [50, 51, 64, 100, 333, 1000, 3210, 12_000, 50_000]
BATCHES = [1, 2, 3, 4, 8, 16, 31, 32, 64]
RUNS = sorted({-(-images // batch) for images, batch in itertools.product(IMAGES, BATCHES)})


def resolve(epochs: int, steps_per_epoch: int, **options: float) -> Timeline:
    return resolve_schedule(ScheduleOptions(**options), epochs=epochs, steps_per_epoch=steps_per_epoch)


@pytest.mark.parametrize("steps_per_epoch", RUNS)
def test_every_phase_lies_inside_the_run(steps_per_epoch: int) -> None:
    for epochs in range(1, 301):
        run = resolve(epochs, steps_per_epoch)
        averaging = resolve_ema(EmaOptions(), total_steps=run.total_steps)
        at = f"{epochs} epochs of {steps_per_epoch} steps"
        assert 0 <= run.augment_start_epoch <= run.flat_end_epoch <= run.no_aug_epoch <= epochs, at
        assert run.augment_start_epoch <= run.mix_end_epoch <= run.no_aug_epoch, at
        assert 0 < run.matcher_change_epoch <= run.no_aug_epoch, at
        assert 0 <= run.warmup_steps <= 0.05 * run.total_steps, at
        assert run.warmup_steps <= run.flat_end_epoch * steps_per_epoch, at
        # An average needs one step at least.
        assert 1 / (1 - averaging.decay) <= max(1.0, 0.1 * run.total_steps) * (1 + 1e-9), at
        assert 0 <= averaging.decay <= 0.9999, at
        assert averaging.warmup_steps <= 0.011 * run.total_steps + 1, at
        assert 0 < run.lr_factor(0) <= 1, at


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 6, 9, 10, 15, 50, 132, 300])
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7, 100])
def test_the_learning_rate_rises_stays_and_falls_without_a_jump(epochs: int, steps_per_epoch: int) -> None:
    run = resolve(epochs, steps_per_epoch, final_lr_ratio=0.25)
    factors = [run.lr_factor(step) for step in range(run.total_steps)]
    top = factors.index(1.0)
    assert top == max(run.warmup_steps - 1, 0)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[0] > 0
    assert max(factors) == 1
    falling = (run.no_aug_epoch - run.flat_end_epoch) * steps_per_epoch
    # The steepest slope of half a cosine is π/2 times the mean one.
    steepest = 0.75 * 1.571 / max(falling, 1)
    for earlier, later in itertools.pairwise(factors[top:]):
        assert earlier - later <= steepest + 1e-9
    if run.no_aug_epoch < epochs:
        assert factors[-1] == 0.25


def test_the_warm_up_is_quadratic_and_reaches_one() -> None:
    run = resolve(10, 10, warmup_steps=4)
    assert [run.lr_factor(step) for step in range(5)] == [1 / 16, 4 / 16, 9 / 16, 1, 1]


def test_the_fall_is_half_a_cosine() -> None:
    run = resolve(10, 10, warmup_steps=0, flat_epochs=4, no_aug_epochs=2, final_lr_ratio=0.5)
    assert run.lr_factor(40) == 1
    assert run.lr_factor(60) == pytest.approx(0.75)
    assert run.lr_factor(79) == pytest.approx(0.5, abs=2e-3)
    assert [run.lr_factor(step) for step in (80, 99)] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("epochs", "no_aug", "flat", "matcher"),
    [(132, 12, 64, 100), (102, 12, 49, 80), (68, 8, 34, 50), (58, 8, 29, 45)],
)
def test_ratios_are_near_those_of_the_reference(epochs: int, no_aug: int, flat: int, matcher: int) -> None:
    """Spec 0.2: recipes of S, M, L and X."""
    run = resolve(epochs, 3700)
    assert epochs - run.no_aug_epoch == pytest.approx(no_aug, abs=3)
    assert run.flat_end_epoch == pytest.approx(flat, abs=3)
    assert run.matcher_change_epoch == pytest.approx(matcher, abs=9)
    assert run.augment_start_epoch == pytest.approx(4, abs=2)
    assert run.warmup_steps == 2000


def test_numbers_of_the_reference_can_be_set_by_hand() -> None:
    run = resolve(
        132, 3700, flat_epochs=64, no_aug_epochs=12, augment_start_epoch=4, matcher_change_epoch=100
    )
    assert (run.flat_end_epoch, run.no_aug_epoch, run.augment_start_epoch) == (64, 120, 4)
    assert run.matcher_change_epoch == 100


def test_run_five_keeps_its_own_numbers() -> None:
    run = resolve(300, 250, flat_epochs=70, warmup_steps=1000)
    assert (run.warmup_steps, run.flat_end_epoch, run.no_aug_epoch) == (1000, 70, 270)
    assert run.lr_factor(999) == run.lr_factor(70 * 250) == 1
    assert run.lr_factor(270 * 250) == 0.5
    averaging = resolve_ema(EmaOptions(), total_steps=run.total_steps)
    assert (averaging.decay, averaging.warmup_steps) == (pytest.approx(1 - 1 / 7500), 750)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"flat_epochs": 10},
            "schedule.flat_epochs: got 10, but the final stage begins after 9 epochs.",
        ),
        (
            {"warmup_steps": 2000},
            "schedule.warmup_steps: got 2000, more than half of the run's 1000 steps.",
        ),
        (
            {"augment_start_epoch": 11},
            "schedule.augment_start_epoch: got 11, but the final stage begins after 9 epochs.",
        ),
        (
            {"augment_start_epoch": 6, "mix_end_epoch": 3},
            "schedule.mix_end_epoch: got 3, but mosaic and mix-up begin after 6 epochs.",
        ),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_with_the_timeline(options: dict[str, int], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(10, 100, **options)
    lines = str(caught.value).splitlines()
    assert problem in lines
    assert "Change it, or leave it 'auto' to follow from epochs. The timeline would be:" in lines
    assert any(line.endswith("10 epochs of 100 steps = 1000 steps") for line in lines)


def test_what_follows_from_a_late_start_of_augmentation_fits_the_run() -> None:
    run = resolve(8, 10, augment_start_epoch=5, no_aug_epochs=0)
    assert (run.augment_start_epoch, run.flat_end_epoch, run.no_aug_epoch) == (5, 8, 8)


@pytest.mark.parametrize(
    ("epochs", "final", "half"), [(132, 12, 64), (102, 12, 49), (101, 10, 49), (68, 8, 34), (58, 8, 29)]
)
def test_mixing_ends_where_the_reference_ends_it(epochs: int, final: int, half: int) -> None:
    run = resolve(epochs, 100, no_aug_epochs=final, augment_start_epoch=4)
    assert (run.mix_end_epoch, run.flat_end_epoch) == (half, half)


def test_several_contradictions_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(10, 100, flat_epochs=10, warmup_steps=5000, augment_start_epoch=11)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[:3]] == [
        "schedule.flat_epochs",
        "schedule.warmup_steps",
        "schedule.augment_start_epoch",
    ]


def test_the_timeline_is_described_in_lines() -> None:
    text = resolve(10, 100, warmup_steps=50, flat_epochs=5).describe()
    assert "warm-up               steps 1 to 50" in text
    assert "flat learning rate    epochs 1 to 5" in text
    assert "falling to            0.5 of it, epochs 6 to 9" in text
    assert "second matching cost  from epoch 9" in text
    assert "final stage           epochs 10 to 10" in text
    assert "warm-up               none" in resolve(1, 1).describe()
    assert "second matching cost  never" in resolve(1, 1).describe()


def test_averaging_set_by_hand_is_kept() -> None:
    averaging = resolve_ema(EmaOptions(decay=0.5, warmup_steps=7), total_steps=100_000)
    assert (averaging.decay, averaging.warmup_steps) == (0.5, 7)
    long = resolve_ema(EmaOptions(), total_steps=1_000_000)
    assert (long.decay, long.warmup_steps) == (0.9999, 1000)


@pytest.mark.parametrize(("epochs", "no_aug"), [(10, 10), (10, 12), (1, 5)])
def test_a_final_stage_as_long_as_the_run_is_refused(epochs: int, no_aug: int) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(epochs, 100, no_aug_epochs=no_aug)
    wrong = f"schedule.no_aug_epochs: got {no_aug}, but the run has {count('epoch', epochs)}: none is left"
    assert str(caught.value).startswith(wrong)
