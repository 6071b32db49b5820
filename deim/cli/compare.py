"""Compare runs on the same images: what differs, and whether the difference is more than chance.

Examples:
  deim compare outputs/run_a outputs/run_b
  deim compare outputs/run_a outputs/run_b outputs/run_c --split test
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from deim.cli.arguments import SPLITS, add_language_argument, add_latex_argument, new_parser
from deim.files import refuse_overwriting, write_text


def build_parser() -> ArgumentParser:
    """Return the parser of `deim compare`."""
    parser = new_parser("compare", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="Run folders or JSON reports; the first is the baseline.")
    add("--split", choices=SPLITS, default="val", help="Split whose reports are compared.")
    add("--output", type=Path, default=Path("outputs/comparison.json"), help="JSON file to write.")
    add_latex_argument(parser)
    add_language_argument(parser, "that of the first run")
    return parser


def run(args: Namespace) -> None:
    """Compare the runs, write the comparison and print its summary."""
    from deim.report.compare import describe_comparison, describe_options, read_runs
    from deim.report.compare_files import comparison_tables, model_tables, option_table, write_comparison
    from deim.report.files import ReportFiles
    from deim.report.languages import read_language
    from deim.report.table_files import LATEX_NAME, format_latex

    runs, folder = read_runs(args.runs, split=args.split), args.output.with_suffix("")
    files = [ReportFiles(run.path) for run in runs]
    refuse_overwriting(
        outputs=ReportFiles(args.output).all, inputs=[path for file in files for path in file.all]
    )
    language = read_language(args.language) if args.language else None
    comparison = write_comparison(runs, args.output, language=language)
    for table in model_tables(comparison):
        print(f"{table.title}\n\n{table}\n")
    print("\n".join(describe_comparison(comparison)))
    print(f"\n{describe_options(comparison)}")
    if comparison.options:
        print(f"\n{option_table(comparison)}")
    print(f"\npage     {args.output.with_suffix('.html')}\nnumbers  {args.output}")
    print(f"tables   {folder / 'runs.csv'}, {folder / 'classes.csv'}")
    if args.latex:
        write_text(folder / LATEX_NAME, format_latex(comparison_tables(runs, comparison)))
        print(f"latex    {folder / LATEX_NAME}")
