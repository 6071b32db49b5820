"""Checks of ranges for the dataclasses of options."""

from collections.abc import Sequence
from typing import Literal

from deim.errors import ConfigError

Auto = Literal["auto"]


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


def not_positive(**values: float) -> list[tuple[bool, str]]:
    """Return the problems of values that are not above 0."""
    return [(value <= 0, f"{name}: got {value}, must be above 0") for name, value in values.items()]


def not_fraction(**values: float) -> list[tuple[bool, str]]:
    """Return the problems of values outside [0, 1]."""
    return [(not 0 <= value <= 1, f"{name}: got {value}, needs [0, 1]") for name, value in values.items()]
