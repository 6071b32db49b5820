"""Train a detector.

python tools/train.py -c configs/quickstart.yml
python tools/train.py -c configs/neu_det.yml --set data.root=../shared/datasets/neu_det epochs=20
python tools/train.py -c configs/quickstart.yml --resume auto
torchrun --nproc_per_node=2 tools/train.py -c configs/deimv2_1024.yml
"""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from deim.config.schema import Config
from deim.curation.check import check_before_run
from deim.data.splits import build_splits, prepare_root
from deim.engine.context import Validation
from deim.engine.device import select_device
from deim.engine.distributed import DistributedContext, join_distributed
from deim.engine.experiment import load_experiment
from deim.engine.prepare import (
    build_trainer,
    finalize_run_dir,
    find_resume,
    refuse_existing_run,
)
from deim.engine.signals import ignore_stop_signals
from deim.errors import DeimError, StopSignalError
from deim.inference.evaluator import Evaluator
from deim.metrics.convergence import describe_convergence
from deim.report.evaluate import to_validation, validation_sheet
from deim.report.summary import describe_report
from deim.report.tables import format_class_table, format_operating_table
from multimodal.report import assess, take_part
from multimodal.task import load_trained, subject_builder


def check_data(config: Config) -> None:
    """Refuse data with errors that cost a run, and say what else is odd about them."""
    report = check_before_run(config)
    report.raise_errors()
    odd = Counter(issue.rule for issue in report.issues)
    if odd:
        listed = ", ".join(f"{number} {rule.replace('_', ' ')}" for rule, number in odd.items())
        print(f"data: {listed}; python tools/data.py check {config.data.root} lists them")


def train(
    config: Config, distributed: DistributedContext, *, resume: str | None, overwrite: bool, force: bool
) -> None:
    """Train, then score the best weights on the validation split.

    Args:
        config: The experiment.
        distributed: The processes that train it.
        resume: None, `auto` or a checkpoint's path.
        overwrite: Replace a run that the folder already holds.
        force: Resume though data or options have changed.
    """
    folder = Path(config.output_dir)
    resume_from = find_resume(folder, resume)
    may_begin_anew = resume == "auto"
    if not overwrite:  # before a data set is made or read
        refuse_existing_run(folder, resume_from=resume_from, may_begin_anew=may_begin_anew)
    device = select_device(config.runtime.device, distributed=distributed)
    if distributed.is_main:
        prepare_root(config.data)
        check_data(config)
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

    def validate(model: nn.Module) -> Validation:
        evaluation = evaluator.evaluate(model)
        if not (config.runtime.tensorboard and distributed.is_main):
            return to_validation(evaluation)
        threshold = config.evaluation.draw_threshold
        sheet = validation_sheet(evaluation, evaluator, score_threshold=threshold)
        return to_validation(evaluation, sheet)

    trainer = build_trainer(
        config,
        splits,
        validate=validate,
        build_subject=subject_builder(config),
        overwrite=overwrite,
        resume_from=resume_from,
        force=force,
        may_begin_anew=may_begin_anew,
        distributed=distributed,
    )
    try:
        trainer.run()
    except BaseException as error:
        if isinstance(error, StopSignalError):
            ignore_stop_signals()
        if distributed.is_main:
            finalize_run_dir(folder, has_begun=trainer.has_begun)
        raise
    if distributed.is_main:
        finalize_run_dir(folder, has_begun=True)
    has_best = trainer.best_path.is_file()
    best = load_trained(trainer.best_path if has_best else trainer.last_path, device=device)
    if not distributed.is_main:
        take_part(best, evaluator)
        return
    result = assess(best, evaluator, split_name="val", report_path=folder / "report.json")
    print(f"\n{'best' if has_best else 'last'} epoch on val ({len(splits.val)} images):\n")
    print(format_class_table(result.report))
    print(f"\n{format_operating_table(result.report)}\n")
    print("\n".join(describe_report(result.report)))
    if result.report.convergence:
        print(describe_convergence(result.report.convergence))
    if not has_best:
        assert config.multimodal is not None  # else the first validation writes it
        print(
            f"\nno epoch beat the detector alone, mAP {trainer.progress.start_score:.3f}: "
            f"there is no best.pth. Use {config.multimodal.detector}\n"
        )
    print(f"\nweights  {best.path}\nreport   {result.files.page}\nnumbers  {result.files.report}")


def main() -> int:
    """Parse, train, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", "--config", required=True, help="experiment, a YAML file")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="go on from last.pth of the run, or from PATH")
    parser.add_argument(
        "--force", action="store_true", help="resume though the data or options have changed since"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    args = parser.parse_args()
    try:
        config = load_experiment(args.config, args.set)
        with join_distributed(config.runtime.device) as distributed:
            level = logging.INFO if distributed.is_main else logging.ERROR
            logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
            with logging_redirect_tqdm():
                train(config, distributed, resume=args.resume, overwrite=args.overwrite, force=args.force)
    except StopSignalError as error:
        print(error, file=sys.stderr)
        return 128 + error.number
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
