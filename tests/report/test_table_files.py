"""Tables that other programs open: numbers, hostile names, and what each needs."""

import csv
import io
import re

import pytest

from deim.report.table_files import format_csv, format_latex
from deim.report.tables import Cell, Table


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (0.123456, "0.1235"),
        (2 / 3, "0.6667"),
        (1.0, "1"),
        (-0.000123456, "-0.0001235"),
        (9_700_123, "9700123"),
        (None, ""),
    ],
)
def test_numbers_have_four_significant_digits_and_counts_all(value: object, cell: str) -> None:
    assert read(format_csv([{"x": value, "n": 1}])) == [["x", "n"], [cell, "1"]]


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+49 part", "-crack", "@SUM(A1)", "\tpit", " =HYPERLINK(1)", "\uff1d1+1", '=cmd|"/c calc"!A1'],
)
def test_a_name_is_never_a_formula(name: str) -> None:
    rows = read(format_csv([{"name": name, "n": -3}]))
    assert rows == [["name", "n"], [f"'{name}", "-3"]]


@pytest.mark.parametrize("name", ["two\nlines", "mac\rline", "a,b", 'a "b" c', "dos\r\nline", "裂纹; x"])
def test_a_name_stays_in_its_cell(name: str) -> None:
    rows = read(format_csv([{"name": name, "n": 1}, {"name": "pit", "n": 2}]))
    assert rows[1:] == [[name.replace("\r\n", "\n").replace("\r", "\n"), "1"], ["pit", "2"]]


def table(*names: str) -> Table:
    rows = [[Cell(text=name, is_text=True), Cell(text="-0.125", small="-0.2 to 0.1")] for name in names]
    return Table(heads=["class", "change, %"], rows=rows, title="50 % & more_or_less", has_total=True)


def test_a_latex_table_needs_no_package_and_has_a_line_before_its_total() -> None:
    lines = format_latex([table("pit", "all")]).splitlines()
    assert "\\usepackage" not in lines
    assert r"\caption{50 \% \& more\_or\_less}" in lines
    assert r"\begin{tabular}{lr}" in lines
    assert lines[4:11] == [
        r"\hline",
        r"class & change, \% \\",
        r"\hline",
        r"pit & $-$0.125 \\",
        r"\hline",
        r"all & $-$0.125 \\",
        r"\hline",
    ]
    assert not re.search("toprule|midrule|bottomrule", "".join(lines))


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("oil_spot #2", r"oil\_spot \#2"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        ("~x^2 < $3", r"\textasciitilde{}x\textasciicircum{}2 \textless{} \$3"),
        ("[edge]*", "{[}edge]{*}"),
        ("end \\\\\n% no comment", r"end \textbackslash{}\textbackslash{} \% no comment"),
        ("nul\x00\x1bsign", "nulsign"),
        ("kratzer--tief", "kratzer{-}{-}tief"),
    ],
)
def test_names_are_printed_as_they_are_in_latex(name: str, printed: str) -> None:
    lines = format_latex([table(name, "all")]).splitlines()
    assert lines[7] == rf"{printed} & $-$0.125 \\"


def test_an_empty_table_is_still_a_table() -> None:
    text = format_latex([Table(heads=["option", "a", "b"], rows=[])])
    assert r"\begin{tabular}{lll}" in text
    assert r"\end{tabular}" in text
