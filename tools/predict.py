"""Detect defects in images; the same as `deim predict`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["predict"]))
