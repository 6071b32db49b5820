"""Weights that are NaN or infinite: a detector with one of them finds nothing, and says nothing."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from torch import Tensor

PLACES: Final = {"model.": "raw weights", "ema.model.": "averaged weights"}
"""Blocks of a checkpoint in words."""
DIVERGED: Final = "The run that wrote it had diverged: use an earlier checkpoint."
"""What to do about such a file."""


def find_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors with a NaN or infinity, or with a number that float32 cannot hold."""
    floats = ((name, value) for name, value in tensors if value.is_floating_point())
    return [name for name, value in floats if not value.float().isfinite().all()]


def describe_non_finite(content: object) -> str | None:
    """Describe the tensors with NaN or infinity anywhere in a checkpoint or a state; None if there are none.

    Args:
        content: Tensors in mappings and lists of any depth, as a file of weights has them.

    Returns:
        How many there are and the first one, with its place in a checkpoint.
    """
    names = find_non_finite(_named_tensors(content))
    if not names:
        return None
    first = names[0]
    for prefix, place in PLACES.items():
        if first.startswith(prefix):
            first = f"{first.removeprefix(prefix)} of the {place}"
    return f"{len(names)} tensors hold NaN or infinity, first {first}"


def _named_tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its keys, joined by dots."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _named_tensors(item, f"{name}.{key}" if name else str(key))
