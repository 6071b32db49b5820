"""Print an experiment's resolved config. `--help` says how."""

import sys

from deim.cli.config import main

if __name__ == "__main__":
    sys.exit(main())
