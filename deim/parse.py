"""The one door for each kind of text file: whatever a damaged or hostile file raises becomes one message."""

import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import yaml

from deim.errors import DataError, DeimError

MAX_YAML_NODES = 200_000
"""Maximum number of values of a YAML file with its aliases followed; a short file can stand for billions."""
LONE_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(path: Path, *, error: type[DeimError] = DataError) -> str:
    """Read a text file in UTF-8, or in UTF-16 as some Windows programs write it.

    Raises:
        DeimError: If it cannot be read, is not a regular file, or is in another encoding.
        FileNotFoundError: If there is no such file.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
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
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not a JSON file ({problem}).") from None
    return content


def read_json(path: Path, *, error: type[DeimError] = DataError) -> object:
    """Read a JSON file; see `read_text` and `parse_json` for the errors."""
    return parse_json(read_text(path, error=error), str(path), error=error)


def parse_yaml(
    text: str,
    where: str,
    *,
    error: type[DeimError] = DataError,
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
) -> object:
    """Parse YAML of the safe subset.

    Args:
        text: Content of a file, or a value.
        where: File, for the message.
        error: Type of the error.
        loader: How scalars are read.

    Raises:
        DeimError: If it is not YAML, a value is malformed, an alias contains itself, or the aliases
            stand for more than `MAX_YAML_NODES` values.
    """
    try:
        instance = loader(text)
        try:
            node = instance.get_single_node()
            if node is None:
                return None
            counts: dict[int, int] = {}
            if _count_nodes(node, counts) > max(MAX_YAML_NODES, len(counts)):
                raise error(f"{where}: its aliases stand for more than {MAX_YAML_NODES} values. Remove them.")
            content: object = instance.construct_document(node)
        finally:
            instance.dispose()
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise error(f"{where}: not a YAML file ({' '.join(str(problem).split())}).") from None
    return content


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Return the number of values below a node; `counts` has those of finished nodes, and 0 for open ones."""
    count = counts.get(id(node))
    if count == 0:
        raise ValueError("an alias contains itself")
    if count is None:
        counts[id(node)] = 0
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
        count = counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in flat)
    return count


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file; its tags become lower case, without namespace.

    Raises:
        DataError: If it cannot be read or is not XML.
        FileNotFoundError: If there is no such file.
    """
    read_error = f"{path}: not an XML file"
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
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
