"""Make a synthetic surface-defect dataset in COCO format. `--help` says how."""

import sys

from deim.cli.synthetic import main

if __name__ == "__main__":
    sys.exit(main())
