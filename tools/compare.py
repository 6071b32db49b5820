"""Compare runs on the same images. `--help` says how."""

import sys

from deim.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
