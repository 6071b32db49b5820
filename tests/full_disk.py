"""Run commands on disks that fill up, and check that they say so and that every file there is whole.

    python -m tests.full_disk --trials 50

The disk is a small file system in memory, which needs the right to mount one (root on Linux). Each command
first runs with enough room; then it runs again with less, so that it meets its own good output.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from deim.cli.main import main as run_deim
from deim.config.loader import load_config
from deim.engine.checkpoints import read_checkpoint
from deim.engine.log import read_log_lines
from deim.report.schema import read_report
from tests.conftest import TINY, write_tiny_coco

DISK_BYTES = 256 * 2**20
PAGE_BYTES = 4096
ENDS = {".html": b"</html>", ".svg": b"</svg>", ".pdf": b"%%EOF", ".csv": b"\n"}
"""How a whole file of a kind ends."""


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int = DISK_BYTES) -> Iterator[Path]:
    """Mount a file system of a size at a folder, which is made."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", name]
        is_mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
        if is_mounted:
            subprocess.run(["umount", "-l", name], check=True)
    return is_mounted


@contextlib.contextmanager
def filled(disk: Path, *, free: int) -> Iterator[None]:
    """Fill a disk so that within only about so many bytes are free."""
    filler = disk / "filler"
    filler.write_bytes(b"")
    rest = shutil.disk_usage(disk).free - free
    with filler.open("wb") as file:
        for _ in range(max(0, rest) // PAGE_BYTES):
            file.write(bytes(PAGE_BYTES))
    try:
        yield
    finally:
        filler.unlink()


@dataclass(frozen=True)
class Inputs:
    """What the commands read, on another disk."""

    data: Path
    config: Path
    run: Path
    """Folder of a finished run."""


def make_inputs(folder: Path) -> Inputs:
    """Make a tiny dataset and train on it."""
    data = write_tiny_coco(folder / "set")
    options = TINY | {
        "epochs": 2,
        "data": {**TINY["data"], "root": str(data)},
        "output_dir": str(folder / "run"),
    }
    (folder / "tiny.yml").write_text(yaml.safe_dump(options))
    code, printed = run("train", "-c", str(folder / "tiny.yml"))
    assert code == 0, printed
    return Inputs(data=data, config=folder / "tiny.yml", run=folder / "run")


def commands_of(inputs: Inputs, disk: Path, trial: int) -> Mapping[str, Sequence[str]]:
    """Return the commands by name; those that need a new folder get one for each trial."""
    data, run_folder, best = str(inputs.data), str(inputs.run), str(inputs.run / "best.pth")
    new = str(disk / f"new_{trial}")
    place = f"output_dir={disk / 'run'}"
    return {
        "train": ("train", "-c", str(inputs.config), "--overwrite", "--set", place),
        "train with logs": (
            *("train", "-c", str(inputs.config), "--overwrite"),
            *("--set", place, "runtime.tensorboard=true", f"data.disk_cache_dir={disk / 'cache'}"),
            *("data.disk_cache_mb=10",),
        ),
        "evaluate": ("evaluate", best, "--output", str(disk / "report.json"), "--latex"),
        "predict": ("predict", best, str(inputs.data / "images"), "--output", str(disk / "found")),
        "compare": ("compare", run_folder, run_folder, "--output", str(disk / "comparison.json")),
        "check": ("data", "check", data, "--output", str(disk / "check.json")),
        "stats": ("data", "stats", data, "--output", str(disk / "stats")),
        "convert": ("data", "convert", data, "--to", "yolo", "--output", new),
        "split": ("data", "split", data, "--output", new),
        "synthetic": (
            *("synthetic", "--root", new, "--train-images", "4", "--val-images", "2"),
            *("--test-images", "2", "--max-size", "300", "200"),
        ),
    }


def run(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run_deim(arguments)
    return code, printed.getvalue()


def fill_up(name: str, inputs: Inputs, disk: Path, *, trials: int, seed: int = 0) -> Counter[str]:
    """Run a command on a disk with less and less room; return how often it was `done` and `stopped`.

    Raises:
        AssertionError: If a file is torn, a temporary is left, or the message does not say what happened.
    """
    rng, outcomes = random.Random(f"{name} {seed}"), Counter[str]()
    free = shutil.disk_usage(disk).free
    code, printed = run(*commands_of(inputs, disk, -1)[name])
    assert code in (0, 1), printed
    written = free - shutil.disk_usage(disk).free
    for trial in range(trials):
        arguments = commands_of(inputs, disk, trial)[name]
        with filled(disk, free=round(1.2 * written * rng.random() ** 3)):
            code, printed = run(*arguments)
            outcomes["done" if code < 2 else "stopped"] += 1
            if code == 2:
                assert "No space left on device" in printed or "are free" in printed, printed
                assert " free" in printed, printed
            check_whole(disk)
        if name.startswith("train") and code == 2 and (disk / "run" / "last.pth").exists():
            assert not any(path.name == ".replaced" for path in (disk / "run").iterdir())
            code, printed = run("train", "--resume", str(disk / "run"))
            assert code == 0, printed
        shutil.rmtree(disk / f"new_{trial}", ignore_errors=True)
    return outcomes


def check_whole(disk: Path) -> None:
    """Raise an AssertionError if a file on a disk is torn, or a temporary is left there."""
    for path in sorted(disk.rglob("*")):
        assert not path.name.endswith(".part"), path
        assert path.parent != disk or not path.name.startswith("."), path
        if path.is_file() and path.name != "filler":
            read_whole(path)


def read_whole(path: Path) -> None:
    """Read a file of a run, a report or a dataset to its end.

    Raises:
        Exception: If it is torn; a DeimError, AssertionError, ValueError, OSError or error of YAML.
    """
    content = path.read_bytes()
    match path.suffix:
        case ".pth":
            read_checkpoint(path)
        case ".json" if path.name.startswith(("report", "evaluation")):
            read_report(path)
        case ".json":
            json.loads(content)
        case ".jsonl":
            assert len(read_log_lines(path)) == len(content.splitlines()), path
        case ".yml" if path.name == "config.yml":
            load_config(path)
        case ".png" | ".jpg":
            Image.open(path).load()
        case suffix if suffix in ENDS:
            assert content.rstrip(b"\n").endswith(ENDS[suffix].rstrip(b"\n")), path


def main() -> int:
    """Print how often each command was done and stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=50, help="Full disks, over all commands.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the free bytes.")
    args = parser.parse_args()
    if not can_mount():
        sys.stderr.write("A small file system cannot be mounted here; this needs root on Linux.\n")
        return 2
    with tempfile.TemporaryDirectory() as name:
        inputs = make_inputs(Path(name))
        names = list(commands_of(inputs, Path(name), 0))
        sys.stdout.write(
            "| command | full disks | stopped with a message | had room enough |\n|---|---|---|---|\n"
        )
        for number, command in enumerate(names):
            trials = len(range(number, args.trials, len(names)))
            with small_disk(Path(name, f"disk_{number}")) as disk:
                outcomes = fill_up(command, inputs, disk, trials=trials, seed=args.seed)
            sys.stdout.write(f"| {command} | {trials} | {outcomes['stopped']} | {outcomes['done']} |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
