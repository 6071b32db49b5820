"""Print an experiment's resolved config: its bases, its own file and the overrides, with every option."""

import argparse
import sys
from collections.abc import Sequence

from deim.config.loader import config_to_yaml, load_config
from deim.errors import DeimError


def main(argv: Sequence[str] | None = None) -> int:
    """Print the config as YAML; return 0, or 2 if it is not valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("path", nargs="?", metavar="PATH", help="config file, before any --set")
    source.add_argument("-c", "--config", metavar="PATH", help="config file")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="options that replace those of the file, such as data.batch_size=8",
    )
    args = parser.parse_args(argv)
    try:
        config = load_config(args.path or args.config, args.overrides)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(config_to_yaml(config), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
