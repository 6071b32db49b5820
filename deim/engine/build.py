"""From configuration to a trainer in its run folder."""

import logging
import shutil
from pathlib import Path

from deim.config import Config, config_to_yaml
from deim.data.build import Splits, build_augmentation, build_train_batches, build_train_loader
from deim.engine.checkpoint import previous_path
from deim.engine.device import select_device, select_precision
from deim.engine.distributed import World, exchange_gradients
from deim.engine.ema import ModelEma
from deim.engine.optimizer import build_optimizer
from deim.engine.preflight import BatchPlan, plan_batches, preflight
from deim.engine.run_state import RunParts, Validate
from deim.engine.schedule import resolve_ema, resolve_schedule
from deim.engine.seeding import seed_everything, use_deterministic_operations
from deim.engine.step import StepParts
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, TrainingError
from deim.loss.build import build_criterion
from deim.model.build import build_model
from deim.model.recompute import recompute_activations
from deim.model.weights import load_initial_weights

logger = logging.getLogger(__name__)

RESULTS = ("last.pth", "last.previous.pth", "best.pth", "report.json")
"""A folder with one of these holds a run."""

RUN_FILES = (*RESULTS, "best_before_final_stage.pth", "metrics.jsonl", "config.yml")
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
        return last if last.is_file() or previous_path(last).is_file() else None
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
    overwrite: bool = False,
    resume_from: Path | None = None,
    force: bool = False,
    world: World | None = None,
) -> Trainer:
    """Build everything that a run needs, and its folder last, so that an error leaves nothing behind.

    Args:
        config: The experiment.
        splits: Training and validation data.
        validate: Scores a model on the validation split.
        overwrite: Remove a run that the folder already holds; without it that is refused.
        resume_from: Checkpoint to go on from; None for a new run.
        force: Go on though data or options have changed since.
        world: The processes of the run; None for this one alone.

    Raises:
        DeimError: If an option does not fit the data or the machine, or a file is wrong.
    """
    world = world or World()
    folder = Path(config.output_dir)
    if resume_from is None and not overwrite:
        refuse_existing_run(folder)
    plan = plan_batches(config, world)
    parts = _build_parts(config, splits, validate=validate, plan=plan, world=world, fresh=resume_from is None)
    trainer = Trainer(config, parts, folder=folder)
    if resume_from is not None:
        trainer.resume(resume_from, force=force)
    micro_batch_size = trainer.progress.micro_batch_size or plan.micro
    _log_plan(config, parts, plan)
    if config.runtime.preflight or micro_batch_size is None:
        micro_batch_size = preflight(
            config, parts, plan, train=splits.train, micro_batch_size=micro_batch_size
        )
    trainer.progress.micro_batch_size = micro_batch_size
    # Without a checkpoint to go on from, whatever is there is to be replaced or was never finished.
    if world.is_main:
        _prepare_folder(config, folder, clear=resume_from is None)
    world.wait()
    return trainer


def _build_parts(
    config: Config, splits: Splits, *, validate: Validate, plan: BatchPlan, world: World, fresh: bool
) -> RunParts:
    device = select_device(config.runtime.device, local_rank=world.local_rank if world.size > 1 else None)
    precision = select_precision(config.runtime.amp, device)
    seed_everything(config.seed)
    if config.runtime.deterministic:
        use_deterministic_operations()
    batches = build_train_batches(
        config, splits.train, batch_size=plan.effective, rank=world.rank, num_ranks=world.size
    )
    timeline = resolve_schedule(config.schedule, epochs=config.epochs, steps_per_epoch=len(batches))
    averaging = resolve_ema(config.ema, total_steps=timeline.total_steps)
    model = build_model(config.model, len(splits.train.class_names))
    if config.model.init_from is not None and fresh:
        load_initial_weights(model, Path(config.model.init_from))
    model.to(device)
    ema = ModelEma(model, averaging)
    augmentation = build_augmentation(
        config.augment, start_epoch=timeline.augment_start_epoch, stop_epoch=timeline.no_aug_epoch
    )
    optimizer = build_optimizer(model, config.recipe)
    if config.runtime.activation_checkpointing:
        recompute_activations(model)
    if config.runtime.compile:
        for compiled in (model, ema.model):
            compiled.backbone.compile()
            compiled.encoder.compile()
    return RunParts(
        step=StepParts(
            model=exchange_gradients(model, world),
            criterion=build_criterion(config.loss, matcher_change_epoch=timeline.matcher_change_epoch),
            optimizer=optimizer,
            precision=precision,
            clip_grad_norm=config.recipe.clip_grad_norm,
            world=world,
        ),
        ema=ema,
        loader=build_train_loader(config, splits.train, augmentation=augmentation, batches=batches),
        batches=batches,
        timeline=timeline,
        device=device,
        validate=validate,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        fingerprints={"training": splits.train.fingerprint(), "validation": splits.val.fingerprint()},
    )


def discard_unstarted_run(folder: Path) -> None:
    """Remove what a run wrote that ended before its first step, so that it can be started again."""
    if not folder.is_dir():
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


def _log_plan(config: Config, parts: RunParts, plan: BatchPlan) -> None:
    step = parts.step
    parameters = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    precision = "float32" if step.precision.dtype is None else str(step.precision.dtype).split(".")[-1]
    height, width = config.image_size_hw
    logger.info(
        "%s: %.1f million parameters, %dx%d px, batch %d, %s on %s",
        config.model.name,
        parameters / 1e6,
        height,
        width,
        plan.effective,
        precision,
        parts.device if step.world.size == 1 else f"{step.world.size} processes",
    )
    if config.model.init_from is None:
        logger.info("starting from random weights; set model.init_from to start from trained ones")
    averaging = parts.ema.schedule
    logger.info("timeline:\n%s", parts.timeline.describe())
    logger.info("  averaged weights      decay %.5f, ramp %d steps", averaging.decay, averaging.warmup_steps)
