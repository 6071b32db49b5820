"""Score a trained detector. `--help` says how."""

import sys

from deim.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
