"""List the shipped configs, or print a config with its base files, its overrides and every default.

Examples:
  deim config list
  deim config show quickstart
  deim config show configs/deimv2_1024.yml --set image_size=640
"""

from argparse import ArgumentParser, Namespace

from deim.cli.arguments import add_config_argument, add_override_argument, new_parser
from deim.config.catalog import find_config, list_shipped
from deim.errors import ConfigError


def build_parser() -> ArgumentParser:
    """Return the parser of `deim config`."""
    parser = new_parser("config", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="List the shipped configs.", description="List the shipped configs.")
    what = "Print every option of a config as YAML."
    show = actions.add_parser("show", help=what, description=what)
    show.add_argument("name", nargs="?", metavar="NAME_OR_PATH", help="The same as --config.")
    add_config_argument(show, required=False)
    add_override_argument(show, "data.batch_size=8")
    return parser


def run(args: Namespace) -> None:
    """List the shipped configs, or print one config as YAML."""
    if args.action == "list":
        for name, summary in list_shipped().items():
            print(f"{name:<24} {summary}")
        return
    from deim.config.loader import config_to_yaml, load_config

    name = args.name or args.config
    if name is None:
        raise ConfigError("deim config show: got no config. Give a path, or a name from `deim config list`.")
    print(config_to_yaml(load_config(find_config(name), args.set)), end="")
