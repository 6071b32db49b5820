"""The merged tree of an experiment → the dataclasses of `schema.py`, with every problem reported at once.

Each value of the tree remembers the file that set it, so that a message can name that file. Nothing here
knows a single option: names, types and defaults come from the dataclasses.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from sys import float_info
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from deim.config.nodes import Node, load_tree, merge, override_tree, to_tree
from deim.config.schema import Config
from deim.errors import ConfigError

T = TypeVar("T")

EXPONENT: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
NAMES: Final = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    read_detector: Callable[[str], Mapping[str, object]] | None = None,
) -> Config:
    """Read an experiment: its bases, its own file, then the overrides.

    Args:
        path: YAML file; its `_base_` files are relative to it.
        overrides: `key.path=value` each, value in YAML; together they are merged like one last file.
        read_detector: Gives the options of the checkpoint that `multimodal.detector` names, as the lowest
            base of an experiment of phase 2; see `deim.engine.experiment`.

    Returns:
        The valid config; it shares nothing with any other.

    Raises:
        ConfigError: If a file cannot be read or any option is wrong; one line for each problem.
    """
    tree = merge(load_tree(Path(path)), override_tree(overrides))
    detector = _child(_child(tree, "multimodal"), "detector")
    if read_detector is not None and detector is not None and isinstance(detector.value, str):
        base = to_tree(read_detector(detector.value), detector.value)
        _refuse_another_model(base, tree)
        tree = merge(base, tree)
    return _read_block(Config, tree, "")


def _child(node: Node | None, key: str) -> Node | None:
    return node.value.get(key) if node is not None and isinstance(node.value, dict) else None


def _refuse_another_model(base: Node, tree: Node) -> None:
    """The model of phase 2 is the detector's; an experiment may repeat it, but not change it."""
    own = _child(tree, "model")
    if own is not None and _values(merge(base, tree).value["model"]) != _values(base.value["model"]):
        raise ConfigError(
            f"{own.where}: model: is not that of the detector {base.where}, which phase 2 keeps as it is. "
            f"Leave the block out."
        )


def _values(node: Node) -> object:
    if isinstance(node.value, dict):
        return {key: _values(child) for key, child in node.value.items()}
    return list(node.value) if isinstance(node.value, tuple) else node.value


def load_block(path: str | Path, key: str, block_class: type[T]) -> T:
    """Read one block of a file, such as `model` of a shared model file; the file's other keys are ignored.

    Args:
        path: YAML file; its `_base_` files are relative to it.
        key: Top-level key of the block.
        block_class: Dataclass of the block, such as `ModelOptions`.

    Returns:
        The valid block.

    Raises:
        ConfigError: If the file cannot be read, lacks the block, or any option of the block is wrong.
    """
    blocks = load_tree(Path(path)).value
    assert isinstance(blocks, dict)
    if key not in blocks:
        raise ConfigError(f"{path}: there is no block '{key}'. The file has: {', '.join(blocks)}.")
    return _read_block(block_class, blocks[key], key)


def config_from_dict(tree: Mapping[str, object], *, where: str, overrides: Sequence[str] = ()) -> Config:
    """Rebuild a config from plain types, such as those stored in a checkpoint.

    Args:
        tree: What `config_to_dict` gave.
        where: The place that messages name, such as the checkpoint's path.
        overrides: `key.path=value` each, as for `load_config`.

    Returns:
        The valid config.

    Raises:
        ConfigError: If any option is wrong; one line for each problem.
    """
    return _read_block(Config, merge(to_tree(tree, where), override_tree(overrides)), "")


def config_to_dict(config: Config) -> dict[str, object]:
    """The config as dicts, lists, text, numbers, bools and None; `config_from_dict` gives the config back."""
    plain: dict[str, object] = _plain(config)
    return plain


def config_to_yaml(config: Config) -> str:
    """The config as YAML text with every option, in the order of the schema; `load_config` reads it back."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes a list on one line and a block over several."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=flow_style is not False)


def _read_block(block_class: type[T], node: Node, path: str) -> T:
    problems: list[str] = []
    block = _convert(block_class, node, path, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    assert isinstance(block, block_class)
    return block


def _convert(hint: object, node: Node, path: str, problems: list[str]) -> object:
    """The value that `hint` asks for, or `MISSING` with its problem appended."""
    options = _options(hint)
    classes = [option for option in options if is_dataclass(option)]
    if classes and isinstance(node.value, dict):
        block_class = classes[0] if len(classes) == 1 else _tagged(classes, node, path, problems)
        return MISSING if block_class is None else _build(block_class, node, path, problems)
    for option in options:
        value = _match(option, node.value)
        if value is not MISSING:
            return value
    got = "a block" if isinstance(node.value, dict) else "null" if node.value is None else repr(node.value)
    problems.append(f"{node.where}: {path or 'config'}: got {got}, needs {_describe(hint)}")
    return MISSING


def _tagged(classes: Sequence[Any], node: Node, path: str, problems: list[str]) -> Any | None:
    """The class that the block's `type` names, or None with the problem appended."""
    by_tag = {tag: option for option in classes for tag in get_args(get_type_hints(option)["type"])}
    tag = _convert_key(_join(path, "type"), Literal[tuple(by_tag)], MISSING, node, problems)
    if tag is not MISSING:
        return by_tag[tag]
    names = [name for option in classes for name in get_type_hints(option)]
    problems += _unknown_keys(node, path, list(dict.fromkeys(names)))
    return None


