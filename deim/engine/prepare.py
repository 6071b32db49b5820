"""From configuration to a trainer in its run folder."""

import logging
import shutil
from pathlib import Path

from torch import nn

from deim.config.loader import config_to_yaml
from deim.config.schema import Config
from deim.data.loader import build_train_batches
from deim.data.splits import Splits
from deim.engine.checkpoints import previous_path
from deim.engine.context import RunParts, Validate
from deim.engine.device import select_device, select_precision
from deim.engine.distributed import DistributedContext, exchange_gradients
from deim.engine.ema import ModelEma
from deim.engine.preflight import BatchPlan, plan_batches, preflight
from deim.engine.schedule import resolve_ema, resolve_schedule
from deim.engine.seeding import seed_everything, use_deterministic_operations
from deim.engine.step import StepParts
from deim.engine.task import BuildSubject, Setting, build_detector_subject
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, TrainingError
from deim.files import UNFINISHED, remove_unfinished
from deim.model.activation_checkpointing import checkpoint_activations
from deim.model.detector import Detector

logger = logging.getLogger(__name__)

RUN_FILES = (
    "last.pth",
    "last.previous.pth",
    "best.pth",
    "best_before_final_stage.pth",
    "report.json",
    "report.html",
    "report",
    "report_detector.json",
    "report_detector.html",
    "report_detector",
    "report_comparison.json",
    "report_comparison.html",
    "report_comparison",
    "text_ablation.json",
    "metrics.jsonl",
    "config.yml",
    "tensorboard",
)
"""All that a run of either phase writes to its folder; a folder with one of these holds a run."""

SET_ASIDE = ".replaced"
"""Folder within a run's, in which an overwritten run waits until the new one ends after at least a step."""


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


def refuse_existing_run(folder: Path, *, resume_from: Path | None, may_begin_anew: bool = False) -> None:
    """Refuse to write over a run, unless it is the one that goes on.

    Args:
        folder: The run folder.
        resume_from: Checkpoint to go on from; None for a new run.
        may_begin_anew: A run that was stopped before its first checkpoint is no reason to refuse.

    Raises:
        TrainingError: If the folder holds another run.
    """
    if resume_from is not None and resume_from.resolve().parent == folder.resolve():
        return
    found = [name for name in RUN_FILES if (folder / name).exists()]
    if may_begin_anew and not {"best.pth", "report.json"} & set(found):
        return
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
    build_subject: BuildSubject = build_detector_subject,
    overwrite: bool = False,
    resume_from: Path | None = None,
    force: bool = False,
    may_begin_anew: bool = False,
    distributed: DistributedContext | None = None,
) -> Trainer:
    """Build everything that a run needs, and its folder last, so that an error leaves nothing behind.

    Args:
        config: The experiment.
        splits: Training and validation data.
        validate: Scores a model on the validation split.
        build_subject: Builds what is trained; the default is a detector.
        overwrite: Replace a run that the folder already holds; without it that is refused.
        resume_from: Checkpoint to go on from; None for a new run.
        force: Go on though data or options have changed since.
        may_begin_anew: A run that was stopped before its first checkpoint may be begun again.
        distributed: The processes of the run; None for this one alone.

    Raises:
        DeimError: If an option does not fit the data or the machine, or a file is wrong.
    """
    distributed = distributed or DistributedContext()
    folder = Path(config.output_dir)
    if not overwrite:
        refuse_existing_run(folder, resume_from=resume_from, may_begin_anew=may_begin_anew)
    plan = plan_batches(config, distributed)
    parts = _build_parts(
        config,
        splits,
        validate=validate,
        build_subject=build_subject,
        plan=plan,
        distributed=distributed,
        is_new=resume_from is None,
    )
    trainer = Trainer(config, parts, folder=folder)
    if resume_from is not None:
        trainer.resume(resume_from, force=force)
    micro_batch_size = _micro_batch_size(trainer, plan)
    _log_plan(config, parts, plan)
    if config.runtime.preflight or plan.micro is None:
        micro_batch_size = preflight(
            config, parts, plan, train=splits.train, micro_batch_size=micro_batch_size
        )
    trainer.progress.micro_batch_size = micro_batch_size
    if distributed.is_main:
        _prepare_folder(trainer)
    distributed.wait()
    if not (folder / "config.yml").is_file():
        raise TrainingError(
            f"{folder}: process {distributed.rank} does not see the folder that the main process has made. Set "
            f"output_dir to a folder that all machines share."
        )
    return trainer


def _micro_batch_size(trainer: Trainer, plan: BatchPlan) -> int | None:
    """Images at once in memory: as planned, or as before in a continued run; None if yet to be found out."""
    before = trainer.progress.micro_batch_size
    if before is None or (plan.micro is not None and not trainer.progress.halved):
        return plan.micro
    return min(before, plan.micro or plan.share)


