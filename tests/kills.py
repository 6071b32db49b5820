"""Kills of runs at random, through the command: prints the table for BENCHMARKS.md.

    python -m tests.kills --kills 200

Full disks are in `tests/full_disk.py`, and flipped bits in `tests/bit_flips.py`.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from deim.cli.main import main as run_deim
from deim.engine.checkpoints import previous_path, read_checkpoint
from deim.errors import DeimError
from tests.conftest import TINY, write_tiny_coco
from tests.full_disk import read_whole
from tests.multimodal.conftest import EXPERIMENT, PROMPTS

MIN_KILLS = 5
LONGEST_S = 1800.0
EVERY_STEP = "runtime.checkpoint_minutes=1e-9"
SIX_EPOCHS = ("epochs=6", "schedule.no_aug_epochs=2", "augment.vertical_flip=0.5", EVERY_STEP)
MIXED = "augment={mosaic: 0.5, zoom_out: 0.5, crop: 0.5, mix_up: 0.5, copy_blend: 0.5, multi_scale: 0.5}"
MODES = {
    "plain": SIX_EPOCHS,
    "two workers": (*SIX_EPOCHS, "data.num_workers=2"),
    "accumulation": (*SIX_EPOCHS, "data.effective_batch_size=6"),
    "mixed images": (*SIX_EPOCHS, "image_size=96", MIXED),
    "final stage": ("epochs=6", "schedule.no_aug_epochs=5", EVERY_STEP),
    "phase 2": ("epochs=4", EVERY_STEP),
}


@dataclass
class Workplace:
    """A tiny dataset, a config, a trained detector, and a config of phase 2."""

    folder: Path
    data: Path = field(init=False)
    config: Path = field(init=False)
    phase2: Path = field(init=False)
    detector: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = write_tiny_coco(self.folder / "data", num_images={"train": 10, "val": 3, "test": 1})
        self.config = self.folder / "tiny.yml"
        config = {**TINY, "data": {**TINY["data"], "root": str(self.data)}, "output_dir": "named later"}
        self.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.detector = self.folder / "detector"
        assert deim("train", "-c", self.config, "--set", f"output_dir={self.detector}").code == 0
        (self.folder / "prompts.yml").write_text(PROMPTS, encoding="utf-8")
        self.phase2 = self.folder / "phase2.yml"
        text = EXPERIMENT.format(folder=self.folder, detector=self.detector / "best.pth")
        self.phase2.write_text(text, encoding="utf-8")

    def train(self, mode: str, run: Path) -> tuple[object, ...]:
        """Return the arguments that train in a mode, or go on where a run was killed."""
        config = self.phase2 if mode == "phase 2" else self.config
        options = [f"output_dir={run}", *MODES[mode]]
        if mode == "phase 2":
            options.append(f"task.cache_dir={run.with_name(f'{run.name} cache')}")
        return ("train", "-c", config, "--resume", "auto", "--set", *options)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None if it was killed."""
    printed: str


def deim(*arguments: object, kill_after_s: float = LONGEST_S) -> Ended:
    """Run a command in a process of its own, and kill it after some time."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = multiprocessing.get_context("fork").Process(
            target=_call, args=(list(map(str, arguments)), log)
        )
        process.start()
        process.join(kill_after_s)
        if process.exitcode is None and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        code = None if process.exitcode == -signal.SIGKILL else process.exitcode
        return Ended(code, log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")


def _call(arguments: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.exit(run_deim(arguments))


def soak(workplace: Workplace, number: int, rng: random.Random) -> list[str]:
    """Kill runs of all modes and resume them; return the rows of the table."""
    rows = ["| mode | kills | runs | lost or torn | other result | tracebacks |", "|---|---|---|---|---|---|"]
    for mode in MODES:
        counts = Counter[str]()
        whole = workplace.folder / f"{mode} whole"
        started = time.monotonic()
        _expect(deim(*workplace.train(mode, whole)), counts, whole)
        seconds = time.monotonic() - started
        while counts["kills"] < number / len(MODES):
            run = workplace.folder / f"{mode} {counts['runs']}"
            before = counts["kills"]
            _kill_until_done(workplace.train(mode, run), run, seconds, counts, rng)
            if counts["kills"] - before < MIN_KILLS:
                seconds *= 0.7  # the whole run was timed on a busier machine
            counts["other"] += _result_of(run) != _result_of(whole)
            counts["runs"] += 1
        cells = [mode, *(counts[name] for name in ("kills", "runs", "torn", "other", "tracebacks"))]
        rows.append(f"| {' | '.join(map(str, cells))} |")
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def _kill_until_done(
    command: Sequence[object], run: Path, seconds: float, counts: Counter[str], rng: random.Random
) -> None:
    limit = seconds / 2
    while True:
        ended = deim(*command, kill_after_s=rng.uniform(0.05, limit))
        counts["tracebacks"] += "Traceback" in ended.printed
        if ended.code is not None:
            _expect(ended, counts, run)
            return
        counts["kills"] += 1
        counts["torn"] += len(_torn_after_kill(run))
        limit *= 1.05  # a run that only ever starts again would never end


def _expect(ended: Ended, counts: Counter[str], run: Path) -> None:
    if ended.code != 0:
        counts["torn"] += 1
        sys.stderr.write(f"{run}: exit code {ended.code}\n{ended.printed[-2000:]}\n")


def _torn_after_kill(run: Path) -> list[Path]:
    """Return the files of a killed run that cannot be read; of the last two checkpoints one must be whole."""
    torn = [path for path in torn_files(run) if path.suffix != ".part"]
    last = run / "last.pth"
    spare = previous_path(last)
    if last in torn and spare.is_file() and spare not in torn:
        torn.remove(last)
    for path in torn:
        sys.stderr.write(f"{path}: torn\n")
    return torn


def _result_of(run: Path) -> dict[str, object]:
    """Return what a run leaves, without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("epoch", "step", "loss", "grad_norm", "lr", "terms", "ap", "is_best", "skipped_steps")
    logged = [json.loads(line) for line in lines]
    last = read_checkpoint(run / "last.pth")
    states = {"raw": last.model, "ema": last.ema.model}
    if (run / "best.pth").is_file():
        states["best"] = read_checkpoint(run / "best.pth").inference_weights
    return {
        "files": sorted(path.name for path in run.iterdir()),
        "epochs": [[line.get(name) for name in names] for line in logged if line["event"] == "epoch"],
        "weights": {
            f"{kind}.{name}": value.numpy().tobytes()
            for kind, state in states.items()
            for name, value in state.items()
        },
        "detections": (run / "report" / "predictions.json").read_bytes(),
    }


def torn_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are not whole, and those that an unfinished write left."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not _is_whole(path)]


def _is_whole(path: Path) -> bool:
    if path.name.endswith(".part"):
        return False
    try:
        read_whole(path)
    except (ValueError, OSError, AssertionError, DeimError, yaml.YAMLError):
        return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="Number of kills over all modes.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Workplace(Path(folder)), args.kills, random.Random(args.seed))
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
