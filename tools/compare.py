"""Compare runs on the same images; the same as `deim compare`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["compare"]))
