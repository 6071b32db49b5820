"""Detect defects in images. `--help` says how."""

import sys

from deim.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
