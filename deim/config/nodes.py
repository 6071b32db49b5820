"""YAML files and overrides → one merged tree, in which every value remembers where it was set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import yaml

from deim.errors import ConfigError

OVERRIDE: Final = "--set"
"""The place of values that were given on the command line."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it was set; the value of a block is a dict of nodes."""

    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and leaves `off`, `no` and dates the text they look like."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own attribute)
        first: [
            (tag, pattern)
            for tag, pattern in rules
            if not tag.endswith(":timestamp") and not (tag.endswith(":bool") and first in "yYnNoO")
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # SafeLoader refuses it later, with the line
            if key.value in first_lines:
                problem = f"duplicate key '{key.value}', already given in line {first_lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first_lines[key.value] = key.start_mark.line + 1
        return node


def _parse_yaml(text: str | bytes, where: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        reason = ", ".join(part for part in parts if part) or str(error)
        place = f"{where}:{mark.line + 1}" if mark and not where.startswith(OVERRIDE) else where
        raise ConfigError(f"{place}: not valid YAML: {reason}.") from error


def load_tree(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """Read a file with its bases.

    Args:
        path: YAML file; its `_base_` files are relative to it.
        chain: The files that led here through `_base_`, outermost first.

    Returns:
        The merged tree: mappings merge, all else is replaced.

    Raises:
        ConfigError: If a file cannot be read, is not valid YAML, or its bases go round in a circle.
    """
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        circle = " → ".join(str(member) for member in (*chain, path))
        raise ConfigError(f"{chain[-1]}: '_base_' goes round in a circle: {circle}. Remove one of them.")
    try:
        text = path.read_bytes()
    except OSError as error:
        place = f"{chain[-1]}: the base {path}" if chain else f"{path}:"
        raise ConfigError(f"{place} cannot be read: {error.strerror}.") from error
    tree = _parse_yaml(text, str(path))
    if tree is None:
        raise ConfigError(f"{path}: the file is empty. A config has one 'key: value' a line.")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: got a {type(tree).__name__} at the top, needs 'key: value' lines.")
    bases = tree.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_: got {bases!r}, needs a file name or a list of file names")
    layers = [load_tree(path.parent / base, (*chain, path)) for base in bases]
    return reduce(merge, [*layers, to_tree(tree, str(path))])


def override_tree(overrides: Sequence[str]) -> Node:
    """Merge `key.path=value` overrides among themselves: `type=` and its options may come in any order.

    Raises:
        ConfigError: If one has not that form or its value is not valid YAML.
    """
    return reduce(merge, map(_parse_override, overrides), Node({}, OVERRIDE))


def _parse_override(override: str) -> Node:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{OVERRIDE}: got '{override}', needs key.path=value, such as data.batch_size=8.")
    node = to_tree(_parse_yaml(text, f"{OVERRIDE} {override}"), OVERRIDE)
    return reduce(lambda inner, name: Node({name: inner}, OVERRIDE), reversed(names), node)


def to_tree(value: object, where: str) -> Node:
    """Nodes of a plain value, all set at `where`."""
    if isinstance(value, Mapping):
        return Node({str(key): to_tree(child, where) for key, child in value.items()}, where)
    return Node(value, where)


def merge(old: Node, new: Node) -> Node:
    """Put one tree over another; a block whose `type` changes replaces the old one whole."""
    if not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return new
    if "type" in old.value and "type" in new.value and old.value["type"].value != new.value["type"].value:
        return new
    common = {key: merge(old.value[key], node) for key, node in new.value.items() if key in old.value}
    # An override that touches a block is not to blame for what the block lacks.
    return Node(old.value | new.value | common, old.where if new.where == OVERRIDE else new.where)
