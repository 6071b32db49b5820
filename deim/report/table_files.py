"""Tables as files of other programs: CSV for spreadsheets, LaTeX for papers."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

from deim.report.tables import DASH, Cell, Table

LATEX_NAME: Final = "tables.tex"
"""File in the folder of a report or a comparison."""
FORMULA_STARTS: Final = "=+-@\t"
"""First characters of a text that a spreadsheet may run as a formula."""
LATEX_TEXTS: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "`": r"\textasciigrave{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        DASH: "--",
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        # Several of these are another sign, and [ or * after a line end is an option.
        **{symbol: f"{{{symbol}}}" for symbol in "-'[*"},
    }
)
"""What LaTeX needs for a character that it does not print as it is."""


def format_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Lay rows with the same keys out as CSV: 4 significant digits, whole numbers in full, None empty.

    Text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _csv_cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case str():
            text = value.replace("\r\n", "\n").replace("\r", "\n")  # only these line ends are quoted
            # Spaces before it, and the wide forms of = and @, do not stop a formula.
            start = unicodedata.normalize("NFKC", text.lstrip(" \n\xa0")[:1])
            return f"'{text}" if start and start in FORMULA_STARTS else text
    return str(value)


def format_latex(tables: Sequence[Table]) -> str:
    """Lay tables out as `tabular` environments with their titles as captions; they need no package.

    Second lines of cells and notes are left out. Names beyond Latin letters need XeLaTeX or LuaLaTeX.
    """
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    first = table.rows[0] if table.rows else [Cell(text="", is_text=True)] * len(table.heads)
    columns = "".join("l" if cell.is_text else "r" for cell in first)
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows]
    if table.has_total:
        rows.insert(-1, r"\hline")
    heads = " & ".join(map(_latex_text, table.heads)) + r" \\"
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        *(r"\hline", heads, r"\hline", *rows, r"\hline"),
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    sign = cell.text[:1]
    if not cell.is_text and sign and sign in "+-":
        return f"${sign}${_latex_text(cell.text[1:])}"
    return _latex_text(cell.text)


def _latex_text(text: str) -> str:
    words = ("".join(filter(str.isprintable, word)) for word in text.split())
    return " ".join(words).translate(LATEX_TEXTS)
