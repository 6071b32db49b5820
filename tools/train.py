"""Train a detector; the same as `deim train`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["train"]))
