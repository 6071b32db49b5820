"""How a run is put into a checkpoint and restored from one, and which changes a resumed run may have."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from deim.config.loader import config_from_dict, config_to_dict
from deim.engine.checkpoints import OTHER_CHECKPOINT, AveragedWeights, Checkpoint, ResumeState
from deim.engine.context import TrainingRun
from deim.engine.early_stopping import EarlyStoppingState
from deim.engine.progress import Progress, WeightKind
from deim.engine.seeding import RandomStates
from deim.engine.step import unwrap_model
from deim.errors import CheckpointError, ConfigError
from deim.files import count
from deim.model.weights import check_kinds

logger = logging.getLogger(__name__)

FREE_OPTIONS = (
    "output_dir",
    "epochs",
    "data.root",
    "data.synthetic.backgrounds",
    "data.eval_batch_size",
    "data.num_workers",
    "data.worker_timeout_s",
    "data.cache_mb",
    "data.disk_cache_mb",
    "data.disk_cache_dir",
    "data.max_image_megapixels",
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
"""Options and blocks that may differ in a resumed run: the number of epochs, and all that changes neither its
data nor its weights."""

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
        validation_fingerprint=run.fingerprints["validation"],
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
        CheckpointError: If config or data differ, more epochs are done than the config asks for, or the
            tensors do not fit.
    """
    state = checkpoint.resume
    assert state is not None
    epochs, progress = run.context.config.epochs, state.progress
    differences = _find_differences(run, checkpoint, state)
    if differences and not force:
        listed = "\n".join(f"  {line}" for line in differences)
        raise CheckpointError(
            f"{path}: the run was started with other options or data (there -> here):\n{listed}\nUndo the "
            f"changes, start a new run, or resume all the same with --force."
        )
    num_begun = progress.epoch + (progress.steps_of_epoch > 0)
    if num_begun > epochs and not force:
        raise CheckpointError(
            f"{path}: epochs: got {epochs}, but the run is in epoch {num_begun} already. Give at least that "
            f"many."
        )
    for line in differences:
        logger.warning("changed since the run was stopped: %s", line)
    restore_weights(run, checkpoint, path=path)
    try:
        state.random.restore()
    except (RuntimeError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged random states ({error}). {OTHER_CHECKPOINT}") from None
    is_replanned = checkpoint.config["epochs"] != epochs
    if differences or is_replanned:
        _fit_to_changes(progress, run, checkpoint, state)
    if is_replanned:
        _log_epochs(run, checkpoint, progress)
    return progress


def _log_epochs(run: TrainingRun, checkpoint: Checkpoint, progress: Progress) -> None:
    """Say how the run continues with another number of epochs."""
    before, now = checkpoint.timeline, run.context.timeline
    factors = "" if before is None else f"{before.lr_factor(max(progress.step - 1, 0)):.3g} -> "
    logger.info(
        "epochs: %s -> %d. The phases follow from the new number, warm-up is not repeated; the learning rate "
        "becomes %s%.3g of the flat one",
        checkpoint.config["epochs"],
        run.context.config.epochs,
        factors,
        now.lr_factor(progress.step),
    )


def _fit_to_changes(progress: Progress, run: TrainingRun, checkpoint: Checkpoint, state: ResumeState) -> None:
    """Convert what was counted in steps of another number, or chosen for another batch size."""
    progress.stopped_early, progress.early_stopping = False, EarlyStoppingState()
    now, before = len(run.context.sampler), state.steps_per_epoch
    if before != now:
        progress.steps_of_epoch = round(progress.steps_of_epoch * now / before)
        step = progress.epoch * now + progress.steps_of_epoch
        logger.warning(
            "an epoch has %d steps instead of %d: step %d becomes %d", now, before, progress.step, step
        )
        progress.step = step
    batch_size = run.context.config.data.batch_size
    if checkpoint.config["data"]["batch_size"] != batch_size and not progress.halved:
        progress.micro_batch_size = None


def restore_weights(run: TrainingRun, checkpoint: Checkpoint, *, path: Path) -> None:
    """Put weights, averages, moments and loss scale back to the state of a checkpoint.

    Raises:
        CheckpointError: If the tensors do not fit.
    """
    state, optimizer = checkpoint.resume, run.step.optimizer
    assert state is not None
    # The moments of the stopped run, but the options of this one.
    kept = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    try:
        for weights in (checkpoint.model, checkpoint.ema.model):
            check_kinds(weights, run.ema.model.state_dict())
        restore_model(run, checkpoint)
        optimizer.load_state_dict(state.optimizer)
        _check_moments(optimizer)
        if state.scaler:
            run.step.precision.scaler.load_state_dict(state.scaler)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: does not fit the config of this run. {error}") from None
    for group, options in zip(optimizer.param_groups, kept, strict=True):
        group.update(options)


def _check_moments(optimizer: Optimizer) -> None:
    """Raise a ValueError if what an optimizer knows of a weight has another shape than the weight."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                raise ValueError(f"{name}: got {tuple(value.shape)}, needs {tuple(weight.shape)}.")


def restore_model(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Put the weights and their averages back to the state of any checkpoint of the run."""
    unwrap_model(run.step.model).load_state_dict(checkpoint.model)
    run.ema.model.load_state_dict(checkpoint.ema.model)
    run.ema.updates = checkpoint.ema.updates


def _find_differences(run: TrainingRun, checkpoint: Checkpoint, state: ResumeState) -> list[str]:
    """Return a line for each difference between a checkpoint's run and this one, except in free options."""
    context, lines = run.context, []
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
    for name, (there, now) in counts.items():
        if there != now:
            lines.append(f"{name}: {there} -> {now} (with {count('process', context.distributed.size)})")
    free = {*FREE_OPTIONS, *run.task.free_options}
    try:  # options that are newer than the checkpoint have their defaults there
        stored = config_to_dict(config_from_dict(checkpoint.config, where="the checkpoint"))
    except ConfigError:  # it has options that are gone
        stored = dict(checkpoint.config)
    return lines + _changed_options(stored, config_to_dict(context.config), free=free)


def _changed_options(there: Any, here: Any, *, free: set[str], key: str = "") -> list[str]:
    """Return a line for each difference between two configs in plain types, at a dotted key."""
    if key in free:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        lines = []
        for name in sorted(there.keys() | here.keys()):
            path = f"{key}.{name}" if key else name
            lines += _changed_options(there.get(name), here.get(name), free=free, key=path)
        return lines
    return [f"{key}: {there} -> {here}"] if there != here else []
