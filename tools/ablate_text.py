"""Test whether the text of text fusion helps; the same as `deim ablate-text`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["ablate-text"]))
