"""Time a training step. `--help` says how."""

import sys

from deim.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
