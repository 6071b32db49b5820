"""The soak: kill runs and fill disks at random, through the commands; prints the tables of BENCHMARKS.md.

    python -m tests.soak kills --number 200
    python -m tests.soak disks --number 50

Full disks are small file systems in memory, which only root may mount; `unshare --map-root-user --mount`
before the command makes any user root for that.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from PIL import Image

from deim.cli.main import main as run_deim
from deim.engine.checkpoints import previous_path, read_checkpoint
from deim.errors import CheckpointError
from tests.conftest import TINY, write_tiny_coco
from tests.multimodal.conftest import EXPERIMENT, PROMPTS

LONGEST_S = 1800.0
ROOM_BYTES = 64 * 2**20
EVERY_STEP = "runtime.checkpoint_minutes=1e-9"
SIX_EPOCHS = ("epochs=6", "schedule.no_aug_epochs=2", "augment.vertical_flip=0.5", EVERY_STEP)
MIXED = "augment={mosaic: 0.5, zoom_out: 0.5, crop: 0.5, mix_up: 0.5, copy_blend: 0.5, multi_scale: 0.5}"
ENDS = ("</html>", "</svg>", "</annotation>")
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
    other: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = write_tiny_coco(self.folder / "data", num_images={"train": 10, "val": 3, "test": 1})
        self.config = self.folder / "tiny.yml"
        config = {**TINY, "data": {**TINY["data"], "root": str(self.data)}, "output_dir": "named later"}
        self.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.detector = self.folder / "detector"
        assert deim("train", "-c", self.config, "--set", f"output_dir={self.detector}").code == 0
        self.other = self.folder / "other"
        assert deim("train", "-c", self.config, "--set", f"output_dir={self.other}", "seed=1").code == 0
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


def soak_kills(workplace: Workplace, number: int, rng: random.Random) -> list[str]:
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
            _kill_until_done(workplace.train(mode, run), run, seconds, counts, rng)
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
        match path.suffix.lower():
            case ".pth":
                read_checkpoint(path)
            case ".json":
                json.loads(path.read_text(encoding="utf-8"))
            case ".jsonl":
                for line in path.read_text(encoding="utf-8").splitlines():
                    json.loads(line)
            case ".yml" | ".yaml":
                return yaml.safe_load(path.read_text(encoding="utf-8")) is not None
            case ".png" | ".jpg" | ".webp":
                with Image.open(path) as image:
                    image.load()
            case ".html" | ".svg" | ".xml":
                return path.read_text(encoding="utf-8").rstrip().endswith(ENDS)
    except (ValueError, OSError, CheckpointError, yaml.YAMLError):
        return False
    return True


@dataclass(frozen=True)
class Job:
    """A command that writes to a folder of a disk, which may be full."""

    arguments: Callable[[Path], tuple[object, ...]]
    may_exist: bool = True
    """Whether the command replaces what an earlier one wrote."""
    trains: bool = False
    """Whether a new run replaces the old one as soon as it has a checkpoint."""


def soak_disks(workplace: Workplace, number: int, rng: random.Random) -> list[str]:
    """Fill disks under all kinds of commands; return the rows of the table."""
    rows = [
        "| command | full disks | message with bytes | torn or lost | repeated in vain | tracebacks |",
        "|---|---|---|---|---|---|",
    ]
    jobs = _jobs(workplace)
    disk = workplace.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        for name, job in jobs.items():
            counts = Counter[str]()
            for _ in range(-(-number // len(jobs))):
                _fill_disk_under(job, disk, counts, rng)
            cells = [name, *(counts[key] for key in ("disks", "messages", "torn", "in vain", "tracebacks"))]
            rows.append(f"| {' | '.join(map(str, cells))} |")
            sys.stderr.write(f"{rows[-1]}\n")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return rows


def _jobs(workplace: Workplace) -> dict[str, Job]:
    data, config, detector = workplace.data, workplace.config, workplace.detector

    def evaluate(disk: Path) -> tuple[object, ...]:
        run = disk / "run"
        if not run.is_dir():
            shutil.copytree(detector, run)
        return ("evaluate", run)

    return {
        "train": Job(
            lambda disk: ("train", "-c", config, "--overwrite", "--set", f"output_dir={disk / 'run'}")
        ),
        "train, phase 2": Job(
            lambda disk: (
                *("train", "-c", workplace.phase2, "--overwrite", "--set"),
                *(f"output_dir={disk / 'run'}", f"task.cache_dir={disk / 'cache'}", "epochs=2"),
            )
        ),
        "train, disk cache": Job(
            lambda disk: (
                *("train", "-c", config, "--overwrite", "--set", f"output_dir={disk / 'run'}", "epochs=1"),
                *("data.disk_cache_mb=20", f"data.disk_cache_dir={disk / 'cache'}"),
            )
        ),
        "evaluate": Job(evaluate),
        "predict": Job(lambda disk: ("predict", detector, data / "images", "--output", disk / "out")),
        "data check": Job(lambda disk: ("data", "check", data, "--output", disk / "check.json")),
        "data stats": Job(lambda disk: ("data", "stats", data, "--output", disk / "stats.json")),
        "data convert": Job(
            lambda disk: ("data", "convert", data, "--to", "voc", "--output", disk / "voc"), may_exist=False
        ),
        "data split": Job(lambda disk: ("data", "split", data, "--output", disk / "split"), may_exist=False),
        "data preview": Job(lambda disk: ("data", "preview", "-c", config, "--output", disk / "preview")),
        "synthetic": Job(
            lambda disk: (
                *("synthetic", "--root", disk / "made", "--max-size", 320, 256, "--train-images", 6),
                *("--val-images", 2, "--test-images", 2),
            ),
            may_exist=False,
        ),
        "compare": Job(
            lambda disk: ("compare", detector, workplace.other, "--output", disk / "comparison.json")
        ),
    }


def _fill_disk_under(job: Job, disk: Path, counts: Counter[str], rng: random.Random) -> None:
    """Run a command on an empty disk, then on one that lacks some of the bytes it needs, then with room."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = job.arguments(disk)
    before_bytes = shutil.disk_usage(disk).used
    first = deim(*command)
    if first.code not in (0, 1):
        raise SystemExit(f"{command}: exit code {first.code}\n{first.printed[-3000:]}")
    needed = shutil.disk_usage(disk).used - before_bytes
    if not job.may_exist:
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    good = {path for path in disk.rglob("*") if path.is_file()}
    _fill(disk, free_bytes=rng.randrange(max(1, needed)))
    ended = deim(*command)
    counts["disks"] += 1
    counts["messages"] += ended.code == 2 and "free" in ended.printed
    counts["tracebacks"] += "Traceback" in ended.printed
    torn = torn_files(disk)
    has_new_run = job.trains and (disk / "run" / "last.pth").is_file()
    lost = [] if has_new_run else [path for path in good if not path.is_file()]
    counts["torn"] += len(torn) + len(lost)
    (disk / "filler").unlink()
    again = deim(*command)
    counts["in vain"] += again.code != first.code
    for reason in (*[f"torn {path}" for path in torn], *[f"lost {path}" for path in lost]):
        sys.stderr.write(f"{reason}\n")
    is_silent = ended.code == 2 and "free" not in ended.printed
    if ended.code not in (0, 2) or is_silent or again.code != first.code:
        sys.stderr.write(f"{command}: {ended.code}\n{ended.printed[-1500:]}\n")
        sys.stderr.write(f"again: {again.code}\n{again.printed[-1500:]}\n")


def _fill(disk: Path, *, free_bytes: int) -> None:
    """Write a file that leaves so many bytes free."""
    with (disk / "filler").open("wb") as file:
        left = shutil.disk_usage(disk).free - free_bytes
        while left > 0:
            block = min(left, 2**16)
            try:
                file.write(bytes(block))
            except OSError:
                return
            left -= block


def main() -> None:
    """Print the table of one soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "disks"))
    parser.add_argument("--number", type=int, default=50, help="Kills, or full disks, over all kinds.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    soak = soak_kills if args.what == "kills" else soak_disks
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(Workplace(Path(folder)), args.number, random.Random(args.seed))
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
