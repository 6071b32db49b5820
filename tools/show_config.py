"""Print every option of a config; the same as `deim config show`."""

from deim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(command=["config", "show"]))
