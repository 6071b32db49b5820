"""Train the same config from several starts, with several seeds, and compare the mAP50 of the last epoch.

    python tools/compare_starts.py -c neu_det --set data.root=data/neu_det epochs=30 --seeds 0 1 2 \
        --start random --start distilled model.init_from=outputs/pretrain_nano/backbone.safetensors \
        --output outputs/compare_starts

Each start is a name and the options that make it. Runs of one seed are a pair, so the intervals are those of
their differences from the first start, over the seeds. Runs that are finished are not repeated, and one that
was stopped is resumed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from deim.metrics.bootstrap import mean_interval

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Train all runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-c", "--config", required=True, help="Config of all runs.")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="Changes for all runs.")
    parser.add_argument(
        "--start", nargs="+", action="append", required=True, metavar="TEXT", help="Name, then changes."
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/compare_starts"))
    args = parser.parse_args()
    scores: dict[str, list[float]] = {name: [] for name, *_ in args.start}
    if len(scores) < len(args.start):
        parser.error("each --start needs a name of its own")
    for seed in args.seeds:
        for name, *changes in args.start:
            folder = args.output / f"{name}_{seed}"
            scores[name].append(train(args.config, [*args.set, *changes], folder, seed=seed))
        sys.stdout.write("\n".join(describe(scores, args.seeds)) + "\n\n")


def train(config: str, changes: Sequence[str], folder: Path, *, seed: int) -> float:
    """Train one run unless it is finished, and return the mAP50 of its last epoch."""
    values = [f"output_dir={folder}", f"seed={seed}", "runtime.tensorboard=false"]
    options = ["--resume", "auto", "-c", config, "--set", *changes, *values]
    stored = folder.parent / f"{folder.name}.options.txt"
    if stored.is_file() and stored.read_text(encoding="utf-8") != "\n".join(options):
        raise SystemExit(f"{folder}: was trained with other options, see {stored}. Choose another --output.")
    if not (folder / "report.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text("\n".join(options), encoding="utf-8")
        command = [sys.executable, str(ROOT / "tools" / "train.py"), *options]
        log = folder.parent / f"{folder.name}.txt"
        with log.open("a", encoding="utf-8") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"exit code {code}, see {log}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["event"] == "epoch"][-1]  # it is always validated
    return float(last["ap50"])


def describe(scores: dict[str, list[float]], seeds: Sequence[int]) -> list[str]:
    """Return the table: mAP50 of each seed, the mean, and the mean difference from the first start."""
    first = next(iter(scores.values()))
    heads = [*(f"seed {seed}" for seed in seeds[: len(first)]), "mean", "difference, 95 % interval"]
    rows = [f"| start | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, values in scores.items():
        differences = [value - base for value, base in zip(values, first, strict=True)]
        text = f"{mean(differences):+.3f}"
        if values is first:
            text = ""
        elif len(differences) > 1:
            ends = mean_interval(differences)
            text += f" ({ends.low:+.3f} to {ends.high:+.3f})"
        cells = [f"{value:.3f}" for value in (*values, mean(values))]
        rows.append(f"| {name} | {' | '.join([*cells, text])} |")
    return rows


if __name__ == "__main__":
    main()
