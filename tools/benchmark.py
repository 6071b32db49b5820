"""Time training steps, data loading or text fusion; the same as `deim benchmark`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["benchmark"]))
