"""Checkpoints: what they hold, how they are written and read.

A checkpoint describes itself: with nothing else at hand, the detector can be built and used from it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deim.config.loader import config_from_dict, config_to_dict
from deim.config.schema import Config
from deim.engine.device import select_device
from deim.engine.schedule import Timeline
from deim.errors import CheckpointError
from deim.files import write_atomically
from deim.model.build import build_model
from deim.model.weights import inference_weights, read_weights_file

logger = logging.getLogger(__name__)

FORMAT = 1
REQUIRED_KEYS = ("format", "config", "class_names", "category_ids", "model", "weights", "epoch")

INPUT_OPTIONS = (
    "image_size",
    "data.resize",
    "data.reduced_decode",
    "data.tiles",
    "data.channels",
    "data.scaling",
    "data.mean",
    "data.std",
)
"""What images look like to the network: thresholds hold for that alone."""

WeightKind = Literal["raw", "ema"]

BuildFromTree = Callable[[Config, Mapping[str, Any], Path], nn.Module]
"""Builds the model of a checkpoint, without its weights, from its config, its content and its path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedDetector:
    """A detector with all that is needed to use it."""

    model: nn.Module
    """In evaluation mode."""
    device: torch.device
    """Where it is."""
    config: Config
    """The experiment that trained it."""
    class_names: tuple[str, ...]
    """C names, by class index."""
    category_ids: tuple[int, ...]
    """C ids of the training annotations, by class index."""
    epoch: int
    """0-based epoch that the weights come from."""
    weights: WeightKind
    """`ema` for averaged weights, `raw` for those of the optimizer."""
    step: int
    """Optimizer steps before these weights."""
    timeline: Timeline | None
    """Phases of the run; None if the checkpoint does not say."""
    fusion: Mapping[str, Any] | None
    """What a checkpoint of phase 2 holds of its text and its detector; None for phase 1."""
    operating_points: Mapping[str, Any] | None
    """Thresholds chosen on the validation split, see `evaluation/operating_points.py`; None before that."""
    path: Path
    changed_inputs: tuple[str, ...] = ()
    """Options of `INPUT_OPTIONS` that were changed after training, so that stored thresholds do not hold."""


def previous_path(path: Path) -> Path:
    """Where `save_checkpoint` keeps the checkpoint before the one at `path`."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_checkpoint(tree: dict[str, Any], path: Path, *, keep_previous: bool = False) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one.

    Args:
        tree: Tensors and plain values; see `state_tree` for the keys.
        path: Where to put it.
        keep_previous: Keep the checkpoint that was there, see `previous_path`.

    Raises:
        OSError: If it cannot be written, with the path.
    """
    keep = previous_path(path) if keep_previous else None
    write_atomically(path, lambda file: torch.save(tree, file), keep=keep)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        CheckpointError: If it is missing, damaged, or not of this project.
    """
    tree = read_weights_file(path)
    absent = [key for key in REQUIRED_KEYS if key not in tree]
    if absent:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project, it lacks {', '.join(absent)}. Weights of other "
            f"projects can start a training: --set model.init_from={path}"
        )
    if tree["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: has checkpoint format {tree['format']}, this version reads {FORMAT}. Use the "
            f"version of deim that wrote it."
        )
    return tree


def read_newest(path: Path) -> tuple[dict[str, Any], Path]:
    """Read a checkpoint or, if it is missing or damaged, the one before it, with a warning.

    Returns:
        The checkpoint and where it was.

    Raises:
        CheckpointError: If neither can be read; the message is about `path`.
    """
    try:
        return read_checkpoint(path), path
    except CheckpointError as error:
        if not previous_path(path).is_file():
            raise
        logger.warning("%s\nGoing back to the checkpoint before it, %s.", error, previous_path(path))
        return read_checkpoint(previous_path(path)), previous_path(path)


def build_detector(config: Config, tree: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the detector of a checkpoint of phase 1.

    Args:
        config: Of the checkpoint.
        tree: The checkpoint.
        path: Where it was.

    Raises:
        CheckpointError: If it is one of phase 2.
    """
    if config.multimodal is not None:
        raise CheckpointError(
            f"{path}: has a fusion head, of phase 2. Load it with multimodal.load_detector, "
            f"or name the detector alone, {config.multimodal.detector}."
        )
    return build_model(config.model, len(tree["class_names"]), channels=config.data.channels)


