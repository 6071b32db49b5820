"""Results as trees of frozen dataclasses, and their one form in JSON.

    report = from_json(Report, json.loads(text))
    text = json.dumps(to_json(report))

A record that keeps what a newer version added has a dict `extra`, whose entries stand beside the other fields
in JSON.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

R = TypeVar("R")

EXTRA = "extra"


def to_json(value: Any) -> Any:
    """Turn a record into plain JSON types.

    Args:
        value: A dataclass, mapping, sequence, NumPy value or array, or plain value; NaN becomes None.
    """
    if is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        extra = plain.pop(EXTRA, {})
        return {**plain, **extra}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def from_json(record: type[R], value: Any, *, where: str = "") -> R:
    """Build a record from plain JSON types; the opposite of `to_json`.

    Optional fields that are missing become None, or their default. Unknown keys go to `extra` where the
    record has it, and are dropped otherwise.

    Raises:
        ValueError: If a required field is missing or a value has the wrong type; `where` and the path of the
            key stand in the message.
    """
    return _read(record, value, where)


_hints = cache(get_type_hints)


def _read(kind: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _read_union(args, value, path)
    if origin is Literal:
        return _expect(value in args, value, path, f"one of {', '.join(map(repr, args))}")
    if is_dataclass(kind):
        return _read_record(kind, value, path)
    if origin in (tuple, list):
        _expect(isinstance(value, (list, tuple)), value, path, "a list")
        is_uniform = origin is list or args[-1] is Ellipsis
        kinds = args[:1] * len(value) if is_uniform else args
        _expect(len(value) == len(kinds), value, path, f"{len(kinds)} values")
        numbered = enumerate(zip(kinds, value, strict=True))
        return origin(_read(kind, item, f"{path}[{number}]") for number, (kind, item) in numbered)
    if origin in (dict, Mapping):
        _expect(isinstance(value, Mapping), value, path, "an object")
        items = {key: _read(args[1], item, f"{path}.{key}") for key, item in value.items()}
        return {int(key): item for key, item in items.items()} if args[0] is int else items
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(isinstance(value, kind), value, path, kind.__name__)


def _read_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    """Read a value as the first type that it fits; the message is about the first type."""
    if value is None and NoneType in kinds:
        return None
    first_error = None
    for kind in kinds:
        try:
            if kind is not NoneType:
                return _read(kind, value, path)
        except ValueError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _read_record(kind: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, Mapping), value, path, "an object")
    hints = _hints(kind)
    known: dict[str, Any] = {}
    for field in fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        if field.name == EXTRA:
            known[EXTRA] = {key: item for key, item in value.items() if key not in hints}
        elif field.name in value:
            known[field.name] = _read(hints[field.name], value[field.name], here)
        elif NoneType in get_args(hints[field.name]):
            known[field.name] = None
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{here}: missing.")
    return kind(**known)


def _expect(is_valid: bool, value: Any, path: str, kind: str) -> Any:
    if not is_valid:
        raise ValueError(f"{path}: got {value!r}, needs {kind}.")
    return value
