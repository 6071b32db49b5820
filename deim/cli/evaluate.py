"""Evaluate a checkpoint and write a report, or write the page of an existing report again.

A checkpoint holds all options, so that nothing else has to be given. Thresholds are chosen on the run's own
validation split and stored in the checkpoint; an evaluation on other data never changes it.

Examples:
  deim evaluate outputs/quickstart --split test
  deim evaluate outputs/quickstart --split val --set data.root=data/other
  deim evaluate outputs/quickstart/evaluation_test.json --language es
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from deim.cli.arguments import (
    SPLITS,
    add_language_argument,
    add_latex_argument,
    add_override_argument,
    new_parser,
)
from deim.errors import ConfigError
from deim.files import refuse_overwriting, write_text

if TYPE_CHECKING:
    from deim.report.schema import Report


def build_parser() -> ArgumentParser:
    """Return the parser of `deim evaluate`."""
    parser = new_parser("evaluate", __doc__)
    add = parser.add_argument
    what = "Run folder, or a checkpoint such as best.pth, or the JSON file of a report."
    add("source", type=Path, help=what)
    add("--split", choices=SPLITS, help="Split to evaluate; without it, val.")
    what = (
        "JSON file to write; without it, evaluation_SPLIT.json beside the checkpoint, or for data other than "
        "the run's own evaluation_SPLIT_DATASET.json."
    )
    add("--output", type=Path, help=what)
    add_latex_argument(parser)
    add_language_argument(parser, "evaluation.language of the run")
    add_override_argument(parser, "data.root=data/other")
    return parser


def run(args: Namespace) -> None:
    """Evaluate a checkpoint or read an earlier evaluation, write the report and print it."""
    from deim.data.splits import data_places, read_split
    from deim.engine.trained_detector import load_trained
    from deim.inference.evaluator import build_evaluator
    from deim.report.evaluate import default_report_path, evaluate_run
    from deim.report.files import ReportFiles, read_report_inputs, write_report_files
    from deim.report.languages import read_language
    from deim.report.table_files import LATEX_NAME, format_latex
    from deim.report.tables import report_tables

    if args.source.suffix == ".json":
        if args.split or args.set:
            raise ConfigError(
                "--split, --set: a report is written again from its own files. To change options, give the "
                "checkpoint instead."
            )
        report_path = args.output or args.source
        inputs = read_report_inputs(args.source)
        if args.output is not None:  # otherwise it is made again in its place
            refuse_overwriting(
                outputs=ReportFiles(report_path).all,
                inputs=[*ReportFiles(args.source).all, Path(inputs.provenance.dataset.image_dir)],
            )
        language = read_language(args.language) if args.language else None
        report = write_report_files(inputs, report_path, language=language)
    else:
        split = args.split or "val"
        chosen = [f"evaluation.language={args.language}"] if args.language else []
        trained = load_trained(args.source, overrides=[*args.set, *chosen])
        evaluator = build_evaluator(trained, read_split(trained.config.data, split))
        report_path = args.output or default_report_path(trained, evaluator.split, split)
        refuse_overwriting(
            outputs=ReportFiles(report_path).all, inputs=[trained.path, *data_places(trained.config.data)]
        )
        report = evaluate_run(trained, evaluator, split_name=split, report_path=report_path)
    print_report(report)
    files = ReportFiles(report_path)
    print(f"\nreport  {files.page}\nnumbers {files.report}\nfolder  {files.folder}")
    if args.latex:
        write_text(files.folder / LATEX_NAME, format_latex(report_tables(report)))
        print(f"latex   {files.folder / LATEX_NAME}")


def print_report(report: "Report") -> None:
    """Print the tables and the summary of a report."""
    from deim.report.summary import describe_report
    from deim.report.tables import report_tables

    for table in report_tables(report):
        print(f"{table.title}\n\n{table}\n")
    print("\n".join(describe_report(report)))
