"""From a config to a run: what is settled before the model is built, and the trainer in its run folder."""

import logging
from pathlib import Path

from torch import nn

from deim.config.loader import config_to_yaml
from deim.config.schema import Config
from deim.data.loader import build_sampler
from deim.data.splits import Splits
from deim.engine.checkpoints import Checkpoint, RunCheckpoints
from deim.engine.context import BatchPlan, RunContext, TrainingRun
from deim.engine.device import select_device, select_precision
from deim.engine.disk_space import check_disk_space
from deim.engine.distributed import DistributedContext, exchange_gradients
from deim.engine.ema import ModelEma, resolve_ema
from deim.engine.preflight import preflight
from deim.engine.run_folder import prepare_run_dir, refuse_existing_run
from deim.engine.schedule import resolve_schedule
from deim.engine.seeding import seed_everything, use_deterministic_operations
from deim.engine.step import StepContext
from deim.engine.task import load_task
from deim.engine.trainer import Trainer
from deim.engine.validation import DrawBatch, Validate
from deim.errors import TrainingError
from deim.files import count
from deim.model.activation_checkpointing import checkpoint_activations
from deim.model.weights import AnyModel

logger = logging.getLogger(__name__)


def plan_batches(config: Config, distributed: DistributedContext) -> BatchPlan:
    """Turn `data.batch_size` and `data.effective_batch_size` into numbers.

    Raises:
        TrainingError: If they contradict each other or the number of processes.
    """
    data = config.data
    if data.batch_size == "auto":
        assert data.effective_batch_size is not None  # checked by the config
        effective, micro = data.effective_batch_size, None
    else:
        effective, micro = data.effective_batch_size or data.batch_size * distributed.size, data.batch_size
    if effective % distributed.size:
        raise TrainingError(
            f"data.effective_batch_size: {effective} cannot be split equally among {distributed.size} "
            f"processes. Use a multiple of {distributed.size}."
        )
    share = effective // distributed.size
    if micro is not None and micro > share:
        raise TrainingError(
            f"data.batch_size: got {micro}, but a process has {count('image', share)} of a step of "
            f"effective_batch_size {effective}. Lower it or raise effective_batch_size."
        )
    return BatchPlan(effective=effective, share=share, micro=micro)


def prepare_run(
    config: Config,
    splits: Splits,
    *,
    distributed: DistributedContext | None = None,
    resumed: Checkpoint | None = None,
) -> RunContext:
    """Settle everything about a run that does not need a model.

    Training, the preview of its batches and the ablation of text all begin with it. A resumed run takes its
    weights from the checkpoint `resumed` later.

    Raises:
        DeimError: If an option does not fit the data or the machine.
    """
    distributed = distributed or DistributedContext()
    plan = plan_batches(config, distributed)
    device = select_device(config.runtime.device, distributed=distributed)
    precision = select_precision(config.runtime.amp, device)
    sampler = build_sampler(
        config.data,
        splits.train,
        seed=config.seed,
        batch_size=plan.effective,
        image_size_hw=config.image_size_hw,
        rank=distributed.rank,
        num_ranks=distributed.size,
    )
    if not len(sampler):
        raise TrainingError(
            f"data.root: an epoch has 0 steps, got {count('training image', sampler.num_images)} for "
            f"{count('process', distributed.size)}. Each process needs at least one: add images, or start "
            f"fewer processes."
        )
    before = None if resumed is None else resumed.timeline
    if before is not None and before.steps_per_epoch != len(sampler):
        before = None  # its steps are not those of this run
    timeline = resolve_schedule(
        config.schedule,
        epochs=config.epochs,
        steps_per_epoch=len(sampler),
        has_stages=load_task(config.task.type).has_stages,
        before=before,
    )
    return RunContext(
        config=config,
        splits=splits,
        plan=plan,
        sampler=sampler,
        timeline=timeline,
        device=device,
        precision=precision,
        distributed=distributed,
        is_new=resumed is None,
    )


