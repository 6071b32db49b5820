"""The merged nodes of an experiment → the dataclasses of `schema.py`, with every problem reported at once.

Each node remembers the file that set it, so that a message can name that file. Nothing here knows a single
option: names, types and defaults come from the dataclasses.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from sys import float_info
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from deim.config.checks import check
from deim.config.nodes import Node, load_node, merge, override_node, put_over, to_node, to_plain
from deim.config.schema import Config, number_problems
from deim.engine.task import TASKS, load_task
from deim.errors import ConfigError, shorten
from deim.migration import IGNORED_OPTIONS, describe_renamed_key
from deim.records import to_json

T = TypeVar("T")

EXPONENT: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
OptionValue = bool | int | float | str
NAMES: Final = {int: "an integer", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment: what its task rests on, its bases, the file itself, then the overrides.

    Args:
        path: YAML file; its `_base_` files lie beside it or are shipped.
        overrides: `key.path=value` each, value in YAML; together they are merged like one last file.

    Raises:
        ConfigError: If a file cannot be read or any option is wrong; one line for each problem.
        CheckpointError: If the task rests on a checkpoint that cannot be used.
    """
    node = put_over(load_node(Path(path)), override_node(overrides))
    return decode(Config, _with_task_defaults(node))


def _with_task_defaults(node: Node) -> Node:
    """Put an experiment over the options on which its task rests.

    Raises:
        ConfigError: If it changes a block that the task keeps.
    """
    block = node.child("task")
    name = None if block is None else block.child("type")
    if block is None or name is None or name.value not in TASKS:
        return node
    defaults = load_task(name.value).defaults_from(to_plain(block))
    if defaults is None:
        return node
    base = to_node(defaults.options, defaults.source)
    merged = merge(base, node)
    for key in defaults.fixed_blocks:
        given = node.child(key)
        if given is not None and to_plain(merged)[key] != to_plain(base)[key]:
            raise ConfigError(
                f"{given.where}: {key}: differs from that of {base.where}, which the task keeps as it is. "
                f"Remove the block."
            )
    return merged


def load_block(path: str | Path, key: str, block_class: type[T]) -> T:
    """Read one block of a file, such as `model` of a shared model file; the file's other keys are ignored.

    Raises:
        ConfigError: If the file cannot be read, lacks the block, or any option of the block is wrong.
    """
    file = load_node(Path(path))
    block = file.child(key)
    if block is None:
        raise ConfigError(f"{path}: there is no block '{key}'. The file has: {', '.join(file.value)}.")
    return decode(block_class, block, path=key)


def load_file(path: str | Path, record: type[T]) -> T:
    """Read a whole file as one record, such as a file of prompts.

    Raises:
        ConfigError: If the file cannot be read or anything in it is wrong; one line for each problem.
    """
    return decode(record, load_node(Path(path)))


def config_from_dict(plain: Mapping[str, object], *, where: str, overrides: Sequence[str] = ()) -> Config:
    """Rebuild a config from plain types, such as those stored in a checkpoint.

    Args:
        plain: From `config_to_dict`.
        where: The place that messages name, such as the checkpoint's path.
        overrides: `key.path=value` each, as for `load_config`.

    Raises:
        ConfigError: If any option is wrong; one line for each problem.
    """
    node = put_over(Node({}, where), to_node(plain, where))
    return decode(Config, put_over(node, override_node(overrides)))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the config as dicts, lists, text, numbers, bools and None; see `config_from_dict`."""
    return dict(to_json(config))


def option_values(config: Config) -> dict[str, OptionValue]:
    """Return each option by its dotted key, in the order of the schema; lists and null become JSON text."""
    return dict(_flat_options(to_json(config)))


def _flat_options(block: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, OptionValue]]:
    for name, value in block.items():
        if isinstance(value, dict):
            yield from _flat_options(value, f"{prefix}{name}.")
        else:
            plain = value if isinstance(value, OptionValue) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", plain


def config_to_yaml(config: Config) -> str:
    """Return the config as YAML with every option, in the order of the schema; `load_config` reads it."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes a list on one line and a block over several."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: Any = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=flow_style is not False)


