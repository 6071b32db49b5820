"""The training loop.

    for each epoch:  train every batch → average the weights → validate → write last.pth, perhaps best.pth

Validation is passed in as a function, so that training knows nothing of metrics.
"""

import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from deim.config import Config, config_to_dict
from deim.data.build import iterate
from deim.data.collate import Batch
from deim.data.dataset import EpochSampler
from deim.engine.checkpoint import FORMAT, WeightKind, read_checkpoint, save_checkpoint
from deim.engine.ema import ModelEma
from deim.engine.log import RunLog, epoch_line
from deim.engine.optimizer import set_learning_rates
from deim.engine.schedule import Timeline
from deim.engine.seeding import random_states, restore_random_states
from deim.engine.step import Precision, StepResult, train_step
from deim.errors import CheckpointError, TrainingError
from deim.loss.criterion import Criterion
from deim.model.detector import Detector

logger = logging.getLogger(__name__)

MAX_REFUSED_IN_A_ROW = 50
"""Steps in a row that may be refused before the run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What a validation found."""

    ap: float | None
    """COCO AP of the validation split; None if it has no boxes."""
    ap50: float | None
    worst_class: str | None
    """Name of the class with the lowest AP at IoU 0.50."""
    worst_class_ap50: float | None
    summary: dict[str, float | None]
    """The 12 COCO numbers."""
    class_ap50: dict[str, float | None]
    """AP at IoU 0.50 of each class."""