def _build_parts(
    config: Config,
    splits: Splits,
    *,
    validate: Validate,
    build_subject: BuildSubject,
    plan: BatchPlan,
    distributed: DistributedContext,
    is_new: bool,
) -> RunParts:
    device = select_device(config.runtime.device, distributed=distributed)
    precision = select_precision(config.runtime.amp, device)
    seed_everything(config.seed)
    if config.runtime.deterministic:
        use_deterministic_operations()
    batches = build_train_batches(
        config, splits.train, batch_size=plan.effective, rank=distributed.rank, num_ranks=distributed.size
    )
    timeline = resolve_schedule(
        config.schedule,
        epochs=config.epochs,
        steps_per_epoch=len(batches),
        has_stages=config.multimodal is None,
    )
    averaging = resolve_ema(config.ema, total_steps=timeline.total_steps)
    subject = build_subject(
        Setting(
            config=config,
            splits=splits,
            batches=batches,
            timeline=timeline,
            device=device,
            precision=precision,
            distributed=distributed,
            is_new=is_new,
        )
    )
    ema = ModelEma(subject.model, averaging)
    if config.runtime.activation_checkpointing:
        for detector in _detectors(subject.model):
            checkpoint_activations(detector)
    if config.runtime.compile:
        for detector in [*_detectors(subject.model), *_detectors(ema.model)]:
            detector.backbone.compile()
            detector.encoder.compile()
    return RunParts(
        step=StepParts(
            model=exchange_gradients(subject.model, distributed),
            criterion=subject.criterion,
            optimizer=subject.optimizer,
            precision=precision,
            clip_grad_norm=config.recipe.clip_grad_norm,
            distributed=distributed,
        ),
        ema=ema,
        loader=subject.loader,
        batches=batches,
        timeline=timeline,
        device=device,
        validate=validate,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        fingerprints={
            "training": splits.train.fingerprint(),
            "validation": splits.val.fingerprint(),
            **subject.fingerprints,
        },
        stored=subject.stored,
        must_beat_start=subject.must_beat_start,
    )


def _detectors(model: nn.Module) -> list[Detector]:
    """The detector itself, or that within the model."""
    return [module for module in model.modules() if isinstance(module, Detector)]


def finalize_run_dir(folder: Path, *, has_begun: bool) -> None:
    """Decide between a run and the one that it overwrites, when it ends for whatever reason.

    Args:
        folder: The run folder.
        has_begun: The new run has made a step and stays; otherwise the old one, if any, comes back.
    """
    aside = folder / SET_ASIDE
    if not has_begun:
        _remove(folder)
        _put_back(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _prepare_folder(trainer: Trainer) -> None:
    folder = trainer.folder
    if not trainer.goes_on_here:
        _set_aside(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".config.yml{UNFINISHED}"
        temporary.write_text(config_to_yaml(trainer.config), encoding="utf-8")
        temporary.replace(folder / "config.yml")
        trainer.adopt_best()
    except BaseException:
        if not trainer.goes_on_here:
            finalize_run_dir(folder, has_begun=False)
        raise


def _set_aside(folder: Path) -> None:
    """Move the files of a run out of the way; after an error all of them are back where they were.

    Raises:
        TrainingError: If a file stands where they would go.
    """
    aside = folder / SET_ASIDE
    if aside.is_dir():  # an overwriting run was killed here
        finalize_run_dir(folder, has_begun=(folder / "best.pth").is_file())
    elif aside.exists():
        raise TrainingError(
            f"{aside}: a file stands where --overwrite keeps the old run until the new one has made a step. "
            f"Move it away, or choose another folder with --set output_dir=FOLDER."
        )
    try:
        for path in [folder / name for name in RUN_FILES]:
            if path.exists():
                aside.mkdir(exist_ok=True)
                path.replace(aside / path.name)
    except BaseException:
        _put_back(folder)
        raise


def _put_back(folder: Path) -> None:
    """Move the files of a run that was set aside to where they were."""
    aside = folder / SET_ASIDE
    if aside.is_dir():
        for path in aside.iterdir():
            path.replace(folder / path.name)
        aside.rmdir()


def _remove(folder: Path) -> None:
    remove_unfinished(folder)
    for path in [folder / name for name in RUN_FILES]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _log_plan(config: Config, parts: RunParts, plan: BatchPlan) -> None:
    step, stopping = parts.step, config.early_stopping
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
        parts.device if step.distributed.size == 1 else f"{step.distributed.size} processes",
    )
    if config.model.init_from is None and config.multimodal is None:
        logger.info("starting from random weights; set model.init_from to start from trained ones")
    stage = config.epochs - parts.timeline.no_aug_epoch
    if stopping.patience is not None and not stopping.before_final_stage and 0 < stage <= stopping.patience:
        logger.warning(
            "early_stopping.patience: %d epochs never run out in the final stage of %d, in which they count",
            stopping.patience,
            stage,
        )
    averaging = parts.ema.schedule
    logger.info("timeline:\n%s", parts.timeline.describe())
    if config.multimodal is not None:
        start = config.multimodal.class_head_from_epoch
        logger.info("  class head            %s", "never" if start is None else f"from epoch {start}")
    logger.info("  averaged weights      decay %.5f, ramp %d steps", averaging.decay, averaging.warmup_steps)
