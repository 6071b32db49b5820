"""Evaluate a checkpoint; the same as `deim evaluate`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["evaluate"]))