def load_trained(
    path: Path,
    *,
    device: torch.device | None = None,
    overrides: Sequence[str] = (),
    build: BuildFromTree = build_detector,
) -> TrainedDetector:
    """Build the detector that a checkpoint holds.

    Args:
        path: `best.pth` or `last.pth`.
        device: Where to put it; None for what the config says.
        overrides: `key.path=value` each, changes of the stored config, such as `data.root=…`.
        build: Builds the model; the default knows checkpoints of phase 1 only.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or its weights do not fit its config.
        ConfigError: If the config, with its changes, is not valid in this version.
    """
    tree = read_checkpoint(path)
    config = config_from_dict(tree["config"], where=str(path), overrides=overrides)
    model = build(config, tree, path)
    try:
        model.load_state_dict(dict(inference_weights(tree)))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config. {error}") from None
    device = device or select_device(config.runtime.device)
    return TrainedDetector(
        model=model.to(device).eval().requires_grad_(False),
        device=device,
        config=config,
        class_names=tuple(tree["class_names"]),
        category_ids=tuple(tree["category_ids"]),
        epoch=tree["epoch"],
        weights=tree["weights"],
        step=tree.get("step", 0),
        timeline=Timeline(**tree["timeline"]) if "timeline" in tree else None,
        fusion=tree.get("fusion"),
        operating_points=tree.get("operating_points"),
        path=path,
        changed_inputs=_changed_inputs(tree, config, path),
    )


def _changed_inputs(tree: Mapping[str, Any], config: Config, path: Path) -> tuple[str, ...]:
    """Options by which images look otherwise to the network than a checkpoint says."""
    own, used = _inputs(config_from_dict(tree["config"], where=str(path))), _inputs(config)
    return tuple(name for name in INPUT_OPTIONS if own[name] != used[name])


def _inputs(config: Config) -> dict[str, object]:
    tree, options = config_to_dict(config), dict[str, object]()
    for name in INPUT_OPTIONS:
        option: Any = tree
        for part in name.split("."):
            option = option[part]
        options[name] = option
    tiles = config.data.tiles
    # The share of a box that is trained on changes no input.
    options["data.tiles"] = None if tiles is None else (tiles.size, tiles.overlap)
    return options


def store_operating_points(trained: TrainedDetector, operating_points: Mapping[str, Any]) -> str | None:
    """Write the operating points of a detector, and the options they were chosen for, into its checkpoint.

    A checkpoint that training goes on from, and one replaced since it was loaded, are left alone.

    Args:
        trained: From `load_trained`.
        operating_points: Plain types.

    Returns:
        Why they were not written; None if they were.

    Raises:
        CheckpointError: If the checkpoint is gone or damaged.
    """
    tree = read_checkpoint(trained.path)
    if "progress" in tree:
        return "training goes on from it; they belong into best.pth"
    if (tree["epoch"], tree.get("step", 0)) != (trained.epoch, trained.step):
        return "it has been replaced by a later one in the meantime"
    config, used = dict(tree["config"]), config_to_dict(trained.config)
    if trained.changed_inputs:
        changed = " and ".join(trained.changed_inputs)
        return f"they were chosen with another {changed} than prediction will use"
    # What they were chosen for is part of the config from now on.
    config["evaluation"] = used["evaluation"]
    config["data"] = config["data"] | {"normal_class": trained.config.data.normal_class}
    try:
        stored = {"config": config, "operating_points": dict(operating_points)}
        save_checkpoint(tree | stored, trained.path)
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return None
