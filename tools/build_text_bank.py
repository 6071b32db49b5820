"""Embed the texts of each class into the text bank of phase 2. `--help` says how."""

import sys

from multimodal.cli.text_bank import main

if __name__ == "__main__":
    sys.exit(main())
