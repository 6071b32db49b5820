"""Find out whether the text of phase 2 helps, or only the training that comes with it.

python tools/ablate_text.py -c configs/quickstart_multimodal.yml
python tools/ablate_text.py -c outputs/deimv2_1024_multimodal/config.yml --seeds 5
python tools/ablate_text.py -c configs/quickstart_multimodal.yml --set epochs=10 --controls random mlp

Trains the real text and every control on the same findings, seeds and budget, and writes the verdict into the
report of the run, if its folder has one.
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
from multimodal.ablation.files import add_to_report, write_evidence
from multimodal.ablation.schema import build_evidence
from multimodal.ablation.tables import format_classes, format_models
from multimodal.ablation.trials import run_trials
from multimodal.ablation.variants import CONTROLS


def find_evidence(args: argparse.Namespace) -> None:
    """Train and score all variants, judge, write and print."""
    started = time.perf_counter()
    if args.seeds < 1:
        raise ConfigError(f"--seeds: got {args.seeds}. Each variant is trained with at least 1.")
    config = load_config(args.config, args.set)
    plan = build_trials(config, pair_names=args.pair)
    seeds = range(config.seed, config.seed + args.seeds)
    controls = [name for name in CONTROLS if name in args.controls]
    scores = run_trials(plan.setting, controls, seeds, pair=plan.pair)
    minutes = (time.perf_counter() - started) / 60
    evidence = build_evidence(plan, scores, seeds=seeds, minutes=minutes, created=datetime.now(UTC))
    run_folder = Path(config.output_dir)
    path = write_evidence(evidence, args.output or run_folder / "text_evidence")
    print(f"\n{format_models(evidence)}\n\n{format_classes(evidence)}\n")
    print("\n".join(evidence["in_words"]))
    print(f"\npage     {path.with_suffix('.html')}\nnumbers  {path}")
    report = run_folder / "report.json"
    if add_to_report(evidence, report):
        print(f"report   {report.with_suffix('.html')}")


def main() -> int:
    """Parse, find evidence, report errors."""
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
        "--controls",
        nargs="+",
        choices=CONTROLS,
        default=CONTROLS,
        help="default: all; with fewer the verdict is never that the text helps",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        metavar=("CLASS", "OTHER"),
        help="classes whose texts are exchanged at test time; default: those that the detector confuses most",
    )
    parser.add_argument("--output", type=Path, help="folder; default: text_evidence in the run's")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        find_evidence(args)
    except (DeimError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
