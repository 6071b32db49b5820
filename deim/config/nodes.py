"""YAML files and overrides → merged nodes, in which every value remembers where it was set."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import yaml

from deim.config.catalog import find_base, find_size
from deim.errors import ConfigError, shorten
from deim.files import CHANGED, is_unchanged
from deim.parse import YamlLoader, parse_yaml, read_text

logger = logging.getLogger(__name__)

OVERRIDE: Final = "--set"
"""Name of the command line, as the place where a value was set."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it was set; the value of a block is a dict of nodes."""

    value: Any
    where: str

    def child(self, key: str) -> "Node | None":
        """Return the node under a key; None if this is no block or lacks the key."""
        return self.value.get(key) if isinstance(self.value, dict) else None


class _Loader(YamlLoader):
    """Loader that refuses duplicate keys and reads `off`, `no` and dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (an attribute of PyYAML)
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


def load_node(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """Read a YAML file over its `_base_` files, which lie beside it or are shipped.

    Args:
        path: The file.
        chain: The files that led here through `_base_`, outermost first.

    Raises:
        ConfigError: If a file cannot be read, is not valid YAML, or its bases form a circle.
    """
    try:
        text = read_text(path, error=ConfigError)
    except FileNotFoundError:
        place = f"{chain[-1]}: the base {path}" if chain else f"{path}:"
        raise ConfigError(f"{place} cannot be read: No such file or directory.") from None
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        circle = " → ".join(str(member) for member in (*chain, path))
        raise ConfigError(f"{chain[-1]}: '_base_' forms a circle: {circle}. Remove one of them.")
    content = parse_yaml(text, str(path), error=ConfigError, loader=_Loader)
    if not is_unchanged(text.encode("utf-8")):
        logger.warning("%s: %s; it is used as it is. Remove the seal if that was you.", path, CHANGED)
    if content is None:
        raise ConfigError(f"{path}: the file is empty. A config has one 'key: value' a line.")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: got a {type(content).__name__} at the top, needs 'key: value' lines.")
    bases = content.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_: got {shorten(bases)}, needs a file name or a list of file names")
    layers = [load_node(find_base(base, path), (*chain, path)) for base in bases]
    return put_over(reduce(merge, layers, Node({}, str(path))), to_node(content, str(path)))


def put_over(below: Node, layer: Node) -> Node:
    """Put a file or overrides over what they rest on.

    A size that the layer names, as `model: m` or `model.size: m`, lies between the two: it brings its whole
    model and its recipe, and the layer's other options change these.

    Raises:
        ConfigError: If there is no such size.
    """
    layer = _in_long_form(layer)
    model = layer.child("model")
    size = None if model is None else model.child("size")
    if model is None or size is None:
        return merge(below, layer)
    others = Node({key: node for key, node in below.value.items() if key != "model"}, below.where)
    return reduce(merge, [others, load_node(find_size(size.value, size.where)), layer])


def _in_long_form(layer: Node) -> Node:
    """Turn `model: m` of a layer into `model: {size: m}`."""
    model = layer.child("model")
    if model is None or isinstance(model.value, dict):
        return layer
    return Node({**layer.value, "model": Node({"size": model}, model.where)}, layer.where)


def override_node(overrides: Sequence[str]) -> Node:
    """Merge `key.path=value` overrides with each other: `type=` and its options may come in any order.

    Raises:
        ConfigError: If one does not have that form or its value is not valid YAML.
    """
    return reduce(merge, map(_parse_override, overrides), Node({}, OVERRIDE))


def _parse_override(override: str) -> Node:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{OVERRIDE}: got '{override}', needs key.path=value, such as data.batch_size=8.")
    node = to_node(parse_yaml(text, f"{OVERRIDE} {override}", error=ConfigError, loader=_Loader), OVERRIDE)
    return _in_long_form(reduce(lambda inner, name: Node({name: inner}, OVERRIDE), reversed(names), node))


def to_node(value: object, where: str) -> Node:
    """Turn a plain value into nodes, all set at `where`."""
    if isinstance(value, Mapping):
        return Node({str(key): to_node(child, where) for key, child in value.items()}, where)
    return Node(value, where)


def to_plain(node: Node) -> Any:
    """Turn nodes into plain values; a tuple becomes a list."""
    if isinstance(node.value, dict):
        return {key: to_plain(child) for key, child in node.value.items()}
    return list(node.value) if isinstance(node.value, tuple) else node.value


def merge(old: Node, new: Node) -> Node:
    """Put one node over another; a block whose `type` changes replaces the old one as a whole."""
    if not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return new
    if "type" in old.value and "type" in new.value and old.value["type"].value != new.value["type"].value:
        return new
    common = {key: merge(old.value[key], node) for key, node in new.value.items() if key in old.value}
    # An override that touches a block is not to blame for what the block lacks.
    return Node(old.value | new.value | common, old.where if new.where == OVERRIDE else new.where)
