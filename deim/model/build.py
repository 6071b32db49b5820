"""Detectors by the name of a shipped size."""

from deim.config.catalog import shipped_configs_dir
from deim.config.loader import load_block
from deim.errors import ConfigError
from deim.model.detector import Detector, ModelOptions

VARIANTS = ("nano", "s", "m", "l", "x")


def build_variant(name: str, *, num_classes: int) -> Detector:
    """Build one of the shipped sizes, `VARIANTS`, with random weights."""
    if name not in VARIANTS:
        raise ConfigError(f"model variant: got {name!r}. Choose one of {', '.join(VARIANTS)}.")
    path = shipped_configs_dir() / "_base_" / f"model_{name}.yml"
    return Detector(load_block(path, "model", ModelOptions), num_classes)
