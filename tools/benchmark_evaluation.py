"""Time the evaluation of random predictions; the same as `deim benchmark evaluation`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["benchmark", "evaluation"]))
