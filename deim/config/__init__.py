"""The options of an experiment (`schema.py`) and how they are read from YAML (`loader.py`)."""

from deim.config.loader import (
    config_from_dict,
    config_to_dict,
    config_to_yaml,
    load_block,
    load_config,
    shipped_configs_dir,
)
from deim.config.schema import Config

__all__ = [
    "Config",
    "config_from_dict",
    "config_to_dict",
    "config_to_yaml",
    "load_block",
    "load_config",
    "shipped_configs_dir",
]
