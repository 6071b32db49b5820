"""Text fusion on a frozen detector; `deim.load_detector` opens its checkpoints like any other."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deim.inference.predictor import load_detector

__all__ = ["load_detector"]


def __getattr__(name: str) -> Any:
    """Import `load_detector` when it is first used, so that importing the package is fast."""
    if name == "load_detector":
        from deim.inference.predictor import load_detector

        return load_detector
    raise AttributeError(f"module 'multimodal' has no attribute {name!r}")
