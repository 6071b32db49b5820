"""Detectors as they come from checkpoints: built, loaded, and given their operating points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deim.config.loader import config_from_dict, config_to_dict
from deim.config.schema import Config
from deim.data.formats.split import CocoSplit
from deim.data.options import IMAGE_CACHE_DIR
from deim.engine.checkpoints import find_checkpoint, read_checkpoint, save_checkpoint
from deim.engine.device import select_device
from deim.engine.progress import WeightKind
from deim.engine.run_lock import lock_run
from deim.engine.task import load_task
from deim.errors import CheckpointError, TrainingError
from deim.model.weights import check_kinds

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
"""Options that decide what the network sees of an image; stored thresholds hold only for the same values."""
DATA_OPTIONS = (
    "format",
    "train_annotations",
    "val_annotations",
    "test_annotations",
    "images",
    "crowd_as_objects",
)
"""Options of `data` that, with its root, decide which images and boxes a split has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedDetector:
    """A detector with all that is needed to use it; names that `Checkpoint` has, too, mean the same."""

    model: nn.Module
    """In evaluation mode."""
    device: torch.device
    """Where it is."""
    config: Config
    """The experiment that trained it, with overrides."""
    task: str
    task_state: Mapping[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    epoch: int
    step: int
    weights: WeightKind
    operating_points: Mapping[str, Any] | None
    path: Path
    changed_inputs: tuple[str, ...] = ()
    """Options of `INPUT_OPTIONS` that were changed after training, so that stored thresholds do not hold."""
    validation_fingerprint: str | None = None
    has_run_data: bool = True
    """Whether the config still names the dataset of the training."""

    def is_run_split(self, split: CocoSplit, name: str) -> bool:
        """Tell whether a split belongs to the run that trained the detector.

        The validation split is known by its content, and so in any folder; others by the options of the data.
        """
        if name == "val" and self.validation_fingerprint is not None:
            return split.fingerprint() == self.validation_fingerprint
        return self.has_run_data


def load_trained(
    path: Path, *, device: torch.device | None = None, overrides: Sequence[str] = ()
) -> TrainedDetector:
    """Build the detector that a checkpoint of any task holds.

    Args:
        path: `best.pth` or `last.pth`, or the folder of a run.
        device: Where to put it; None for the device that the config names.
        overrides: Changes of the stored config, `key.path=value` each, such as `data.root=…`.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or its weights do not fit its config.
        ConfigError: If the config, with its changes, is not valid in this version.
    """
    path = find_checkpoint(path)
    checkpoint = read_checkpoint(path)
    stored = config_from_dict(checkpoint.config, where=str(path))
    # A checkpoint may come from others: it does not choose where this machine writes.
    places = [f"data.disk_cache_dir={IMAGE_CACHE_DIR}"]
    config = config_from_dict(checkpoint.config, where=str(path), overrides=[*places, *overrides])
    model = load_task(checkpoint.task).build_stored_model(config, checkpoint, path)
    weights = dict(checkpoint.inference_weights)
    try:
        check_kinds(weights, model.state_dict())
        model.load_state_dict(weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: its weights do not fit its config. {error}") from None
    except RuntimeError as error:
        differences = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: its weights do not fit its config. Leave model and data.channels as they were in "
            f"training. {differences[:200]} …"
        ) from None
    device = device or select_device(config.runtime.device)
    return TrainedDetector(
        model=model.to(device).eval().requires_grad_(False),
        device=device,
        config=config,
        task=checkpoint.task,
        task_state=checkpoint.task_state,
        class_names=checkpoint.class_names,
        category_ids=checkpoint.category_ids,
        epoch=checkpoint.epoch,
        weights=checkpoint.weights,
        step=checkpoint.step,
        operating_points=checkpoint.operating_points,
        path=path,
        changed_inputs=_changed_inputs(stored, config),
        validation_fingerprint=checkpoint.validation_fingerprint,
        has_run_data=_data_source(stored) == _data_source(config),
    )


def _changed_inputs(stored: Config, config: Config) -> tuple[str, ...]:
    """Return the options by which the network sees images differently than in training."""
    pairs = zip(INPUT_OPTIONS, _inputs(stored), _inputs(config), strict=True)
    return tuple(name for name, there, here in pairs if there != here)


def _data_source(config: Config) -> list[object]:
    """Return the absolute root and the values of `DATA_OPTIONS`."""
    return [Path(config.data.root).absolute(), *(getattr(config.data, name) for name in DATA_OPTIONS)]


def _inputs(config: Config) -> list[object]:
    """Return the values of `INPUT_OPTIONS`."""
    tiles = config.data.tiles
    # The share of a box that counts in training does not change an input.
    inputs = None if tiles is None else (tiles.size, tiles.overlap)
    return [inputs if name == "data.tiles" else attrgetter(name)(config) for name in INPUT_OPTIONS]


def store_operating_points(trained: TrainedDetector, operating_points: Any) -> str | None:
    """Write operating points, in plain types, and the options they were chosen for into the checkpoint.

    A checkpoint from which training can be resumed, one that was replaced meanwhile, and one of a run that
    another process still trains, are left alone.

    Returns:
        Why they were not written; None if they were.

    Raises:
        CheckpointError: If the checkpoint is gone or damaged.
    """
    try:
        with lock_run(trained.path.parent):
            return _store_points(trained, operating_points)
    except TrainingError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be written ({error.strerror})"


def _store_points(trained: TrainedDetector, operating_points: Any) -> str | None:
    """Do the work of `store_operating_points`; an OSError if the file cannot be written."""
    checkpoint = read_checkpoint(trained.path)
    if checkpoint.resume is not None:
        return "training can be resumed from it; they belong in best.pth"
    if (checkpoint.epoch, checkpoint.step) != (trained.epoch, trained.step):
        return "a later one has replaced it meanwhile"
    if trained.changed_inputs:
        changed = " and ".join(trained.changed_inputs)
        return f"they were chosen with another {changed} than prediction will use"
    # What they were chosen for becomes part of the config.
    used: Any = config_to_dict(trained.config)
    data = checkpoint.config["data"] | {"normal_class": used["data"]["normal_class"]}
    config = {**checkpoint.config, "evaluation": used["evaluation"], "data": data}
    changed_checkpoint = replace(checkpoint, config=config, operating_points=dict(operating_points))
    save_checkpoint(changed_checkpoint, trained.path)
    return None
