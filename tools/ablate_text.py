"""Find out whether the text of phase 2 helps. `--help` says how."""

import sys

from multimodal.cli.ablate_text import main

if __name__ == "__main__":
    sys.exit(main())
