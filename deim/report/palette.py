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
CORRECT_COLOR: Final[Color] = CLASS_COLORS[4]
WRONG_COLOR: Final[Color] = CLASS_COLORS[5]
"""Blue and the orange-red that the palette calls vermilion."""
IGNORED_COLOR: Final[Color] = (120, 120, 120)
MARK_COLOR: Final[Color] = CLASS_COLORS[3]
"""Frame around the box that an image is about: yellow."""

BLUE, RED, GRAY = "#0072b2", "#d55e00", "#707070"
"""`CORRECT_COLOR`, `WRONG_COLOR` and a gray that can be read on white."""
DASHES = ((5, 2), (1, 1.2), (6, 2, 1, 2), (3, 1, 1, 1, 1, 1))
LINE_STYLES: Final[tuple[Any, ...]] = ("-", *((0, dashes) for dashes in DASHES))
"""Their number and that of the colors have no common factor: 35 lines differ in color or style, and
neighbors in both."""

CHART_STYLE: Final[Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
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
    # Text stays text: it can be searched, copied, and set in the fonts of the reader.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
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


def line_style(index: int) -> Any:
    """Return the style of a line of a class or a run, which a reader without colors can tell apart."""
    return LINE_STYLES[index % len(LINE_STYLES)]
