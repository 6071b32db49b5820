"""Checks of ranges for the dataclasses of options."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deim.errors import ConfigError, shorten

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Bound:
    """The largest value of a count or a size; above it is a slip of the hand, or a machine that hangs."""

    most: int
    reason: str


SEED = Bound(2**32 - 1, "NumPy takes seeds of 32 bits")
EPOCHS = Bound(100_000, "no schedule is longer")
STEPS = Bound(100_000_000, "no run has more steps")
SIDE_PX = Bound(8192, "an input of that side fits no memory")
IMAGE_PX = Bound(65_535, "JPEG knows no longer side")
IMAGES_AT_ONCE = Bound(16_384, "they are in memory at the same time")
IMAGES_OF_STEP = Bound(1_000_000, "no optimizer step has more images")
IMAGES = Bound(1_000_000, "more images are not of use, and fill a disk")
PROCESSES = Bound(256, "each is a process or thread with its own memory")
MEMORY_MB = Bound(16 * 2**20, "that is 16 TiB")
DAY_S = Bound(86_400, "that is a day")
WIDTH = Bound(65_536, "no layer of that width fits a memory")
LAYERS = Bound(1024, "no model is deeper")
HEADS = Bound(1024, "no layer has more")
QUERIES = Bound(100_000, "attention grows with their square")
RESAMPLES = Bound(1_000_000, "intervals do not change any more")
REPEATS = Bound(1000, "more repeats change nothing")


def check(problems: Sequence[tuple[bool, str]]) -> None:
    """Raise one ConfigError with the message, `name: what is wrong`, of each problem that is there."""
    wrong = [message for is_wrong, message in problems if is_wrong]
    if wrong:
        raise ConfigError("\n".join(wrong))


def below(bound: float, **values: float | str | None) -> list[tuple[bool, str]]:
    """Return the problems of values below `bound`; `auto` and null are never below it."""
    return [
        (value < bound, f"{name}: got {value}, needs at least {bound}")
        for name, value in values.items()
        if isinstance(value, (int, float))
    ]


def outside(
    least: int, bound: Bound, **values: int | float | str | tuple[int, ...] | None
) -> list[tuple[bool, str]]:
    """Return the problems of counts and sizes below `least` or above the bound; `auto` and null have none."""
    problems = []
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        sizes = [number for number in numbers if isinstance(number, (int, float))]
        got = list(sizes) if isinstance(value, tuple) else value
        problems.append((any(size < least for size in sizes), f"{name}: got {got}, needs at least {least}"))
        needs = f"needs at most {bound.most}: {bound.reason}"
        problems.append((any(size > bound.most for size in sizes), f"{name}: got {shorten(got)}, {needs}"))
    return problems


def as_hw(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width, in pixels, of a side or of both."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def not_input_size(image_size: int | tuple[int, int]) -> list[tuple[bool, str]]:
    """Return the problems of an option `image_size`: a side of the network input in pixels, or both."""
    height, width = as_hw(image_size)
    nearest = "x".join(str(max(64, round(side / 32) * 32)) for side in (height, width))
    return [
        (
            height < 64 or width < 64 or height % 32 != 0 or width % 32 != 0,
            f"image_size: got {height}x{width}, both must be multiples of 32 and at least 64; the nearest "
            f"are {nearest}",
        ),
        *outside(0, SIDE_PX, image_size=(height, width)),
    ]


def not_positive(**values: float) -> list[tuple[bool, str]]:
    """Return the problems of values that are not above 0."""
    return [(value <= 0, f"{name}: got {value}, must be above 0") for name, value in values.items()]


def not_fraction(**values: float) -> list[tuple[bool, str]]:
    """Return the problems of values outside [0, 1]."""
    return [(not 0 <= value <= 1, f"{name}: got {value}, needs [0, 1]") for name, value in values.items()]
