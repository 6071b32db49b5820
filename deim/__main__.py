"""Run a command: `python -m deim COMMAND` is `deim COMMAND`."""

import sys

from deim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
