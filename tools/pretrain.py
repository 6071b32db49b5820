"""Detect defects in images; the same as `deim pretrain`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["pretrain"]))
