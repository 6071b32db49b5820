"""Embed the texts of the classes for text fusion; the same as `deim text-bank`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["text-bank"]))
