"""Train a detector.

python tools/train.py -c configs/quickstart.yml
python tools/train.py -c configs/neu_det.yml --set data.root=../shared/datasets/neu_det epochs=20
python tools/train.py -c configs/quickstart.yml --resume auto
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from deim.config import Config, load_config
from deim.data.build import build_splits
from deim.engine.build import (
    build_trainer,
    discard_unstarted_run,
    find_resume,
    refuse_existing_run,
)
from deim.engine.checkpoint import load_trained
from deim.engine.device import select_device
from deim.errors import DeimError
from deim.evaluation.assess import assess, to_validation
from deim.evaluation.evaluator import Evaluator
from deim.evaluation.report import format_class_table


def train(config: Config, *, resume: str | None, overwrite: bool) -> None:
    """Train, then score the best weights on the validation split.

    Args:
        config: The experiment.
        resume: None, `auto` or a checkpoint's path.
        overwrite: Replace a run that the folder already holds.
    """
    folder = Path(config.output_dir)
    resume_from = find_resume(folder, resume)
    if resume_from is None and not overwrite:
        refuse_existing_run(folder)  # before a data set is made or read
    device = select_device(config.runtime.device)
    splits = build_splits(config.data)
    evaluator = Evaluator(config, splits.val, class_names=splits.train.class_names, device=device)
    trainer = build_trainer(
        config,
        splits,
        validate=lambda model: to_validation(evaluator.evaluate(model).metrics),
        overwrite=overwrite,
        resume_from=resume_from,
    )
    try:
        trainer.run()
    except (DeimError, KeyboardInterrupt):
        discard_unstarted_run(folder)
        raise
    result = assess(
        load_trained(trainer.best_path, device=device),
        evaluator,
        split_name="val",
        report_path=folder / "report.json",
    )
    print(f"\nbest epoch on val ({len(splits.val)} images):\n")
    print(format_class_table(result.evaluation.metrics))
    print(f"\nweights      {trainer.best_path}")
    print(f"report       {result.report_path}")
    print(f"predictions  {result.sheet_path}")


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
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is already there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        with logging_redirect_tqdm():
            train(load_config(args.config, args.set), resume=args.resume, overwrite=args.overwrite)
    except DeimError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on from the last finished epoch with --resume auto", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
