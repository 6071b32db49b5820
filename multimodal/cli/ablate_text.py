"""Test whether the text of a text fusion helps, or only the training that comes with it.

Trains the fusion head with the real text and with every variant, on the same detector outputs with the same
seeds and budget, and writes the verdict.

Examples:
  deim ablate-text -c quickstart_multimodal
  deim ablate-text -c outputs/deimv2_1024_multimodal/config.yml --seeds 5
  deim ablate-text -c quickstart_multimodal --set epochs=20 --variants random mlp
"""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from deim.cli.arguments import add_config_argument, add_override_argument, new_parser, whole
from deim.config.catalog import find_config
from deim.config.checks import REPEATS
from deim.files import refuse_overwriting

VARIANTS = ("random", "shuffled", "one_hot", "free", "mlp", "class_head")


def build_parser() -> ArgumentParser:
    """Return the parser of `deim ablate-text`."""
    parser = new_parser("ablate-text", __doc__)
    add_config_argument(parser)
    add_override_argument(parser, "epochs=20")
    add = parser.add_argument
    add("--seeds", type=whole(1, REPEATS), default=3, help="Number of trainings of each variant.")
    what = "Variants to train. Only if all are trained, the verdict can be that the text helps."
    add("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help=what)
    what = "Classes whose texts are exchanged at test time; without it, the pair that is confused most."
    add("--pair", nargs=2, metavar=("CLASS", "OTHER"), help=what)
    add("--output", type=Path, help="JSON file to write; without it, text_ablation.json in the run's folder.")
    return parser


def run(args: Namespace) -> None:
    """Train and evaluate all variants, judge, write and print."""
    from deim.config.loader import load_config
    from deim.data.splits import data_places
    from deim.engine.task import load_task
    from deim.report.schema import write_record
    from multimodal.ablation.result import build_ablation, format_classes, format_models
    from multimodal.ablation.trials import build_trials, run_trials
    from multimodal.ablation.variants import ABLATED_VARIANTS

    started = time.perf_counter()
    config = load_config(find_config(args.config), args.set)
    path = args.output or Path(config.output_dir) / "text_ablation.json"
    starts = load_task(config.task.type).start_files(config)
    refuse_overwriting(outputs=[path], inputs=[*data_places(config.data), *starts])
    context = build_trials(config, pair_names=args.pair)
    seeds = range(config.seed, config.seed + args.seeds)
    scores = run_trials(context, [name for name in ABLATED_VARIANTS if name in args.variants], seeds)
    minutes = (time.perf_counter() - started) / 60
    ablation = build_ablation(context, scores, seeds=seeds, minutes=minutes)
    write_record(ablation, path)
    print(f"\n{format_models(ablation)}\n\n{format_classes(ablation)}\n")
    print("\n".join(ablation.summary))
    print(f"\nnumbers  {path}")
