"""The colors of all images and charts, and the style of the charts."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
"""Red, green, blue in 0..255."""

CLASS_COLORS: Final[tuple[Color, ...]] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito, Color Universal Design (2008), without black: distinct to color-blind readers."""
PAPER, INK, FAINT, EMPTY = (255, 255, 255), (25, 25, 25), (105, 105, 105), (232, 232, 232)
CORRECT_COLOR: Final[Color] = (0, 90, 181)
WRONG_COLOR: Final[Color] = (220, 50, 32)
"""Blue and red that color-blind readers can tell apart."""
IGNORED_COLOR: Final[Color] = (120, 120, 120)
MARK_COLOR: Final[Color] = (255, 214, 0)
"""Frame around the box that an image is about."""

BLUE, RED, GRAY = "#005ab5", "#dc3220", "#8a8a8a"
LINE_STYLES = ("-", "--", ":", "-.")

CHART_STYLE: Final[Any] = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    # A `$` in a name is a dollar sign, not the start of a formula.
    "text.parse_math": False,
    # The same chart gives the same file.
    "svg.hashsalt": "deim",
}
"""For `matplotlib.rc_context`."""


def class_color(label: int) -> Color:
    """Return the color of a class in all images; the palette repeats after seven classes."""
    return CLASS_COLORS[label % len(CLASS_COLORS)]


def outcome_colors(is_correct: NDArray[np.bool_], is_ignored: NDArray[np.bool_]) -> list[Color]:
    """Return the color of each of N boxes: blue for correct, gray for ignored, red for wrong ones."""
    return [
        CORRECT_COLOR if correct else IGNORED_COLOR if ignored else WRONG_COLOR
        for correct, ignored in zip(is_correct.tolist(), is_ignored.tolist(), strict=True)
    ]


def chart_color(index: int) -> tuple[float, float, float]:
    """Return the color of a class or a run in all charts: red, green, blue in [0, 1]."""
    red, green, blue = class_color(index)
    # Lines in the palette's yellow are hard to see on paper.
    dim = 0.75 if min(red, green) > 200 else 1.0
    return red * dim / 255, green * dim / 255, blue * dim / 255


def line_style(index: int) -> str:
    """Return the line style that tells lines of the same color apart."""
    return LINE_STYLES[index // len(CLASS_COLORS) % len(LINE_STYLES)]