def decode(record: type[T], node: Node, *, path: str = "") -> T:
    """Turn a block into a dataclass; `path` is its dotted key, for messages.

    Raises:
        ConfigError: If anything is wrong; one line for each problem.
    """
    problems: list[str] = []
    value = _decode(record, node, path, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    assert isinstance(value, record)
    return value


def _decode(hint: object, node: Node, path: str, problems: list[str]) -> object:
    """Return the value of type `hint`, or `MISSING` with its problem appended."""
    alternatives = _alternatives(hint)
    records = [option for option in alternatives if is_dataclass(option)]
    if records and isinstance(node.value, dict):
        record = records[0] if len(records) == 1 else _choose_by_type(records, node, path, problems)
        return MISSING if record is None else _decode_record(record, node, path, problems)
    for option in alternatives:
        item_record = _item_record(option)
        if item_record is not None and isinstance(node.value, list) and node.value:
            items = [
                _decode(item_record, to_node(item, node.where), f"{path}[{number}]", problems)
                for number, item in enumerate(node.value, start=1)
            ]
            return MISSING if any(item is MISSING for item in items) else tuple(items)
        value = _match(option, node.value)
        if value is not MISSING:
            return value
    got = "a block" if isinstance(node.value, dict) else "null" if node.value is None else shorten(node.value)
    problems.append(f"{node.where}: {path or 'config'}: got {got}, needs {_describe(hint)}")
    return MISSING


def _choose_by_type(records: Sequence[Any], node: Node, path: str, problems: list[str]) -> Any | None:
    """Return the dataclass that the block's `type` names, or None with the problem appended."""
    by_type = {tag: record for record in records for tag in get_args(get_type_hints(record)["type"])}
    tag = _decode_key(_join(path, "type"), Literal[tuple(by_type)], MISSING, node, problems)
    if tag is not MISSING:
        return by_type[tag]
    names = [name for record in records for name in get_type_hints(record)]
    problems += _unknown_keys(node, path, list(dict.fromkeys(names)))
    return None


def _decode_record(record: Any, node: Node, path: str, problems: list[str]) -> object:
    """Return the dataclass, or `MISSING` with the problems appended.

    Its own checks run once all its fields can be read; those of the numbers outside blocks do not wait.
    """
    hints = get_type_hints(record)
    problems += _unknown_keys(node, path, [*hints, *getattr(record, "loader_keys", ())])
    values = {}
    for option in fields(record):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        hint, given = hints[option.name], node.child(option.name)
        if given is not None:
            hint = _resolve_hint(option, hint, given)
        values[option.name] = _decode_key(_join(path, option.name), hint, default, node, problems)
    try:
        if MISSING not in values.values():
            return record(**values)
        if record is Config:
            image_size, epochs, seed = (values[name] for name in ("image_size", "epochs", "seed"))
            if MISSING not in (image_size, epochs, seed):
                check(number_problems(image_size, epochs, seed))
        return MISSING
    except ConfigError as error:
        for line in str(error).splitlines():
            problems.append(f"{_place(node, line.partition(':')[0])}: {_join(path, line)}")
        return MISSING


def _resolve_hint(option: "Field[Any]", hint: object, block: Node | None) -> object:
    """Return the type of a field.

    A field with the metadata `names` and `class_of` is a union whose classes are imported when they are
    needed: the one that the block's `type` names, or all of them where it names none.
    """
    if "class_of" not in option.metadata:
        return hint
    tag = None if block is None else block.child("type")
    names = tuple(option.metadata["names"])
    named = [name for name in names if tag is not None and tag.value == name]
    return Union[tuple(map(option.metadata["class_of"], named or names))]  # noqa: UP007  made at run time


def _place(node: Node, name: str) -> str:
    """Return where the option of a dotted name was set, or else the innermost block around it."""
    for key in name.split("."):
        child = node.child(key)
        if child is None:
            break
        node = child
    return node.where


def _decode_key(key: str, hint: object, default: object, node: Node, problems: list[str]) -> Any:
    child = node.child(key.rpartition(".")[2])
    if child is not None:
        return _decode(hint, child, key, problems)
    if default is MISSING:
        problems.append(f"{node.where}: missing key '{key}', which has no default. Give {_describe(hint)}.")
    return default


def _match(hint: object, value: Any) -> object:
    """Return `value` as the type `hint`, or `MISSING`; a bool is no number, a whole number is a float."""
    if get_origin(hint) is Literal:
        is_choice = any(type(value) is type(choice) and value == choice for choice in get_args(hint))
        return value if is_choice else MISSING
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not value:
            return MISSING
        hints = get_args(hint)
        hints = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
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


def _item_record(hint: object) -> Any | None:
    """Return the dataclass of the items of `tuple[Record, ...]`; None for every other type."""
    items = get_args(hint) if get_origin(hint) is tuple else ()
    return items[0] if items and is_dataclass(items[0]) else None


def _alternatives(hint: object) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _unknown_keys(node: Node, path: str, names: Collection[str]) -> list[str]:
    lines = []
    for key, child in node.value.items():
        full = _join(path, key)
        if key in names or full in IGNORED_OPTIONS:
            continue
        renamed = describe_renamed_key(full, child.value)
        message = renamed or f"unknown key '{full}'. {_suggestion(key, path, names)}"
        lines.append(f"{child.where}: {message}")
    return lines


def _suggestion(key: str, path: str, names: Collection[str]) -> str:
    known = _all_keys()
    if _join(path, key) in known:
        return f"It belongs to another 'type' of this block. Valid here: {', '.join(names)}."
    likely = sorted(place for place in known if place.rpartition(".")[2] == key)
    likely += get_close_matches(key, names, n=1, cutoff=0.5 if len(key) <= 3 else 0.65)
    if likely:
        return f"Did you mean {_either([repr(name) for name in likely])}?"
    return f"Valid here: {', '.join(names)}."


@cache
def _all_keys() -> frozenset[str]:
    return frozenset(_key_paths(Config, ""))


def _key_paths(record: Any, path: str) -> Iterator[str]:
    """Yield the dotted keys of all options, of every `type`."""
    hints = get_type_hints(record)
    for option in fields(record):
        here = _join(path, option.name)
        yield here
        for alternative in _alternatives(_resolve_hint(option, hints[option.name], None)):
            if is_dataclass(alternative):
                yield from _key_paths(alternative, here)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return _either([repr(choice) for choice in get_args(hint)])
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if items[-1] is Ellipsis:
            return f"a list, each {_describe(items[0])}"
        return f"a list of {len(items)}, each {_either([_describe(item) for item in items])}"
    if len(_alternatives(hint)) > 1:
        return _either([_describe(option) for option in _alternatives(hint)])
    block = getattr(hint, "description", "a block of options")
    return block if is_dataclass(hint) else NAMES.get(hint, str(hint))


def _either(texts: Sequence[str]) -> str:
    *others, last = dict.fromkeys(texts)
    return f"{', '.join(others)} or {last}" if others else last


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
