"""The phases of a run, resolved from the number of epochs."""

import logging
import math
from dataclasses import dataclass, replace

from deim.config.checks import EPOCHS, STEPS, Auto, check, not_fraction, outside
from deim.data.augment.options import LowResolutionOptions
from deim.errors import ConfigError
from deim.files import count

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleOptions:
    """Phases of a run. `auto` follows from `epochs` by the reference ratios; see `resolve_schedule`.

    A number that is too large for the run is replaced by that of `auto`, with a warning.
    """

    warmup_steps: int | Auto = "auto"
    """Optimizer steps of quadratic warm-up; auto: 2000, at most 5 % of the run."""
    flat_epochs: int | Auto = "auto"
    """Epochs until the learning rate starts to fall; auto: half of the augmented epochs, plus 4 of 100."""
    no_aug_epochs: int | Auto = "auto"
    """Final epochs without augmentation, at the lowest learning rate; auto: a tenth of `epochs`."""
    augment_start_epoch: int | Auto = "auto"
    """First epoch with augmentation other than flips and sizes; auto: 4 of 100 epochs."""
    mix_end_epoch: int | Auto = "auto"
    """First epoch without mosaic and mix-up; auto: half of the augmented epochs after the start."""
    matcher_change_epoch: int | Auto = "auto"
    """First epoch with the second matching cost; auto: nine tenths of the augmented epochs."""
    final_lr_ratio: float = 0.5
    """Lowest learning rate as a share of the flat one, in [0, 1]."""
    low_resolution: LowResolutionOptions | None = None
    """First epochs with smaller inputs; null trains at `image_size` from the start."""

    def __post_init__(self) -> None:
        check(
            [
                *outside(0, STEPS, warmup_steps=self.warmup_steps),
                *outside(
                    0,
                    EPOCHS,
                    flat_epochs=self.flat_epochs,
                    no_aug_epochs=self.no_aug_epochs,
                    augment_start_epoch=self.augment_start_epoch,
                    mix_end_epoch=self.mix_end_epoch,
                    matcher_change_epoch=self.matcher_change_epoch,
                ),
                *not_fraction(final_lr_ratio=self.final_lr_ratio),
            ]
        )


WARMUP_STEPS = 2000
WARMUP_SHARE = 0.05
NO_AUG_SHARE = 0.1
AUGMENT_START_SHARE = 0.04
MATCHER_CHANGE_SHARE = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Phases of a run. Epochs and steps count from 0; an `_epoch` is the first of its phase."""

    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    """Optimizer steps of quadratic warm-up."""
    augment_start_epoch: int
    """Augmentation other than flips and sizes begins; see `deim/data/augment/pipeline.py`."""
    flat_end_epoch: int
    """The learning rate begins to fall."""
    matcher_change_epoch: int
    """The second matching cost begins."""
    no_aug_epoch: int
    """The final stage begins: no augmentation but flips, lowest learning rate."""
    final_lr_ratio: float
    """Lowest learning rate as a share of the flat one."""
    mix_end_epoch: int = 0
    """End of mosaic and mix-up; 0 in older checkpoints."""
    low_resolution: LowResolutionOptions | None = None
    """First epochs with smaller inputs; None for none, and in older checkpoints."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def lr_factor(self, step: int) -> float:
        """Return the share of the flat learning rate at an optimizer step (0-based, over the whole run).

        Returns:
            Quadratic warm-up to 1, then 1, then half a cosine down to `final_lr_ratio`, which stays.

        Source:
            The flat-cosine schedule of RTMDet (arXiv:2212.07784), as DEIM uses it.
        """
        flat_end, final = (end * self.steps_per_epoch for end in (self.flat_end_epoch, self.no_aug_epoch))
        if step < flat_end:
            factor = 1.0
        elif step >= final:
            factor = self.final_lr_ratio
        else:
            cosine = math.cos(math.pi * (step - flat_end) / (final - flat_end))
            factor = self.final_lr_ratio + (1 - self.final_lr_ratio) * 0.5 * (1 + cosine)
        return factor * (min(1.0, (step + 1) / self.warmup_steps) ** 2 if self.warmup_steps else 1.0)

    def describe(self) -> str:
        """Return the timeline in lines for the console, in which epochs and steps count from 1."""
        matcher_change = f"from epoch {self.matcher_change_epoch + 1}"
        rows = [
            (
                "run",
                f"{count('epoch', self.epochs)} of {count('step', self.steps_per_epoch)} = "
                f"{count('step', self.total_steps)}",
            ),
            *([] if self.low_resolution is None else [_low_resolution_row(self.low_resolution)]),
            ("warm-up", f"steps 1 to {self.warmup_steps}" if self.warmup_steps else "none"),
            ("flat learning rate", _span(0, self.flat_end_epoch)),
            ("falling to", f"{self.final_lr_ratio:g} of it, {_span(self.flat_end_epoch, self.no_aug_epoch)}"),
            ("second matching cost", matcher_change if self.matcher_change_epoch < self.epochs else "never"),
            ("final stage", _span(self.no_aug_epoch, self.epochs)),
        ]
        return "\n".join(f"  {name:<22}{text}" for name, text in rows)