def build_trainer(
    config: Config,
    splits: Splits,
    *,
    validate: Validate,
    draw_batch: DrawBatch | None = None,
    overwrite: bool = False,
    resume_from: Path | None = None,
    force: bool = False,
    may_restart: bool = False,
    distributed: DistributedContext | None = None,
) -> Trainer:
    """Build everything that a run needs, and its folder last, so that an error leaves nothing behind.

    Args:
        config: The experiment.
        splits: Training and validation data.
        validate: Evaluates a model on the validation split.
        draw_batch: Draws a training batch for TensorBoard; None for no drawing.
        overwrite: Replace a run that the folder already holds, which is refused otherwise.
        resume_from: Checkpoint to resume from; None for a new run.
        force: Resume although data or options have changed since.
        may_restart: A run that was stopped before its first checkpoint may be started again.
        distributed: The processes of the run; None for this one alone.

    Raises:
        DeimError: If an option does not fit the data or the machine, or a file is wrong.
    """
    distributed = distributed or DistributedContext()
    folder = Path(config.output_dir)
    if not overwrite:
        refuse_existing_run(folder, resume_from=resume_from, may_restart=may_restart)
    checkpoints = RunCheckpoints(folder)
    stored, source = (None, folder) if resume_from is None else checkpoints.read_for_resume(resume_from)
    context = prepare_run(config, splits, distributed=distributed, resumed=stored)
    run = _build_training(context)
    trainer = Trainer(run, validate=validate, checkpoints=checkpoints, draw_batch=draw_batch)
    if stored is not None:
        trainer.resume(stored, source, force=force)
    _log_run(run)
    micro_batch_size = _micro_batch_size(trainer, context.plan)
    if config.runtime.preflight or context.plan.micro is None:
        micro_batch_size = preflight(run, micro_batch_size=micro_batch_size)
    trainer.progress.micro_batch_size = micro_batch_size
    if distributed.is_main:
        check_disk_space(run, checkpoints)
        continues_here = trainer.checkpoints.continues_here
        with prepare_run_dir(folder, config_yaml=config_to_yaml(config), continues_here=continues_here):
            trainer.checkpoints.adopt()
    distributed.wait()
    if not (folder / "config.yml").is_file():
        raise TrainingError(
            f"{folder}: process {distributed.rank} does not see the folder of the main process. Set "
            f"output_dir to a folder that all machines share."
        )
    return trainer


def _build_training(context: RunContext) -> TrainingRun:
    """Build what is trained, and wrap it for memory, speed and several processes."""
    config, splits, distributed = context.config, context.splits, context.distributed
    task = load_task(config.task.type)
    seed_everything(config.seed)
    if config.runtime.deterministic:
        use_deterministic_operations()
    products = task.build(context)
    total_steps = context.timeline.total_steps
    ema = ModelEma(products.model, resolve_ema(config.ema, total_steps=total_steps))
    if config.runtime.activation_checkpointing:
        for network in _networks(products.model):
            checkpoint_activations(network)
    if config.runtime.compile:
        # The two sizes have a graph each: one of any size takes longer, and fails on a CPU (torch 2.14).
        dynamic = None if config.schedule.low_resolution is None else False
        for network in [*_networks(products.model), *_networks(ema.model)]:
            for part in network.large_parts:
                part.compile(dynamic=dynamic)
    data = {"training": splits.train.fingerprint(), "validation": splits.val.fingerprint()}
    return TrainingRun(
        task=task,
        context=context,
        products=products,
        step=StepContext(
            model=exchange_gradients(products.model, distributed),
            criterion=products.criterion,
            optimizer=products.optimizer,
            precision=context.precision,
            clip_grad_norm=config.recipe.clip_grad_norm,
            distributed=distributed,
        ),
        ema=ema,
        fingerprints={**data, **products.fingerprints},
    )


def _networks(model: nn.Module) -> list[AnyModel]:
    """Return the model itself, or the detector within it."""
    return [module for module in model.modules() if isinstance(module, AnyModel)]


def _micro_batch_size(trainer: Trainer, plan: BatchPlan) -> int | None:
    """Return images in memory at once, as planned or as before in a resumed run; None if to be measured."""
    before = trainer.progress.micro_batch_size
    if before is None or (plan.micro is not None and not trainer.progress.halved):
        return plan.micro
    return min(before, plan.micro or plan.share)


def _log_run(run: TrainingRun) -> None:
    context, averaging = run.context, run.ema.schedule
    config, timeline, stopping = context.config, context.timeline, context.config.early_stopping
    parameters = sum(p.numel() for p in run.step.model.parameters() if p.requires_grad)
    dtype = context.precision.dtype
    height, width = config.image_size_hw
    size = context.distributed.size
    logger.info(
        "%s: %.1f million parameters, %dx%d px, batch %d, %s on %s",
        run.task.describe_model(config),
        parameters / 1e6,
        height,
        width,
        context.plan.effective,
        "float32" if dtype is None else str(dtype).split(".")[-1],
        context.device if size == 1 else f"{size} processes",
    )
    stage = config.epochs - timeline.no_aug_epoch
    if stopping.patience is not None and not stopping.before_final_stage and 0 < stage <= stopping.patience:
        logger.warning(
            "early_stopping.patience: got %d epochs, but they count only in the final stage, which has %d, "
            "so the run never stops early. Lower it, or set early_stopping.before_final_stage=true",
            stopping.patience,
            stage,
        )
    averaged = f"  averaged weights      decay {averaging.decay:.5f}, ramp {averaging.warmup_steps} steps"
    lines = [timeline.describe(), *run.task.describe(config), averaged]
    logger.info("timeline:\n%s", "\n".join(lines))
