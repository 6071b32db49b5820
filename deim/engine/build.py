"""From configuration to a trainer in its run folder."""

import logging
import shutil
from pathlib import Path

from deim.config import Config, config_to_yaml
from deim.data.build import Splits, build_augmentation, build_train_loader
from deim.engine.device import select_device, select_precision
from deim.engine.ema import ModelEma
from deim.engine.optimizer import build_optimizer
from deim.engine.schedule import resolve_ema, resolve_schedule
from deim.engine.seeding import seed_everything
from deim.engine.trainer import Trainer, TrainingParts, Validate
from deim.errors import CheckpointError, TrainingError
from deim.loss.build import build_criterion
from deim.model.build import build_model
from deim.model.weights import load_initial_weights

logger = logging.getLogger(__name__)

RESULTS = ("last.pth", "best.pth", "report.json")
"""A folder with one of these holds a run."""

RUN_FILES = (*RESULTS, "metrics.jsonl", "config.yml")
"""All that a run writes, but for TensorBoard's folder and pictures."""


def find_resume(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from.

    Args:
        folder: The run folder.
        resume: None for a new run, `auto` for the folder's own `last.pth` if there is one, or a path.

    Raises:
        CheckpointError: If the named checkpoint does not exist.
    """
    if resume is None:
        return None
    if resume == "auto":
        last = folder / "last.pth"
        return last if last.is_file() else None
    if not Path(resume).is_file():
        raise CheckpointError(f"{resume}: no such checkpoint to resume from. Use --resume auto, or its path.")
    return Path(resume)


def refuse_existing_run(folder: Path) -> None:
    """Refuse to write over a run.

    Raises:
        TrainingError: If the folder holds one.
    """
    found = [name for name in RESULTS if (folder / name).exists()]
    if found:
        raise TrainingError(
            f"{folder}: already holds a run ({', '.join(found)}). Go on with it by --resume auto, "
            f"replace it by --overwrite, or choose another folder with --set output_dir=FOLDER."
        )


def build_trainer(
    config: Config,
    splits: Splits,
    *,
    validate: Validate,
    overwrite: bool,
    resume_from: Path | None,
) -> Trainer:
    """Build everything that a run needs, and its folder last, so that an error leaves nothing behind.

    Args:
        config: The experiment.
        splits: Training and validation data.
        validate: Scores a model on the validation split.
        overwrite: Remove a run that the folder already holds; without it that is refused.
        resume_from: Checkpoint to go on from; None for a new run.

    Raises:
        DeimError: If an option does not fit the data or the machine, or a file is wrong.
    """
    folder = Path(config.output_dir)
    if resume_from is None and not overwrite:
        refuse_existing_run(folder)
    device = select_device(config.runtime.device)
    precision = select_precision(config.runtime.amp, device)
    seed_everything(config.seed)
    steps_per_epoch = -(-len(splits.train) // config.data.batch_size)
    timeline = resolve_schedule(config.schedule, epochs=config.epochs, steps_per_epoch=steps_per_epoch)
    averaging = resolve_ema(config.ema, total_steps=timeline.total_steps)
    model = build_model(config.model, len(splits.train.class_names))
    if config.model.init_from is not None and resume_from is None:
        load_initial_weights(model, Path(config.model.init_from))
    model.to(device)
    augmentation = build_augmentation(
        config.augment, start_epoch=timeline.augment_start_epoch, stop_epoch=timeline.no_aug_epoch
    )
    loader, sampler = build_train_loader(config, splits.train, augmentation=augmentation)
    parts = TrainingParts(
        model=model,
        criterion=build_criterion(config.loss, matcher_change_epoch=timeline.matcher_change_epoch),
        optimizer=build_optimizer(model, config.recipe),
        ema=ModelEma(model, averaging),
        loader=loader,
        sampler=sampler,
        timeline=timeline,
        precision=precision,
        device=device,
        validate=validate,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
    )
    trainer = Trainer(config, parts, folder=folder)
    if resume_from is not None:
        trainer.resume(resume_from)
    _log_plan(config, parts)
    # Without a checkpoint to go on from, whatever is there is to be replaced or was never finished.
    _prepare_folder(config, folder, clear=resume_from is None)
    return trainer


def discard_unstarted_run(folder: Path) -> None:
    """Remove what a run wrote if it ended before its first checkpoint, so that it can be started again."""
    if not folder.is_dir() or any((folder / name).exists() for name in RESULTS):
        return
    _clear(folder)
    if not any(folder.iterdir()):
        folder.rmdir()


def _clear(folder: Path) -> None:
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _prepare_folder(config: Config, folder: Path, *, clear: bool) -> None:
    if clear:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(config_to_yaml(config), encoding="utf-8")


def _log_plan(config: Config, parts: TrainingParts) -> None:
    parameters = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    precision = "float32" if parts.precision.dtype is None else str(parts.precision.dtype).split(".")[-1]
    height, width = config.image_size_hw
    logger.info(
        "%s: %.1f million parameters, %dx%d px, batch %d, %s on %s",
        config.model.name,
        parameters / 1e6,
        height,
        width,
        config.data.batch_size,
        precision,
        parts.device,
    )
    if config.model.init_from is None:
        logger.info("starting from random weights; set model.init_from to start from trained ones")
    averaging = parts.ema.schedule
    logger.info("timeline:\n%s", parts.timeline.describe())
    logger.info("  averaged weights      decay %.5f, ramp %d steps", averaging.decay, averaging.warmup_steps)
