"""Find out whether the text of phase 2 helps, or only the training that comes with it.

python tools/ablate_text.py -c configs/quickstart_multimodal.yml
python tools/ablate_text.py -c outputs/deimv2_1024_multimodal/config.yml --seeds 5
python tools/ablate_text.py -c configs/quickstart_multimodal.yml --set epochs=10 --variants random mlp

Trains the real text and every variant on the same detector outputs, seeds and budget, and writes the verdict.
"""

import argparse
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from deim.config.loader import load_config
from deim.errors import ConfigError, DeimError
from multimodal.ablation.build import build_trials
from multimodal.ablation.files import format_classes, format_models, write_ablation
from multimodal.ablation.schema import build_ablation
from multimodal.ablation.trials import run_trials
from multimodal.ablation.variants import ABLATED_VARIANTS


def ablate(args: argparse.Namespace) -> None:
    """Train and evaluate all variants, judge, write and print."""
    started = time.perf_counter()
    if args.seeds < 1:
        raise ConfigError(f"--seeds: got {args.seeds}. Each variant is trained with at least 1.")
    config = load_config(args.config, args.set)
    plan = build_trials(config, pair_names=args.pair)
    seeds = range(config.seed, config.seed + args.seeds)
    variants = [name for name in ABLATED_VARIANTS if name in args.variants]
    scores = run_trials(plan.context, variants, seeds, pair=plan.pair)
    minutes = (time.perf_counter() - started) / 60
    ablation = build_ablation(plan, scores, seeds=seeds, minutes=minutes, created=datetime.now(UTC))
    path = args.output or Path(config.output_dir) / "text_ablation.json"
    write_ablation(ablation, path)
    print(f"\n{format_models(ablation)}\n\n{format_classes(ablation)}\n")
    print("\n".join(ablation.summary))
    print(f"\nnumbers  {path}")


def main() -> int:
    """Parse, run the ablation, report errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-c", "--config", required=True, help="experiment of phase 2, or the config.yml of its run"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override options"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant; default: 3")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=ABLATED_VARIANTS,
        default=ABLATED_VARIANTS,
        help="default: all; with fewer the verdict is never that the text helps",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar=("CLASS", "OTHER"),
        help="classes whose texts are exchanged at test time; default: those that the detector confuses most",
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file; default: text_ablation.json in the run's folder"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        ablate(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
