"""Train a model, then evaluate its best weights on the validation split and write a report.

Examples:
  deim train -c quickstart
  deim train -c configs/neu_det.yml --set data.root=data/neu_det epochs=20
  deim train --resume outputs/quickstart
  deim train --resume outputs/quickstart --set epochs=40
  torchrun --nproc_per_node=2 tools/train.py -c configs/deimv2_1024.yml
"""

import json
import logging
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deim.cli.arguments import add_config_argument, add_override_argument, new_parser
from deim.cli.evaluate import print_report
from deim.config.catalog import find_config
from deim.errors import ConfigError, StopSignalError
from deim.files import count, is_unchanged, looked_in, refuse_overwriting

if TYPE_CHECKING:
    from deim.config.schema import Config
    from deim.data.splits import Splits
    from deim.engine.distributed import DistributedContext
    from deim.engine.trainer import Trainer
    from deim.engine.validation import Validate
    from deim.inference.evaluator import Evaluator


Finish = Callable[[Path, "DistributedContext"], None]
"""Reports on a run that has ended, in its folder."""


def build_parser() -> ArgumentParser:
    """Return the parser of `deim train`."""
    parser = new_parser("train", __doc__)
    add_run_arguments(parser)
    return parser


def add_run_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a command that trains."""
    add_config_argument(parser, required=False)
    add_override_argument(parser, "data.root=data/defects epochs=20")
    add = parser.add_argument
    what = (
        "Continue a run: its folder, a checkpoint, or auto for the output folder if it has one. Without -c, "
        "the options are those of the run. With other epochs, its phases follow from the new number, and "
        "warm-up is not repeated."
    )
    add("--resume", metavar="auto|PATH", help=what)
    add("--force", action="store_true", help="Resume even though the data or the options have changed.")
    add("--overwrite", action="store_true", help="Replace the run that the output folder already holds.")


def run(args: Namespace) -> None:
    """Train and evaluate; with torchrun, in every process."""
    run_training(args, command="train", prepare=_prepare)


def run_training(args: Namespace, *, command: str, prepare: "Callable[..., tuple[Trainer, Finish]]") -> None:
    """Train what a config describes; with torchrun, in every process.

    Args:
        args: From a parser with `add_run_arguments`.
        command: Name of the command of `deim`.
        prepare: Builds the trainer of a config and its processes, with `args` and `resume_from` by name.

    Raises:
        DeimError: If an option does not fit the command, the data or the machine, or training fails.
    """
    from deim.config.loader import load_config
    from deim.engine.distributed import join_distributed
    from deim.engine.run_folder import find_resume, refuse_existing_run
    from deim.engine.run_lock import lock_run
    from deim.engine.task import load_task

    config = load_config(*_config_and_overrides(args))
    needed = load_task(config.task.type).command
    if needed != command:
        raise ConfigError(
            f"task.type: got {config.task.type}, which deim {command} does not train. Use deim {needed}."
        )
    with join_distributed(config.runtime.device) as distributed:
        if not distributed.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        folder = Path(config.output_dir)
        with lock_run(folder) if distributed.is_main else nullcontext():
            resume_from = find_resume(folder, args.resume)
            _refuse_overwriting(config, args.config, is_new=resume_from is None)
            if not args.overwrite:  # before a dataset is made or read
                refuse_existing_run(folder, resume_from=resume_from, may_restart=args.resume == "auto")
            trainer, finish = prepare(config, distributed, args=args, resume_from=resume_from)
            _train(trainer, folder, distributed)
            finish(folder, distributed)


def _refuse_overwriting(config: "Config", source: str | None, *, is_new: bool) -> None:
    """Refuse folders in which a run would write into its data, or over its weights or config to begin with.

    `source` is the config file, or its name. One that an earlier run wrote may be replaced by its like.
    """
    from deim.data.splits import data_places
    from deim.engine.run_folder import run_paths
    from deim.engine.task import load_task

    task, data = load_task(config.task.type), config.data
    folder, read = Path(config.output_dir), data_places(data)
    disk_cache = {"data.disk_cache_dir": [Path(data.disk_cache_dir)]} if data.disk_cache_mb else {}
    places = {
        "output_dir": run_paths(folder),
        **disk_cache,
        "task.cache_dir": task.cache_dirs(config),
    }
    starts = task.start_files(config) if is_new else []
    path = None if source is None else find_config(source)
    if is_new and path is not None and not is_unchanged(path.read_bytes(), needs_seal=True):
        starts.append(path)
    for option, outputs in places.items():
        refuse_overwriting(outputs=outputs, inputs=[*read, *starts], option=f"--set {option}=FOLDER")


def _config_and_overrides(args: Namespace) -> tuple[Path, list[str]]:
    """Return the config file, by default that of the run to resume, and the overrides.

    Raises:
        ConfigError: If no config is named and none can be found.
    """
    from deim.config.nodes import override_node

    if args.config is not None:
        return find_config(args.config), args.set
    output_dir = override_node(args.set).child("output_dir")
    if args.resume not in (None, "auto"):
        path = Path(args.resume)
        folder = path if path.is_dir() else path.parent
    elif args.resume == "auto" and output_dir is not None:
        folder = Path(str(output_dir.value))
    else:
        raise ConfigError(
            "-c: no config is named. Give -c CONFIG, or a run to resume: --resume FOLDER, or --resume auto "
            "--set output_dir=FOLDER."
        )
    config = folder / "config.yml"
    if not config.is_file():
        raise ConfigError(f"{folder}: holds no run, it has no config.yml{looked_in(folder)}. Give -c CONFIG.")
    return config, [f"output_dir={json.dumps(str(folder))}", *args.set]


def _prepare(
    config: "Config", distributed: "DistributedContext", *, args: Namespace, resume_from: Path | None
) -> "tuple[Trainer, Finish]":
    """Check the data and build the trainer, and what evaluates its best weights at the end."""
    from torch import nn

    from deim.curation.check import check_before_run
    from deim.data.splits import build_splits, prepare_root
    from deim.engine.device import select_device
    from deim.engine.task import load_task
    from deim.engine.validation import Validation
    from deim.inference.evaluator import Evaluator
    from deim.report.evaluate import to_validation, validation_sheet

    device = select_device(config.runtime.device, distributed=distributed)
    if distributed.is_main:
        prepare_root(config.data)
        report = check_before_run(config)
        report.raise_errors()
        issues = Counter(issue.rule for issue in report.issues)
        if issues:
            listed = ", ".join(f"{number} {rule.replace('_', ' ')}" for rule, number in issues.items())
            size = " ".join(map(str, config.image_size_hw))
            print(f"data: {listed}; deim data check {config.data.root} --image-size {size} lists them")
    distributed.wait()
    splits = build_splits(config.data)
    evaluator = Evaluator(
        config,
        splits.val,
        class_names=splits.train.class_names,
        category_ids=splits.train.category_ids,
        device=device,
        distributed=distributed,
    )
    draws = config.runtime.tensorboard and distributed.is_main
    task = load_task(config.task.type)

    def validate(model: nn.Module) -> Validation:
        threshold = config.evaluation.draw_threshold
        evaluation = evaluator.evaluate(model, with_loss=task.has_query_loss)
        sheet = validation_sheet(evaluation, evaluator, score_threshold=threshold) if draws else None
        return to_validation(evaluation, sheet, score_threshold=threshold)

    trainer = build_from_arguments(
        config, splits, distributed, validate=validate, args=args, resume_from=resume_from
    )
    return trainer, partial(_report, trainer, evaluator)


def build_from_arguments(
    config: "Config",
    splits: "Splits",
    distributed: "DistributedContext",
    *,
    validate: "Validate",
    args: Namespace,
    resume_from: Path | None,
) -> "Trainer":
    """Build the trainer of a command with `add_run_arguments`; it draws batches if TensorBoard shows them."""
    from deim.curation.preview import batch_sheet
    from deim.engine.build import build_trainer

    draw_batch = partial(batch_sheet, config=config, class_names=splits.train.class_names)
    return build_trainer(
        config,
        splits,
        validate=validate,
        draw_batch=draw_batch if config.runtime.tensorboard and distributed.is_main else None,
        overwrite=args.overwrite,
        resume_from=resume_from,
        force=args.force,
        may_restart=args.resume == "auto",
        distributed=distributed,
    )


def _train(trainer: "Trainer", folder: Path, distributed: "DistributedContext") -> None:
    """Run the training, and leave the run folder in order however it ends."""
    from deim.engine.run_folder import finalize_run_dir
    from deim.engine.signals import end_soon

    has_begun = True
    try:
        trainer.train()
    except BaseException as error:
        has_begun = trainer.has_begun
        if isinstance(error, StopSignalError):
            end_soon()
        raise
    finally:
        if distributed.is_main:
            finalize_run_dir(folder, has_begun=has_begun)


def _report(
    trainer: "Trainer", evaluator: "Evaluator", folder: Path, distributed: "DistributedContext"
) -> None:
    """Evaluate the best weights on the validation split, write the report and print it."""
    from deim.engine.trained_detector import load_trained
    from deim.metrics.convergence import describe_convergence
    from deim.report.evaluate import evaluate_run, evaluate_share
    from deim.report.files import ReportFiles

    checkpoints = trainer.checkpoints
    has_best = checkpoints.best_path.is_file()
    path = checkpoints.best_path if has_best else checkpoints.last_path
    best = load_trained(path, device=evaluator.device)
    if not distributed.is_main:
        evaluate_share(best, evaluator)
        return
    files = ReportFiles(folder / "report.json")
    report = evaluate_run(best, evaluator, split_name="val", report_path=files.report)
    print(f"\n{'best' if has_best else 'last'} epoch on val ({count('image', len(evaluator.split))}):\n")
    print_report(report)
    if report.convergence:
        print(describe_convergence(report.convergence))
    if not has_best:
        print(
            f"\nNo epoch reached a higher mAP than {trainer.run.products.start_checkpoint}, "
            f"{trainer.progress.start_score:.3f}, so that there is no best.pth. Use that checkpoint.\n"
        )
    print(f"\nweights  {best.path}\nreport   {files.page}\nnumbers  {files.report}")
