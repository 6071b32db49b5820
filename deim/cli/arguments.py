"""Arguments that several commands share."""

from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any, get_args

from deim.config.checks import Bound, outside
from deim.language import LanguageCode

SPLITS = ("train", "val", "test")


class CommandParser(ArgumentParser):
    """A parser whose help states the default of each option."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        """Add an argument as `ArgumentParser` does, and append its default to the help."""
        default = options.get("default")
        if default not in (None, SUPPRESS, []):
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            options["help"] += f" Default: {shown}."
        return super().add_argument(*names, **options)


def new_parser(command: str, description: str | None) -> CommandParser:
    """Return an empty parser for `deim COMMAND`; the description is the docstring of its module."""
    return CommandParser(
        prog=f"deim {command}", description=description, formatter_class=RawDescriptionHelpFormatter
    )


def add_config_argument(parser: ArgumentParser, *, required: bool = True) -> None:
    """Add `--config`, a path or the name of a shipped config."""
    what = "Config file, or the name of a shipped config such as quickstart."
    parser.add_argument("-c", "--config", required=required, help=what)


def add_override_argument(parser: ArgumentParser, example: str) -> None:
    """Add `--set`, which overrides options; the example is shown in the help."""
    what = f"Override options of the config, for example {example}."
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=what)


def add_latex_argument(parser: ArgumentParser) -> None:
    """Add `--latex`, which also writes the tables for a paper."""
    what = "Also write the tables as tables.tex to the folder of charts; no LaTeX package is needed."
    parser.add_argument("--latex", action="store_true", help=what)


def add_language_argument(parser: ArgumentParser, default: str) -> None:
    """Add `--language`, the language of pages and charts; the help says in words what holds without it."""
    what = f"Language of the page, its charts and images; without it, {default}."
    parser.add_argument("--language", choices=get_args(LanguageCode), help=what)


def whole(least: int, bound: Bound) -> Callable[[str], int]:
    """Return an argument type for whole numbers from `least` up to a bound."""

    def whole_number(text: str) -> int:
        number = int(text)
        for is_wrong, problem in outside(least, bound, number=number):
            if is_wrong:
                raise ArgumentTypeError(problem.removeprefix("number: "))
        return number

    return whole_number
