"""Reading an experiment whose options rest on a checkpoint: those of phase 2 rest on the detector's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from deim.config.loader import load_config
from deim.config.schema import Config
from deim.engine.checkpoints import read_checkpoint
from deim.errors import CheckpointError

SHARED_BLOCKS = ("model", "image_size", "data", "loss", "evaluation")
"""Options that phase 2 takes from the detector where its experiment does not give them."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read an experiment of either phase.

    Args:
        path: YAML file.
        overrides: `key.path=value` each.

    Raises:
        ConfigError: If a file cannot be read or any option is wrong; one line for each problem.
        CheckpointError: If the detector of an experiment of phase 2 is missing, damaged, or not of phase 1.
    """
    return load_config(path, overrides, read_detector=_options_of)


def _options_of(detector: str) -> Mapping[str, object]:
    path = Path(detector)
    if not path.is_file():
        raise CheckpointError(
            f"multimodal.detector: there is no checkpoint {detector} (looked in {Path.cwd()}). Train the "
            f"detector first, or name the best.pth of one with --set multimodal.detector=PATH."
        )
    config = read_checkpoint(path)["config"]
    if config.get("multimodal") is not None:
        raise CheckpointError(
            f"{detector}: is of phase 2 already. Name the detector that it was made from with "
            f"--set multimodal.detector={config['multimodal']['detector']}"
        )
    options = {name: config[name] for name in SHARED_BLOCKS if name in config}
    return options | {"model": config["model"] | {"init_from": None}}
