"""Results as trees of frozen dataclasses, and their one form in JSON.

    report = from_json(Report, parse_json(text, "report.json"))
    text = json.dumps(to_json(report))

A record that keeps what a newer version added has a dict `extra`, whose entries stand beside the other fields
in JSON.
"""

import re
from collections.abc import Mapping, Sized
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import repeat
from sys import float_info
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

from deim.errors import DeimError, shorten

R = TypeVar("R")

EXTRA: Final = "extra"
MAX_FLOAT: Final = float_info.max
INTEGER: Final = re.compile(r"-?[0-9]{1,18}")


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


def from_json(
    record: type[R], value: Any, *, where: str = "", error: type[Exception] = ValueError, advice: str = ""
) -> R:
    """Build a record from plain JSON types; the opposite of `to_json`.

    Optional fields that are missing become None, or their default. Unknown keys go to `extra` where the
    record has it, and are dropped otherwise.

    Args:
        record: A dataclass or TypedDict, or a type made of them such as `list[Record]`.
        value: From a file: nothing is taken for granted about it.
        where: The file, with which the message begins.
        error: Type of the error.
        advice: Sentence with which the message ends.

    Raises:
        Exception: Of the type `error`, if a required field is missing, a value has the wrong type, a number
            is not finite, or an integer needs more than 64 bits. The message has the path of the value.
    """
    try:
        result: R = _read(record, value, "")
    except ValueError as problem:
        parts = (f"{where}:" if where else "", str(problem), advice)
        raise error(" ".join(part for part in parts if part)) from None
    return result


def check_lengths(**columns: Sized) -> None:
    """Raise a ValueError, which names them, if columns that belong together differ in length."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"columns of different lengths, got {listed}.")


_hints = cache(get_type_hints)


def _read(kind: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _read_union(args, value, path)
    if origin is Literal:
        is_choice = any(type(value) is type(choice) and value == choice for choice in args)
        return _expect(is_choice, value, path, f"one of {', '.join(map(repr, args))}")
    if is_dataclass(kind) or is_typeddict(kind):
        return _read_record(kind, value, path)
    if origin in (tuple, list):
        _expect(isinstance(value, (list, tuple)), value, path, "a list")
        is_uniform = origin is list or args[-1] is Ellipsis
        _expect(is_uniform or len(value) == len(args), value, path, f"{len(args)} values")
        kinds = repeat(args[0]) if is_uniform else args
        numbered = enumerate(zip(kinds, value, strict=False))
        return origin(_read(kind, item, f"{path}[{number}]") for number, (kind, item) in numbered)
    if origin in (dict, Mapping):
        _expect(isinstance(value, Mapping), value, path, "an object")
        return {
            _read_key(args[0], key, path): _read(args[1], item, f"{path}.{key}")
            for key, item in value.items()
        }
    if kind is int:
        is_int = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        return _expect(is_int, value, path, "an integer of at most 64 bits")
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(_expect(is_number and abs(value) <= MAX_FLOAT, value, path, "a finite number"))
    return _expect(isinstance(value, kind), value, path, kind.__name__)


def _read_key(kind: Any, key: Any, path: str) -> Any:
    """Read the key of an object; integers are text in JSON."""
    _expect(isinstance(key, str) or (kind is int and type(key) is int), key, path, "text as keys")
    if kind is int:
        _expect(type(key) is int or INTEGER.fullmatch(key), key, path, "integers as keys")
        return int(key)
    return key


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
    optional = getattr(kind, "__optional_keys__", ())
    defaults = {} if is_typeddict(kind) else {field.name: field for field in fields(kind)}
    known: Any = {}
    for name, hint in hints.items():
        here = f"{path}.{name}" if path else name
        field = defaults.get(name)
        if name == EXTRA:
            known[EXTRA] = {key: item for key, item in value.items() if key not in hints}
        elif name in value:
            known[name] = _read(hint, value[name], here)
        elif NoneType in get_args(hint):
            known[name] = None
        elif name not in optional and (
            field is None or (field.default is MISSING and field.default_factory is MISSING)
        ):
            raise ValueError(f"{here}: missing.")
    try:
        return kind(**known)
    except (ValueError, DeimError) as problem:
        raise ValueError(f"{path}: {problem}" if path else str(problem)) from None


def _expect(is_valid: object, value: Any, path: str, kind: str) -> Any:
    if not is_valid:
        raise ValueError(f"{path or 'content'}: got {shorten(value)}, needs {kind}.")
    return value
