"""Compare runs on the same images: what differs, and whether the difference is more than chance.

Examples:
  deim compare outputs/run_a outputs/run_b
  deim compare outputs/run_a outputs/run_b outputs/run_c --split test
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from deim.cli.arguments import SPLITS, new_parser


def build_parser() -> ArgumentParser:
    """Return the parser of `deim compare`."""
    parser = new_parser("compare", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="Run folders or JSON reports; the first is the baseline.")
    add("--split", choices=SPLITS, default="val", help="Split whose reports are compared.")
    add("--output", type=Path, default=Path("outputs/comparison.json"), help="JSON file to write.")
    return parser


def run(args: Namespace) -> None:
    """Compare the runs, write the comparison and print its summary."""
    from deim.report.compare import describe_comparison, read_runs
    from deim.report.compare_files import write_comparison

    comparison = write_comparison(read_runs(args.runs, split=args.split), args.output)
    print("\n".join(describe_comparison(comparison)))
    print(f"\npage     {args.output.with_suffix('.html')}\nnumbers  {args.output}")
