"""Train a detector. `--help` says how."""

import sys

from deim.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
