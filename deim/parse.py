"""The one door for each kind of text file: whatever a damaged or hostile file raises becomes one message."""

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import numpy as np
import yaml

from deim.errors import DataError, DeimError

MAX_YAML_NODES: Final = 200_000
"""Maximum number of values of a YAML file with its aliases followed; a short file can stand for billions."""
MAX_DEPTH: Final = 64
"""Maximum depth of lists and objects in each other; what is read later may recurse as deep."""
TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep"
MAX_DIGITS: Final = 300
"""Maximum length of an integer in YAML; a longer one fits no option."""
LONE_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
"""Characters that neither a file name nor a file in UTF-8 can hold."""
NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
MALFORMED: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
"""Errors of PyYAML for a value that is not of the type that its tag names."""


def read_text(path: Path, *, error: type[DeimError] = DataError) -> str:
    """Read a text file in UTF-8, or in UTF-16 as some Windows programs write it.

    Raises:
        DeimError: If it cannot be read, is not a regular file, or is in another encoding.
        FileNotFoundError: If there is no such file.
    """
    try:
        if is_special(path):
            raise error(f"{path}: not a regular file. Name a file that can be read to its end.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}).") from None
    except ValueError as problem:
        raise error(f"{path!r}: cannot be the name of a file ({problem}).") from None
    is_utf16 = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not a text file in UTF-8 or UTF-16 ({problem}). Save it in UTF-8.") from None


def is_special(path: Path) -> bool:
    """Whether there is a device, a pipe or the like, which may have no end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def read_lines(path: Path, *, error: type[DeimError] = DataError) -> list[str]:
    """Return the stripped lines of a text file that are not empty; see `read_text` for the errors."""
    return [line.strip() for line in read_text(path, error=error).splitlines() if line.strip()]


def parse_json(text: str, where: str, *, error: type[DeimError] = DataError) -> object:
    """Parse JSON.

    Args:
        text: Content of a file, or a line.
        where: File, for the message.
        error: Type of the error.

    Raises:
        DeimError: If it is not JSON, is nested too deeply, or has text that no file can hold.
    """
    try:
        content: object = json.loads(text)
        if LONE_SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        if _is_deep(text):
            raise RecursionError
    except ValueError as problem:
        raise error(f"{where}: not a JSON file ({problem}).") from None
    except RecursionError:
        raise error(f"{where}: not a JSON file that can be read ({TOO_DEEP}).") from None
    return content


def _is_deep(text: str) -> bool:
    """Whether more than `MAX_DEPTH` brackets of JSON are open at a place; those within quotes count, too."""
    brackets = np.frombuffer(text.encode("utf-8", "replace").translate(None, NOT_BRACKETS), dtype=np.uint8)
    is_opening = (brackets == ord("[")) | (brackets == ord("{"))
    return bool(np.cumsum(np.where(is_opening, 1, -1)).max(initial=0) > MAX_DEPTH)


def read_json(path: Path, *, error: type[DeimError] = DataError) -> object:
    """Read a JSON file; see `read_text` and `parse_json` for the errors."""
    return parse_json(read_text(path, error=error), str(path), error=error)


class YamlLoader(yaml.SafeLoader):
    """SafeLoader whose errors all name their place, and that stops at `MAX_DEPTH`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node with all that is below it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """Return the value of a node; a malformed one is an error of YAML."""
        try:
            return super().construct_object(node, deep=deep)
        except MALFORMED:
            raise _problem(
                node, f"got {node.value!r:.80}, not a valid {node.tag.rpartition(':')[2]}"
            ) from None


def parse_yaml(
    text: str,
    where: str,
    *,
    error: type[DeimError] = DataError,
    loader: type[YamlLoader] = YamlLoader,
) -> object:
    """Parse YAML of the safe subset.

    Args:
        text: Content of a file, or a value in one line.
        where: File, for the message.
        error: Type of the error.
        loader: How scalars are read.

    Raises:
        DeimError: If it is not YAML, a value is malformed or no text, an alias contains itself, the nesting
            is deeper than `MAX_DEPTH`, or the aliases stand for more than `MAX_YAML_NODES` values.
    """
    try:
        instance = loader(text)
        try:
            node = instance.get_single_node()
            if node is None:
                return None
            _measure(node, {})
            content: object = instance.construct_document(node)
        finally:
            instance.dispose()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark and "\n" in text else where
        parts = [getattr(problem, "context", None), getattr(problem, "problem", None)]
        reason = ", ".join(part for part in parts if part) or " ".join(str(problem).split())
        raise error(f"{place}: not valid YAML: {reason}.") from None
    except (*MALFORMED, RecursionError) as problem:
        raise error(f"{where}: not valid YAML: {problem}.") from None
    return content


@dataclass(frozen=True, slots=True)
class _Extent:
    """Number of values of a node, itself included, and of its levels."""

    values: int
    levels: int


def _measure(node: yaml.Node, known: dict[int, _Extent | None]) -> _Extent:
    """Check a node and measure it with its aliases followed; `known` has None for the nodes around it."""
    if id(node) in known:
        extent = known[id(node)]
        if extent is None:
            raise _problem(node, "an alias contains itself")
        return extent
    known[id(node)] = None
    children = node.value if isinstance(node, yaml.CollectionNode) else ()
    flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    below = [_measure(child, known) for child in flat]
    levels = 1 + max((child.levels for child in below), default=0)
    extent = _Extent(1 + sum(child.values for child in below), levels)
    if extent.levels > MAX_DEPTH:
        raise _problem(node, TOO_DEEP)
    if extent.values > max(MAX_YAML_NODES, len(known)):
        raise _problem(node, f"its aliases stand for more than {MAX_YAML_NODES} values")
    if isinstance(node, yaml.ScalarNode):
        if NO_TEXT.search(node.value):
            raise _problem(node, f"got {node.value!r:.80}, which no text file can hold")
        if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise _problem(node, f"got an integer of {len(node.value)} digits")
    known[id(node)] = extent
    return extent


def _problem(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file; its tags become lower case, without namespace.

    Raises:
        DataError: If it cannot be read or is not XML.
        FileNotFoundError: If there is no such file.
    """
    read_error = f"{path}: not an XML file"
    try:
        if is_special(path):
            raise DataError(f"{read_error}: not a regular file.")
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise DataError(f"{read_error} ({problem.strerror}). Repair or replace it.") from None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as problem:
        raise DataError(f"{read_error} ({problem}). Repair or replace it.") from None
    for element in root.iter():
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2].rpartition(":")[2].lower()
    return root