def resolve_schedule(
    options: ScheduleOptions,
    *,
    epochs: int,
    steps_per_epoch: int,
    has_stages: bool = True,
    before: Timeline | None = None,
) -> Timeline:
    """Turn the options of a schedule into epochs and steps; `auto` follows from `epochs`.

    A number given by hand that is too large for the run, as in a short trial or on a few images, is replaced
    by that of `auto`; one warning names all of them.

    Args:
        options: The block `schedule`.
        epochs: Length of the run.
        steps_per_epoch: Optimizer steps an epoch.
        has_stages: Whether augmentation starts late and ends early, and the matching cost changes.
        before: Timeline of a run that is resumed, perhaps with more epochs: its warm-up and its start of
            augmentation are not made longer, so that they are not repeated.

    Raises:
        ConfigError: If two phases given by hand contradict each other; the message holds the timeline.
    """
    if not has_stages:
        options = _without_stages(options, epochs)
    replaced: list[str] = []

    def resolve(name: str, automatic: int, most: int) -> int:
        value: int | str = getattr(options, name)
        if isinstance(value, str) or value > most:
            replaced.extend([] if isinstance(value, str) else [f"{name} {automatic} instead of {value}"])
            return automatic
        return value

    total_steps = epochs * steps_per_epoch
    no_aug = resolve("no_aug_epochs", round(NO_AUG_SHARE * epochs), max(1, epochs - 1))
    augmented = epochs - no_aug
    start = round(AUGMENT_START_SHARE * augmented)
    warmup_steps = min(WARMUP_STEPS, int(WARMUP_SHARE * total_steps))
    if before is not None:
        warmup_steps = min(warmup_steps, before.warmup_steps)
        start = min(start, before.augment_start_epoch)
    start = resolve("augment_start_epoch", start, augmented)
    half = min(start + max(1, augmented // 2), augmented)
    timeline = Timeline(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=resolve("warmup_steps", warmup_steps, total_steps // 2),
        augment_start_epoch=start,
        mix_end_epoch=resolve("mix_end_epoch", half, augmented),
        flat_end_epoch=resolve("flat_epochs", half, augmented),
        matcher_change_epoch=_or_auto(options.matcher_change_epoch, round(MATCHER_CHANGE_SHARE * augmented)),
        no_aug_epoch=augmented,
        final_lr_ratio=options.final_lr_ratio,
        low_resolution=options.low_resolution,
    )
    if timeline.mix_end_epoch < start:
        raise ConfigError(
            f"schedule.mix_end_epoch: got {timeline.mix_end_epoch}, but mosaic and mix-up begin after "
            f"{count('epoch', start)}.\nChange it, or leave it 'auto' to follow from epochs. The timeline "
            f"would be:\n{timeline.describe()}"
        )
    if replaced:
        length = f"{count('epoch', epochs)} of {count('step', steps_per_epoch)}"
        logger.warning("schedule: %s, to fit into %s", ", ".join(replaced), length)
    return timeline


def _without_stages(options: ScheduleOptions, epochs: int) -> ScheduleOptions:
    """Return the options of a task with the same augmentation and matching cost in all epochs."""
    stages = {
        "no_aug_epochs": 0,
        "augment_start_epoch": 0,
        "mix_end_epoch": epochs,
        "matcher_change_epoch": epochs,
    }
    given = {name: getattr(options, name) for name in stages}
    check(
        [
            (
                given[name] not in ("auto", value),
                f"schedule.{name}: got {given[name]}. This task has no such stage. Leave it 'auto'.",
            )
            for name, value in stages.items()
        ]
    )
    flat_epochs = _or_auto(options.flat_epochs, (epochs + 1) // 2)
    return replace(options, flat_epochs=flat_epochs, low_resolution=options.low_resolution, **stages)


def _or_auto(value: int | str, automatic: int) -> int:
    return automatic if isinstance(value, str) else value


def _low_resolution_row(low: LowResolutionOptions) -> tuple[str, str]:
    height, width = low.image_size_hw
    return "low resolution", f"{height}x{width} px, {_span(0, low.epochs)}"


def _span(start: int, end: int) -> str:
    """Return the epochs from `start` to before `end`, counted from 1."""
    return f"epochs {start + 1} to {end}" if end > start else "none"
