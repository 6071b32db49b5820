"""The rooms stand in one order, and nothing imports a room above its own."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"deim", "multimodal", "tools"}
FLOORS = [
    {"deim.errors"},
    {"deim.structures", "deim.files"},
    {"deim.parse", "deim.records", "deim.migration"},
    {"deim.boxes", "deim.language"},
    {"deim.config"},
    {"deim.data", "deim.model"},
    {"deim.loss"},
    {"deim.engine"},
    {"deim.inference"},
    {"deim.metrics"},
    {"deim.report"},
    {"deim.curation", "deim.analysis", "deim.sweep", "deim.deploy"},
    {"multimodal"},
    {"deim.cli"},
    {"multimodal.cli"},
    {"tools"},
]
"""A room may import itself and the rooms of the floors before its own.

`deim.cli` knows `multimodal.cli` only by name.
"""
CONTENTS = {"deim/config/schema.py", "deim/config/loader.py"}
"""The table of contents of all options: it imports the rooms whose options an experiment consists of."""
FILES = sorted(path for room in PACKAGES for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str:
    has_rooms = module.startswith(("deim.", "multimodal.cli"))
    return ".".join(module.split(".")[:2]) if has_rooms else module.split(".")[0]


def floor_of(module: str) -> int:
    room = room_of(module)
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"{module}: in no room. Give its room a place in FLOORS.")


def imported_modules(path: Path, *, only_top_level: bool = False) -> Iterator[tuple[int, str]]:
    """Line and name of each module of this project that a file imports."""
    module_node = ast.parse(path.read_text(encoding="utf-8"))
    nodes = module_node.body if only_top_level else ast.walk(module_node)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            names = [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name) for name in names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_imports_a_room_above_its_own(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module in ("deim.__init__", "deim.__main__") or name_of(path) in CONTENTS:
        return
    floor = floor_of(module)
    for line, name in imported_modules(path):
        if name.split(".")[0] not in ("deim", "multimodal", "tools", "tests") or name == "deim":
            continue
        is_below = floor_of(name) < floor or room_of(name) == room_of(module)
        assert is_below, f"{name_of(path)}:{line}: imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_clip_and_other_extras_are_imported_inside_functions(path: Path) -> None:
    extras = {"open_clip", "huggingface_hub", "albumentations"}
    modules = {name.split(".")[0] for _, name in imported_modules(path, only_top_level=True)}
    assert modules.isdisjoint(extras)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-2] != "tools"], ids=name_of)
def test_no_file_prints_but_commands(path: Path) -> None:
    if "cli" in path.relative_to(ROOT).parts:
        return
    module_node = ast.parse(path.read_text(encoding="utf-8"))
    lines = [
        node.lineno
        for node in ast.walk(module_node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert lines == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_package_imported_at_once_is_installed_with_this_one(path: Path) -> None:
    """What an extra installs may only be imported where it is used."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.split(r"[^\w-]", text)[0].lower() for text in project["dependencies"]}
    distributions = packages_distributions()
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    for package in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - PACKAGES:
        assert not installed.isdisjoint(name.lower() for name in distributions[package]), package
