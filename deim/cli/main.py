"""The console command `deim`: choose a command, run it, and turn errors into messages and exit codes.

A command is a module with `build_parser()` and `run(args)`. It is imported when it is called, and imports
torch and the rest of the package only in `run`, so that `--help` answers at once.
"""

import importlib
import logging
import multiprocessing
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence

from deim import __version__
from deim.cli.terminal import safe_output
from deim.data.workers import end_processes
from deim.engine.signals import CommandSignals, describe_stop
from deim.engine.task import TASKS
from deim.errors import DeimError, StopSignalError
from deim.files import describe_system_error, suggest

TEXT_COMMANDS = f"{TASKS['text_fusion'].partition('.')[0]}.cli"
"""Package of the commands for text fusion."""

COMMANDS = {
    "train": ("deim.cli.train", "Train a detector from a config."),
    "pretrain": ("deim.cli.pretrain", "Pretrain a backbone on images without annotations."),
    "evaluate": ("deim.cli.evaluate", "Evaluate a checkpoint and write a report."),
    "predict": ("deim.cli.predict", "Detect defects in images."),
    "compare": ("deim.cli.compare", "Compare runs that were evaluated on the same images."),
    "data": ("deim.cli.data", "Check, convert, split, describe or preview a dataset."),
    "config": ("deim.cli.config", "List the shipped configs, or show a config with every option."),
    "synthetic": ("deim.cli.synthetic", "Make a synthetic dataset of surface defects."),
    "benchmark": ("deim.cli.benchmark", "Time training steps, data loading, evaluation or text fusion."),
    "text-bank": (f"{TEXT_COMMANDS}.text_bank", "Embed the texts of the classes for text fusion."),
    "ablate-text": (f"{TEXT_COMMANDS}.ablate_text", "Test whether the text of text fusion helps."),
}
"""Module and summary of each command."""


def main(argv: Sequence[str] | None = None, *, command: Sequence[str] = ()) -> int:
    """Run a command.

    Args:
        argv: Arguments after the program's name; None takes those of the process.
        command: Arguments that come before them, such as `["train"]` in `tools/train.py`.

    Returns:
        Exit code: 0, or 2 after an error, or 128 plus the signal that stopped the command; `data check`
        returns 1 if the dataset has errors, `predict` if an image cannot be used.
    """
    with safe_output(), CommandSignals(is_program=argv is None) as signals:
        try:
            return _main([*command, *(sys.argv[1:] if argv is None else argv)], signals)
        except (Exception, KeyboardInterrupt) as error:
            number = signals.received or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
            if number is None:
                raise
            print(describe_stop(number), file=sys.stderr)
            return 128 + number


def _main(arguments: Sequence[str], signals: CommandSignals) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"deim: there is no command {name!r}. {suggest(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name][0])
    return run_command(module.run, module.build_parser().parse_args(rest), signals=signals)


def run_command(
    run: Callable[[Namespace], int | None], args: Namespace, *, signals: CommandSignals | None = None
) -> int:
    """Set up logging, run a command, and print errors that are meant for the user without a traceback.

    Errors after a signal to stop follow from it, and are raised.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_PrintHandler()])
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells each table of a font in a PDF
    before = multiprocessing.active_children()
    try:
        try:
            return run(args) or 0
        finally:  # at once, since Python would wait for those that hang
            end_processes([child for child in multiprocessing.active_children() if child not in before])
    except StopSignalError as error:
        print(error, file=sys.stderr)
        return 128 + error.number
    except (DeimError, OSError) as error:
        if signals is not None and signals.received is not None:
            raise
        print(describe_system_error(error) if isinstance(error, OSError) else error, file=sys.stderr)
        return 2


class _PrintHandler(logging.Handler):
    """Prints to the present `sys.stdout`, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _overview() -> str:
    lines = [f"  {name:<12} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: deim COMMAND [options]", "", *lines, "", "`deim COMMAND --help` explains a command."]
    )
