"""Compare runs on the same images: what differs, and whether the difference is more than chance.

python tools/compare.py outputs/run_a outputs/run_b
python tools/compare.py outputs/run_a outputs/run_b outputs/run_c --split test
"""

import argparse
import sys
from pathlib import Path

from deim.errors import DeimError
from deim.report.compare.build import describe_comparison, read_runs
from deim.report.compare.files import write_comparison


def main() -> int:
    """Parse, compare, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="run folders, or JSON reports; the first is the base"
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="val", help="default: val")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/comparison.json"), help="JSON file of the comparison"
    )
    args = parser.parse_args()
    try:
        comparison = write_comparison(read_runs(args.runs, split=args.split), args.output)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(describe_comparison(comparison)))
    print(f"\npage     {args.output.with_suffix('.html')}\nnumbers  {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
