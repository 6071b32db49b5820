"""How a run is put into a checkpoint and restored from one, and which changes a resumed run may have."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deim.config.loader import config_from_dict, config_to_dict
from deim.engine.checkpoints import AveragedWeights, Checkpoint, ResumeState
from deim.engine.context import TrainingRun
from deim.engine.memory import peak_bytes, reset_peak
from deim.engine.progress import Progress, WeightKind
from deim.engine.seeding import RandomStates
from deim.engine.step import unwrap_model
from deim.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

FREE_OPTIONS = (
    "output_dir",
    "data.root",
    "data.eval_batch_size",
    "data.num_workers",
    "data.cache_mb",
    "data.disk_cache_mb",
    "data.disk_cache_dir",
    "data.normal_class",
    "evaluation.bootstrap_resamples",
    "evaluation.draw_threshold",
    "evaluation.goal",
    "evaluation.max_escape_rate",
    "evaluation.nms",
    "runtime.device",
    "runtime.tensorboard",
    "runtime.checkpoint_minutes",
    "runtime.preflight",
)
"""Options and blocks that may differ in a resumed run: they change neither its data nor its weights."""

DATA_MESSAGES = {
    "training": "training data: other images or annotations",
    "validation": "validation data: other images or annotations",
}
"""Line for each fingerprint of the data, for a resumed run in which it differs."""


def capture_checkpoint(
    run: TrainingRun, progress: Progress, *, epoch: int, weights: WeightKind
) -> Checkpoint:
    """Put a run into a checkpoint that is enough to use the detector, with weights of an epoch (0-based)."""
    config, train = run.context.config, run.context.splits.train
    return Checkpoint(
        config=config_to_dict(config),
        task=config.task.type,
        task_state=run.products.state,
        class_names=train.class_names,
        category_ids=train.category_ids,
        model=unwrap_model(run.step.model).state_dict(),
        ema=AveragedWeights(model=run.ema.model.state_dict(), updates=run.ema.updates),
        weights=weights,
        epoch=epoch,
        step=progress.step,
        best=progress.best,
        timeline=run.context.timeline,
    )


def capture_resumable(run: TrainingRun, progress: Progress) -> Checkpoint:
    """Put a run into a checkpoint from which training can be resumed."""
    epoch = max(progress.epoch - (progress.steps_of_epoch == 0), 0)
    return replace(
        capture_checkpoint(run, progress, epoch=epoch, weights="ema"),
        resume=ResumeState(
            optimizer=run.step.optimizer.state_dict(),
            scaler=run.step.precision.scaler.state_dict(),
            random=RandomStates.capture(),
            progress=progress,
            fingerprints=run.fingerprints,
            batch_size=run.context.sampler.batch_size,
            steps_per_epoch=len(run.context.sampler),
        ),
    )


def restore_run(run: TrainingRun, checkpoint: Checkpoint, *, path: Path, force: bool) -> Progress:
    """Put a run back to the state of a checkpoint, and return how far the run had come.

    Args:
        run: The run; changed in place.
        checkpoint: Checkpoint from which training can be resumed.
        path: File that it was read from, for messages.
        force: Resume although config or data differ; the differences are logged.

    Raises:
        CheckpointError: If it belongs to another run, or its tensors do not fit.
    """
    state = checkpoint.resume
    assert state is not None
    differences = find_differences(run, checkpoint)
    if differences and not force:
        listed = "\n".join(f"  {line}" for line in differences)
        raise CheckpointError(
            f"{path}: belongs to another run, these differ (there -> here):\n{listed}\nUndo the changes, "
            f"start a new run, or resume all the same with --force."
        )
    for line in differences:
        logger.warning("changed since the run was stopped: %s", line)
    restore_weights(run, checkpoint, path=path)
    state.random.restore()
    progress = state.progress
    if differences:
        progress.stopped_early = False
        _fit_to_changes(progress, run, checkpoint)
    return progress


def _fit_to_changes(progress: Progress, run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Convert what was counted in steps of another number, or chosen for another batch size."""
    assert checkpoint.resume is not None
    now, before = len(run.context.sampler), checkpoint.resume.steps_per_epoch
    if before != now:
        steps_of_epoch = round(progress.steps_of_epoch * now / before)
        step = progress.epoch * now + steps_of_epoch
        logger.warning(
            "an epoch has %d steps instead of %d: step %d becomes %d", now, before, progress.step, step
        )
        progress.step, progress.steps_of_epoch = step, steps_of_epoch
    batch_size = run.context.config.data.batch_size
    if checkpoint.config["data"]["batch_size"] != batch_size and not progress.halved:
        progress.micro_batch_size = None


