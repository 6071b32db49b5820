"""Check, convert, split, describe or preview a dataset; the same as `deim data`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["data"]))
