"""Check. `--help` says how."""

import sys

from deim.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
