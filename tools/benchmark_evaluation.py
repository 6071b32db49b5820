"""Time the evaluation of random predictions beside pycocotools. `--help` says how."""

import sys

from deim.cli.benchmark_evaluation import main

if __name__ == "__main__":
    sys.exit(main())