def restore_weights(run: TrainingRun, checkpoint: Checkpoint, *, path: Path) -> None:
    """Put weights, averages, moments and loss scale back to the state of a checkpoint.

    Raises:
        CheckpointError: If the tensors do not fit.
    """
    assert checkpoint.resume is not None
    try:
        restore_model(run, checkpoint)
        _load_optimizer(run.step.optimizer, checkpoint.resume.optimizer)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit the config of this run. {error}") from None
    if checkpoint.resume.scaler:
        run.step.precision.scaler.load_state_dict(dict(checkpoint.resume.scaler))


def restore_model(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Put the weights and their averages back to the state of any checkpoint of the run."""
    unwrap_model(run.step.model).load_state_dict(checkpoint.model)
    run.ema.model.load_state_dict(checkpoint.ema.model)
    run.ema.updates = checkpoint.ema.updates


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the moments of a stopped run, but keep the options of this one."""
    options = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, options, strict=True):
        group.update(kept)


def epoch_values(run: TrainingRun, progress: Progress) -> dict[str, Any]:
    """Return the entries of an epoch in `metrics.jsonl`, and measure the peak of memory anew."""
    recipe, device = run.context.config.recipe, run.context.device
    factor = run.context.timeline.lr_factor(progress.step - 1) * progress.lr_scale
    values = {
        "epoch": progress.epoch,
        "step": progress.step,
        "lr": recipe.lr * factor,
        "backbone_lr": recipe.backbone_lr * factor if run.task.trains_backbone else 0.0,
        "peak_memory_bytes": peak_bytes(device),
        **progress.sums.means(),
    }
    reset_peak(device)
    return values


def find_differences(run: TrainingRun, checkpoint: Checkpoint) -> list[str]:
    """Return a line for each difference between a checkpoint's run and this one, except in free options."""
    state, context = checkpoint.resume, run.context
    assert state is not None
    lines = []
    class_names = context.splits.train.class_names
    if checkpoint.class_names != class_names:
        lines.append(f"classes: {', '.join(checkpoint.class_names)} -> {', '.join(class_names)}")
    messages = {**DATA_MESSAGES, **run.task.fingerprint_messages}
    for name, here in run.fingerprints.items():
        if state.fingerprints.get(name, here) != here:
            lines.append(messages[name])
    counts = {
        "images of a step": (state.batch_size, context.sampler.batch_size),
        "steps of an epoch": (state.steps_per_epoch, len(context.sampler)),
    }
    for name, (there, here_count) in counts.items():
        if there != here_count:
            lines.append(f"{name}: {there} -> {here_count} (with {context.distributed.size} processes)")
    free = {*FREE_OPTIONS, *run.task.free_options}
    stored = _with_new_options(checkpoint.config)
    return lines + _changed_options(stored, config_to_dict(context.config), free=free)


def _with_new_options(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the defaults of options that are newer than a stored config, unless some of its own are gone."""
    try:
        return config_to_dict(config_from_dict(stored, where="the checkpoint"))
    except ConfigError:
        return stored


def _changed_options(
    old: Mapping[str, Any], new: Mapping[str, Any], *, free: set[str], prefix: str = ""
) -> list[str]:
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if f"{prefix}{name}" in free:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _changed_options(before, after, free=free, prefix=f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before} -> {after}")
    return lines
