"""Make a synthetic dataset; the same as `deim synthetic`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["synthetic"]))