Validate = Callable[[Detector], Validation]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingParts:
    """Everything a run is made of."""

    model: Detector
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    ema: ModelEma[Detector]
    loader: DataLoader[Batch]
    sampler: EpochSampler
    timeline: Timeline
    precision: Precision
    device: torch.device
    validate: Validate
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a run has come."""

    next_epoch: int = 0
    """0-based."""
    step: int = 0
    """Optimiser steps so far, refused ones included."""
    best: dict[str, Any] = field(default_factory=dict)
    """Metric, score, epoch and kind of weights of best.pth; empty before the first."""


class Trainer:
    """Runs an experiment in a folder.

    Args:
        config: The experiment.
        parts: What it is made of.
        folder: The run folder; it exists.
    """

    def __init__(self, config: Config, parts: TrainingParts, *, folder: Path) -> None:
        self.config = config
        self.parts = parts
        self.folder = folder
        self.progress = Progress()
        self._refused_in_a_row = 0

    @property
    def best_path(self) -> Path:
        """Where the best weights are."""
        return self.folder / "best.pth"

    @property
    def last_path(self) -> Path:
        """Where the newest state is."""
        return self.folder / "last.pth"

    def run(self, *, show_progress: bool = True) -> None:
        """Train from the current progress to the last epoch.

        Args:
            show_progress: Draw a bar on the terminal.

        Raises:
            TrainingError: If too many steps in a row give no finite loss.
            DataError: If an image is damaged.
        """
        with RunLog(self.folder, tensorboard=self.config.runtime.tensorboard) as log:
            log.drop_after(self.progress.next_epoch - 1)
            for epoch in range(self.progress.next_epoch, self.config.epochs):
                if epoch == self.parts.timeline.no_aug_epoch:
                    self._restore_best()
                started = time.perf_counter()
                values = self._train_epoch(epoch, log, show_progress=show_progress)
                values |= self._validate_epoch(epoch)
                values["seconds"] = time.perf_counter() - started
                values["time_left_s"] = values["seconds"] * (self.config.epochs - epoch - 1)
                self.progress.next_epoch = epoch + 1
                save_checkpoint(self._state(epoch, weights="ema", resumable=True), self.last_path)
                log.write("epoch", values)
                log.curves(
                    {f"val/{name}": value for name, value in values.get("val", {}).items()},
                    step=self.progress.step,
                )
                logger.info(epoch_line(values, epochs=self.config.epochs))

    def _train_epoch(self, epoch: int, log: RunLog, *, show_progress: bool) -> dict[str, Any]:
        parts = self.parts
        parts.model.train()
        parts.sampler.epoch = epoch
        sums: defaultdict[str, float] = defaultdict(float)
        num_images = num_good = 0
        started = time.perf_counter()
        bar = tqdm(
            iterate(parts.loader),
            total=len(parts.loader),
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            leave=False,
            disable=None if show_progress else True,
        )
        for batch in bar:
            factor = parts.timeline.lr_factor(self.progress.step)
            set_learning_rates(parts.optimizer, factor)
            result = self._step(batch.to(parts.device), epoch, log)
            num_images += len(batch.targets)
            self.progress.step += 1
            if result.refused is None:
                num_good += 1
                sums["loss"] += result.loss
                sums["grad_norm"] += result.grad_norm
                for name, value in result.terms.items():
                    sums[name] += value
                bar.set_postfix(loss=f"{result.loss:.2f}")
                log.curves(
                    {
                        "train/loss": result.loss,
                        "train/grad_norm": result.grad_norm,
                        "train/lr": factor * self.config.recipe.lr,
                    },
                    step=self.progress.step,
                )
        seconds = time.perf_counter() - started
        means = {name: value / num_good for name, value in sums.items()}
        return {
            "epoch": epoch,
            "step": self.progress.step,
            "lr": parts.optimizer.param_groups[-1]["lr"],
            "backbone_lr": parts.optimizer.param_groups[0]["lr"],
            "images_per_s": num_images / seconds,
            "refused_steps": len(parts.loader) - num_good,
            "loss": means.pop("loss", float("nan")),
            "grad_norm": means.pop("grad_norm", float("nan")),
            "terms": means,
        }

    def _step(self, batch: Batch, epoch: int, log: RunLog) -> StepResult:
        parts = self.parts
        result = train_step(
            parts.model,
            parts.criterion,
            batch=batch,
            optimizer=parts.optimizer,
            precision=parts.precision,
            clip_grad_norm=self.config.recipe.clip_grad_norm,
            epoch=epoch,
        )
        if result.refused is None:
            self._refused_in_a_row = 0
            parts.ema.update(parts.model)
            return result
        self._refused_in_a_row += 1
        names = [target.get("file_name", "?") for target in batch.targets]
        log.write(
            "refused_step",
            {"epoch": epoch, "step": self.progress.step, "why": result.refused, "images": names},
        )
        logger.warning("step %d refused (%s): %s", self.progress.step, result.refused, ", ".join(names))
        if self._refused_in_a_row >= MAX_REFUSED_IN_A_ROW:
            raise TrainingError(
                f"{self._refused_in_a_row} steps in a row gave no finite loss or gradient, the last with the "
                f"images {', '.join(names)}. Lower recipe.lr, or set runtime.amp=off, and resume from "
                f"{self.last_path}."
            )
        return result

    def _validate_epoch(self, epoch: int) -> dict[str, Any]:
        """Score the averaged weights, and the raw ones if asked; write best.pth on the highest score yet."""
        # The final stage starts from the best weights, so the epoch before it must have been scored.
        is_due = epoch + 1 in (self.config.epochs, self.parts.timeline.no_aug_epoch)
        if not is_due and (epoch + 1) % self.config.evaluation.every_epochs:
            return {}
        results: dict[WeightKind, Validation] = {"ema": self.parts.validate(self.parts.ema.model)}
        if self.config.evaluation.evaluate_raw:
            results["raw"] = self.parts.validate(self.parts.model.eval())
        weights, best = max(results.items(), key=lambda item: _score(item[1]))
        # Of equal scores the later counts: without any success yet, nothing learnt is thrown away.
        is_best = _score(best) >= self.progress.best.get("score", float("-inf"))
        if is_best:
            self.progress.best = {
                "metric": "ap",
                "score": _score(best),
                "epoch": epoch,
                "weights": weights,
            }
            save_checkpoint(self._state(epoch, weights=weights, resumable=False), self.best_path)
        return {
            "weights": weights,
            "ap": best.ap,
            "ap50": best.ap50,
            "worst_class": best.worst_class,
            "worst_class_ap50": best.worst_class_ap50,
            "is_best": is_best,
            "val": best.summary,
            "class_ap50": best.class_ap50,
            "val_raw": results["raw"].summary if "raw" in results else None,
        }

    def _state(self, epoch: int, *, weights: WeightKind, resumable: bool) -> dict[str, Any]:
        """A checkpoint: enough to use the detector and, if `resumable`, to go on training."""
        parts = self.parts
        tree: dict[str, Any] = {
            "format": FORMAT,
            "config": config_to_dict(self.config),
            "class_names": list(parts.class_names),
            "category_ids": list(parts.category_ids),
            "model": parts.model.state_dict(),
            "ema": {"model": parts.ema.model.state_dict(), "updates": parts.ema.updates},
            "weights": weights,
            "epoch": epoch,
            "step": self.progress.step,
            "best": self.progress.best,
        }
        if resumable:
            tree["optimizer"] = parts.optimizer.state_dict()
            tree["scaler"] = parts.precision.scaler.state_dict()
            tree["random"] = random_states()
        return tree

    def resume(self, path: Path) -> None:
        """Go on where a run stopped.

        Args:
            path: The `last.pth` of a run of the same config and classes.

        Raises:
            CheckpointError: If it is not such a checkpoint.
        """
        tree = read_checkpoint(path)
        parts = self.parts
        if "optimizer" not in tree:
            raise CheckpointError(f"{path}: holds weights only. Resume from last.pth of the same folder.")
        if tuple(tree["class_names"]) != parts.class_names:
            raise CheckpointError(
                f"{path}: was trained on the classes {', '.join(tree['class_names'])}, the dataset has "
                f"{', '.join(parts.class_names)}. Resume with the same data, or start a new run."
            )
        try:
            parts.model.load_state_dict(tree["model"])
            parts.ema.model.load_state_dict(tree["ema"]["model"])
            _load_optimizer(parts.optimizer, tree["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit the config of this run. {error}") from None
        parts.ema.updates = tree["ema"]["updates"]
        if tree["scaler"]:
            parts.precision.scaler.load_state_dict(tree["scaler"])
        restore_random_states(tree["random"])
        self.progress = Progress(next_epoch=tree["epoch"] + 1, step=tree["step"], best=tree["best"])
        self._adopt_best(path.parent / "best.pth")
        for line in _changed_options(tree["config"], config_to_dict(self.config)):
            logger.warning("changed since the run was stopped: %s", line)
        logger.info("resuming at epoch %d from %s", self.progress.next_epoch + 1, path)

    def _adopt_best(self, source: Path) -> None:
        """Bring best.pth along from the folder of a continued run; without it, forget its score."""
        if self.best_path.is_file():
            return
        if source.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.best_path)
        else:
            self.progress.best = {}

    def _restore_best(self) -> None:
        """Begin the final stage from the best weights so far, raw and averaged."""
        if not self.progress.best or not self.best_path.is_file():
            return
        tree = read_checkpoint(self.best_path)
        self.parts.model.load_state_dict(tree["model"])
        self.parts.ema.model.load_state_dict(tree["ema"]["model"])
        self.parts.ema.updates = tree["ema"]["updates"]
        logger.info("final stage: restored the weights of epoch %d", tree["epoch"] + 1)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments of a stopped run, but the options of this one."""
    options = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, wanted in zip(optimizer.param_groups, options, strict=True):
        group.update(wanted)


def _changed_options(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """A line for each option whose value differs."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _changed_options(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines


def _score(validation: Validation) -> float:
    """What `best.pth` is chosen by: AP, and the lowest of all values where there is none."""
    return -1.0 if validation.ap is None else validation.ap