def _build(block_class: Any, node: Node, path: str, problems: list[str]) -> object:
    """The block; if anything is wrong, problems are appended and the block has only its readable fields."""
    hints = get_type_hints(block_class)
    problems += _unknown_keys(node, path, hints)
    values: dict[str, object] = {}
    for option in fields(block_class):
        factory = option.default_factory
        default = option.default if factory is MISSING else factory()
        value = _convert_key(_join(path, option.name), hints[option.name], default, node, problems)
        if value is not MISSING:
            values[option.name] = value
    for line in _range_problems(block_class, values, hints):
        problems.append(f"{_place(node, line.partition(':')[0])}: {_join(path, line)}")
    return _partial(block_class, values) if problems else block_class(**values)


def _place(node: Node, name: str) -> str:
    """Where the option of a dotted name was set, or else the innermost block around it."""
    for part in name.split("."):
        if not isinstance(node.value, dict) or part not in node.value:
            break
        node = node.value[part]
    return node.where


def _convert_key(key: str, hint: object, default: object, node: Node, problems: list[str]) -> Any:
    name = key.rpartition(".")[2]
    if name in node.value:
        return _convert(hint, node.value[name], key, problems)
    if default is MISSING:
        problems.append(f"{node.where}: missing key '{key}', which has no default. Give {_describe(hint)}.")
    return default


def _range_problems(block_class: Any, values: dict[str, object], hints: dict[str, Any]) -> list[str]:
    """Lines of the block's own checks that are true whatever the fields without a value are meant to be.

    Each such field is tried as a small and as a huge number: a line that depends on it changes or goes away.
    """
    found: list[list[str]] = []
    for number in (1, 1 << 20):
        stand_ins = {
            name: (number,) * len(_item_hints(hint, 1)) if get_origin(hint) is tuple else number
            for name, hint in hints.items()
        }
        block = _partial(block_class, stand_ins | values)
        try:
            getattr(block, "__post_init__", lambda: None)()
        except ConfigError as error:
            found.append(str(error).splitlines())
        except (AttributeError, TypeError):
            return []  # a check needs what could not be read
    return [line for line in found[0] if line in found[1]] if len(found) == 2 else []


def _partial(block_class: Any, values: Mapping[str, object]) -> Any:
    block = object.__new__(block_class)
    for name, value in values.items():
        object.__setattr__(block, name, value)
    return block


def _match(hint: object, value: Any) -> object:
    """`value` as the type `hint`, or `MISSING`; a bool is no number, a whole number is a float."""
    if get_origin(hint) is Literal:
        is_choice = any(type(value) is type(choice) and value == choice for choice in get_args(hint))
        return value if is_choice else MISSING
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not value:
            return MISSING
        hints = _item_hints(hint, len(value))
        if len(value) != len(hints):
            return MISSING
        items = tuple(_match(item_hint, item) for item_hint, item in zip(hints, value, strict=True))
        return MISSING if MISSING in items else items
    if hint is float:
        # PyYAML follows YAML 1.1, in which 1e-4 without a dot is text.
        number = float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        is_finite = isinstance(number, int | float) and abs(number) <= float_info.max
        return float(number) if is_finite and not isinstance(number, bool) else MISSING
    return value if type(value) is hint else MISSING


def _item_hints(hint: object, length: int) -> tuple[Any, ...]:
    """The types of a tuple's items; of one of any length, `tuple[float, ...]`, for `length` items."""
    hints = get_args(hint)
    return hints[:1] * length if hints[-1] is Ellipsis else hints


def _options(hint: object) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {option.name: _plain(getattr(value, option.name)) for option in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _unknown_keys(node: Node, path: str, names: Collection[str]) -> list[str]:
    return [
        f"{child.where}: unknown key '{_join(path, key)}'. {_suggestion(key, path, names)}"
        for key, child in node.value.items()
        if key not in names
    ]


def _suggestion(key: str, path: str, names: Collection[str]) -> str:
    known = set(_key_paths(Config, ""))
    if _join(path, key) in known:
        return f"It belongs to another 'type' of this block. Valid here: {', '.join(names)}."
    likely = sorted(place for place in known if place.rpartition(".")[2] == key)
    likely += get_close_matches(key, names, n=1, cutoff=0.5 if len(key) <= 3 else 0.65)
    if likely:
        return f"Did you mean {_one_of([repr(name) for name in likely])}?"
    return f"Valid here: {', '.join(names)}."


def _key_paths(block_class: object, path: str) -> Iterator[str]:
    for name, hint in get_type_hints(block_class).items():
        yield _join(path, name)
        for option in _options(hint):
            if is_dataclass(option):
                yield from _key_paths(option, _join(path, name))


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return _one_of([repr(choice) for choice in get_args(hint)])
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if items[-1] is Ellipsis:
            return f"a list, each {_describe(items[0])}"
        return f"a list of {len(items)}, each {_one_of([_describe(item) for item in items])}"
    if len(_options(hint)) > 1:
        return _one_of([_describe(option) for option in _options(hint)])
    return "a block of options" if is_dataclass(hint) else NAMES.get(hint, str(hint))


def _one_of(texts: Sequence[str]) -> str:
    *others, last = dict.fromkeys(texts)
    return f"{', '.join(others)} or {last}" if others else last


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
