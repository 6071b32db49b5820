"""Phases of a run: they follow from the number of epochs, and what contradicts them is refused."""

import itertools

import pytest

from deim.engine.ema import EmaOptions, resolve_ema
from deim.engine.schedule import ScheduleOptions, Timeline, resolve_schedule
from deim.errors import ConfigError

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


def test_a_contradiction_is_refused_with_the_timeline() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(10, 100, augment_start_epoch=6, mix_end_epoch=3)
    lines = str(caught.value).splitlines()
    assert lines[0] == "schedule.mix_end_epoch: got 3, but mosaic and mix-up begin after 6 epochs."
    assert lines[1] == "Change it, or leave it 'auto' to follow from epochs. The timeline would be:"
    assert any(line.endswith("10 epochs of 100 steps = 1000 steps") for line in lines)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"flat_epochs": 10}, "flat_epochs 4 instead of 10"),
        ({"warmup_steps": 2000}, "warmup_steps 50 instead of 2000"),
        ({"augment_start_epoch": 11}, "augment_start_epoch 0 instead of 11"),
        ({"mix_end_epoch": 95}, "mix_end_epoch 4 instead of 95"),
        ({"no_aug_epochs": 10}, "no_aug_epochs 1 instead of 10"),
        (
            {"flat_epochs": 70, "warmup_steps": 501},
            "warmup_steps 50 instead of 501, flat_epochs 4 instead of 70",
        ),
    ],
    ids=str,
)
def test_what_is_too_long_for_the_run_becomes_automatic_with_one_warning(
    options: dict[str, int], change: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve(10, 100, **options) == resolve(10, 100)
    assert caplog.messages == [f"schedule: {change}, to fit into 10 epochs of 100 steps"]


@pytest.mark.parametrize("images", [1, 2, 5, 20, 72])
@pytest.mark.parametrize("epochs", [1, 2, 3, 30])
@pytest.mark.parametrize(
    "options", [{"warmup_steps": 2000, "flat_epochs": 70}, {"no_aug_epochs": 12}, {}], ids=str
)
def test_the_numbers_of_a_long_run_fit_a_small_set(images: int, epochs: int, options: dict[str, int]) -> None:
    run = resolve(epochs, -(-images // 8), **options)
    assert run.warmup_steps <= run.total_steps / 2
    assert run.flat_end_epoch <= run.no_aug_epoch <= epochs
    assert 0 < run.lr_factor(0) <= max(map(run.lr_factor, range(run.total_steps))) == 1


def test_numbers_that_just_fit_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    run = resolve(10, 100, warmup_steps=500, no_aug_epochs=9, flat_epochs=1)
    assert (run.warmup_steps, run.no_aug_epoch, run.flat_end_epoch) == (500, 1, 1)
    assert caplog.messages == []


def test_what_follows_from_a_late_start_of_augmentation_fits_the_run() -> None:
    run = resolve(8, 10, augment_start_epoch=5, no_aug_epochs=0)
    assert (run.augment_start_epoch, run.flat_end_epoch, run.no_aug_epoch) == (5, 8, 8)


@pytest.mark.parametrize(
    ("epochs", "final", "half"), [(132, 12, 64), (102, 12, 49), (101, 10, 49), (68, 8, 34), (58, 8, 29)]
)
def test_mixing_ends_where_the_reference_ends_it(epochs: int, final: int, half: int) -> None:
    run = resolve(epochs, 100, no_aug_epochs=final, augment_start_epoch=4)
    assert (run.mix_end_epoch, run.flat_end_epoch) == (half, half)


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
