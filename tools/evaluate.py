"""Score a trained detector; nothing but the checkpoint is needed.

python tools/evaluate.py outputs/quickstart/best.pth --split test
"""

import argparse
import logging
import sys
from pathlib import Path

from deim.data.build import read_split
from deim.engine.checkpoint import load_trained
from deim.errors import DeimError
from deim.evaluation.assess import assess
from deim.evaluation.evaluator import evaluator_of
from deim.evaluation.report import format_class_table


def main() -> int:
    """Parse, evaluate, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="best.pth or last.pth of a run")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"], help="default: val")
    parser.add_argument(
        "--output", type=Path, help="report; default: evaluation_SPLIT.json by the checkpoint"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override stored options"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    report_path = args.output or args.checkpoint.parent / f"evaluation_{args.split}.json"
    try:
        trained = load_trained(args.checkpoint, overrides=args.set)
        evaluator = evaluator_of(trained, read_split(trained.config.data, args.split))
        result = assess(trained, evaluator, split_name=args.split, report_path=report_path)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(format_class_table(result.evaluation.metrics))
    print(f"\nreport       {result.report_path}")
    print(f"predictions  {result.sheet_path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
