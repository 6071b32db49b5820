"""Score a trained detector; nothing but the checkpoint is needed. Or make a report again from its own files.

python tools/evaluate.py outputs/quickstart/best.pth --split test
python tools/evaluate.py outputs/quickstart/evaluation_test.json
"""

import argparse
import logging
import sys
from pathlib import Path

from deim.data.splits import read_split
from deim.errors import CheckpointError, ConfigError, DeimError
from deim.inference.evaluator import build_evaluator
from deim.report.files import ReportFiles, read_report_inputs, write_report_files
from deim.report.summary import describe_report
from deim.report.tables import format_class_table, format_operating_table
from multimodal.report import assess
from multimodal.task import load_trained


def evaluate(args: argparse.Namespace) -> None:
    """Score the detector of a checkpoint, or read what was scored before; write the report and print it."""
    if args.source.suffix == ".json":
        if args.split or args.set:
            raise ConfigError("--split, --set: a report is made again as it is. Name the checkpoint instead.")
        report_path = args.output or args.source
        report = write_report_files(read_report_inputs(args.source), report_path)
    else:
        if args.source.is_dir():
            raise CheckpointError(
                f"{args.source}: is a folder. Name a checkpoint, such as {args.source / 'best.pth'}"
            )
        split = args.split or "val"
        report_path = args.output or args.source.parent / f"evaluation_{split}.json"
        trained = load_trained(args.source, overrides=args.set)
        evaluator = build_evaluator(trained, read_split(trained.config.data, split))
        report = assess(trained, evaluator, split_name=split, report_path=report_path).report
    print(format_class_table(report))
    print(f"\n{format_operating_table(report)}\n")
    print("\n".join(describe_report(report)))
    files = ReportFiles(report=report_path)
    print(f"\nreport  {files.page}\nnumbers {files.report}\nfolder  {files.folder}")


def main() -> int:
    """Parse, evaluate, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="best.pth or last.pth of a run, or a report's JSON file")
    parser.add_argument("--split", choices=["train", "val", "test"], help="default: val")
    parser.add_argument(
        "--output", type=Path, help="report; default: evaluation_SPLIT.json by the checkpoint"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override stored options"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        evaluate(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
