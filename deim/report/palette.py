"""How charts look, those of a dataset and those of a report alike."""

from typing import Any, Final

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
    # A `$` in a name is a dollar, not the start of a formula.
    "text.parse_math": False,
    # The same picture gives the same file.
    "svg.hashsalt": "deim",
}
"""For `matplotlib.rc_context`."""
