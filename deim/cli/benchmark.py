"""Time a training step, data loading, evaluation or text fusion, and print one JSON line.

Examples:
  deim benchmark step --variant m --size 1024 --batch 4 --device cuda --amp bf16
  deim benchmark data --size 1024 --images 24 --steps 36
  deim benchmark evaluation --images 5000 --boxes 300
  deim benchmark fusion --variant m --size 640
"""

import importlib
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from deim.cli.arguments import new_parser, whole
from deim.cli.main import TEXT_COMMANDS
from deim.config.catalog import SIZES
from deim.config.checks import IMAGES, IMAGES_AT_ONCE, QUERIES, SIDE_PX, STEPS
from deim.errors import ConfigError

WHAT = {
    "step": ("deim.cli.benchmark_step", "Time the phases of a training step, and the inference of an image."),
    "data": ("deim.cli.benchmark_data", "Time the loading of images, with and without caches."),
    "evaluation": ("deim.cli.benchmark_evaluation", "Time the evaluation of random predictions."),
    "fusion": (f"{TEXT_COMMANDS}.benchmark_fusion", "Time the detector and the fusion head on one image."),
}
"""Module and summary of each benchmark; the module's `measure(args)` returns the numbers."""


def build_parser() -> ArgumentParser:
    """Return the parser of `deim benchmark`."""
    parser = new_parser("benchmark", __doc__)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, summary) in WHAT.items():
        kind = kinds.add_parser(name, help=summary, description=summary)
        add = kind.add_argument
        if name in ("step", "fusion"):
            add("--variant", default="m", choices=SIZES, help="Model size.")
            add("--device", default="auto", help="Device: auto, cpu or cuda.")
        if name != "evaluation":
            add("--size", type=whole(64, SIDE_PX), default=1024, help="Image side in pixels.")
            add("--steps", type=whole(1, STEPS), default=20, help="Number of timed steps.")
        if name in ("step", "data"):
            add("--batch", type=whole(1, IMAGES_AT_ONCE), default=4, help="Images of a batch.")
        match name:
            case "step":
                _add_step_options(kind)
            case "data":
                add("-c", "--config", default="deimv2_1024", help="Config.")
                add("--images", type=whole(1, IMAGES), default=24, help="Images to make.")
            case "evaluation":
                add("--images", type=whole(1, IMAGES), default=5000, help="Number of images.")
                add("--boxes", type=whole(1, QUERIES), default=300, help="Predictions per image.")
    return parser


def _add_step_options(kind: ArgumentParser) -> None:
    add = kind.add_argument
    add("--boxes", type=whole(0, QUERIES), default=10, help="Boxes per image.")
    add("--warmup", type=whole(0, STEPS), default=3, help="Untimed steps at the start.")
    add("--amp", default="off", choices=["auto", "bf16", "fp16", "off"], help="Precision.")
    add("--compile", choices=["default", "reduce-overhead"], help="Compile backbone and encoder so.")
    add("--profile", type=Path, metavar="FILE", help="Write a profile of five more steps to this file.")
    add("--recipe", type=Path, metavar="FILE", help="Take weights and inputs from the parity recipe.py.")


def run(args: Namespace) -> None:
    """Run the benchmark and print its numbers."""
    if "size" in args and args.size % 32:
        raise ConfigError(f"--size: got {args.size}, needs a multiple of 32, at least 64")
    print(json.dumps(importlib.import_module(WHAT[args.what][0]).measure(args)))
