"""Numbers in annotation files, in any spelling that can only mean one thing."""

import math
import re
from collections.abc import Sequence
from typing import Final

WHOLE_TEXT: Final = re.compile(r"-?\d+(\.0+)?", re.ASCII)
MAX_SIDE_PX = 2**31


def finite_number(value: object) -> float:
    """Return a finite number, also of text.

    Raises:
        TypeError: If it is neither a number nor text.
        ValueError: If it is not finite or no number; also OverflowError.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def whole_number(value: object, low: int = -(2**63), high: int = 2**63) -> int:
    """Return a whole number in [low, high), of `1`, `1.0`, `"1"` or `"1.0"`.

    Raises:
        TypeError: If it is neither a number nor text.
        ValueError: If it is not whole or out of range; also OverflowError.
    """
    if isinstance(value, str):
        if not WHOLE_TEXT.fullmatch(value.strip()):
            raise ValueError
        number = int(value.strip().partition(".")[0])
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif finite_number(value).is_integer():
        number = int(finite_number(value))
    else:
        raise ValueError
    if not low <= number < high:
        raise ValueError
    return number


def polygon_box(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Return left, top, width and height of the box around points, in their unit."""
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
