"""Groups of images that must stay in one split, such as those of a part, a lot or a camera."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from deim.errors import DataError
from deim.files import raise_listed


def find_groups(
    file_names: Sequence[str], *, pattern: str | None, table: Path | None, paths: Sequence[str] | None = None
) -> list[str] | None:
    """Return the group of each image by `groups_by_pattern` or `groups_by_table`; None if neither is given.

    Raises:
        DataError: If both are given, or an image has no group.
    """
    if pattern is not None and table is not None:
        raise DataError("--group-regex and --group-csv: got both. Give one of them.")
    if pattern is not None:
        return groups_by_pattern(file_names, pattern)
    return None if table is None else groups_by_table(file_names, table, paths=paths)


def groups_by_pattern(file_names: Sequence[str], pattern: str) -> list[str]:
    """Return the group of each image by a regular expression to search in its name.

    The group is the text that the parentheses match, joined by `|`, or the whole match if there are none.

    Raises:
        DataError: If the expression is wrong, or the group of a name is missing or empty.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group-regex: not a regular expression, got {pattern!r} ({error}).") from None
    matches = [expression.search(name) for name in file_names]
    groups = [() if match is None else match.groups() or (match.group(),) for match in matches]
    raise_listed(
        [
            f"--group-regex: {pattern!r} {'matches nothing' if matched else 'does not occur'} in image "
            f"{name!r}. Every image needs a group: correct the expression, or list groups with --group-csv."
            for name, matched in zip(file_names, groups, strict=True)
            if not any(matched)
        ]
    )
    return ["|".join(part or "" for part in matched) for matched in groups]


def groups_by_table(
    file_names: Sequence[str], path: Path, *, paths: Sequence[str] | None = None
) -> list[str]:
    """Return the group of each image by a table.

    Args:
        file_names: Names of all images.
        path: CSV file with the columns `file_name` and `group`.
        paths: Path of each image, which the table may use in place of the name.

    Raises:
        DataError: If the file cannot be read, lacks a column, an image or its group, or gives an image two
        groups.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}).") from None
    if not rows or not {"file_name", "group"} <= set(rows[0]):
        columns = ", ".join(map(str, rows[0])) if rows else "no rows"
        raise DataError(f"{path}: got {columns}. It needs the columns file_name and group, and rows.")
    group_of: dict[str, str] = {}
    problems = []
    for row in rows:
        name, group = row["file_name"] or "", (row["group"] or "").strip()
        if group_of.setdefault(name, group) != group:
            problems.append(
                f"{path}: image {name!r} is in group {group_of[name]!r} and in {group!r}. Keep one."
            )
    pairs = zip(file_names, paths or file_names, strict=True)
    keys = [name if name in group_of else other for name, other in pairs]
    problems += [
        f"{path}: image {name!r} has no row. Every image needs a group."
        for name, key in zip(file_names, keys, strict=True)
        if key not in group_of
    ]
    problems += [
        f"{path}: image {key!r} has an empty group. Fill in the cell."
        for key in dict.fromkeys(keys)
        if group_of.get(key) == ""
    ]
    raise_listed(problems)
    return [group_of[key] for key in keys]
