"""Give damaged files to the commands of any commit and count how they end; prints a table for BENCHMARKS.md.

The files are those of `tests/test_fuzz.py`, and the commands run in one process of the other commit:

    git worktree add /tmp/old COMMIT
    python -m tests.fuzz_commands /tmp/old --trials 60
"""

import argparse
import json
import lzma
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import spoil
from tests.test_fuzz import make_coco, make_config, make_image, make_labels, make_prompts, make_voc, make_yolo

ROOT = Path(__file__).parents[1]
START_S, LIMIT_S = 300, 20
WORKER = """
import contextlib, io, json, resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
for line in sys.stdin:
    sys.argv, printed = json.loads(line), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            outcome = "read"
        except SystemExit as stop:
            outcome = "message" if stop.code else "read"
        except BaseException as error:
            outcome = f"traceback {type(error).__name__}"
    try:
        printed.getvalue().encode()
    except UnicodeEncodeError:
        outcome = "traceback UnicodeEncodeError"
    print(outcome, flush=True)
"""


@dataclass(frozen=True)
class Command:
    """A kind of file, and the command that reads it; the path stands in place of `{}`."""

    kind: str
    make: Callable[[Path], Path]
    arguments: tuple[str, ...]
    steps_up: int = 0
    """The command takes the folder that is so many levels above the file."""
    share: float = 1.0
    """Share of the trials, for slow commands."""


def run_commands(commit_dir: Path, trials: int) -> dict[str, Counter[str]]:
    """Return how often each outcome came for each kind of file."""
    outcomes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "good.pth"
        checkpoint.write_bytes(lzma.decompress((ROOT / "tests/fixtures/wave1/best.pth.xz").read_bytes()))
        image = make_image(".png")(folder / "image")
        predict = ("tools/predict.py", "--output", str(folder / "out"))
        bank = ("--encoder", "hashed", "--output", f"{folder}/bank.safetensors")
        check = ("tools/data.py", "check", "{}", "--output", str(folder / "check.json"))
        commands = {
            "COCO": Command("json", make_coco, check, steps_up=2),
            "YOLO description": Command("yaml", make_yolo, check, steps_up=1),
            "YOLO labels": Command("text", make_labels, check, steps_up=2),
            "Pascal VOC": Command("xml", make_voc, check, steps_up=1),
            "config": Command("yaml", config_of(commit_dir), ("tools/show_config.py", "{}")),
            "prompts": Command("yaml", make_prompts, ("tools/build_text_bank.py", "{}", *bank)),
            **{
                f"image {suffix}": Command("binary", make_image(suffix), (*predict, str(checkpoint), "{}"))
                for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp")
            },
            "checkpoint": Command(
                "torch", lambda root: make_copy(checkpoint, root), (*predict, "{}", str(image))
            ),
            "report": Command(
                "json",
                lambda root: make_copy(ROOT / "tests/report/first_version/report.json", root),
                ("tools/evaluate.py", "{}", "--output", f"{folder}/again.json"),
                share=0.25,
            ),
        }
        for title, command in commands.items():
            number = max(1, round(trials * command.share))
            outcomes[title] = run_trials(command, folder / title, commit_dir, number)
            sys.stderr.write(f"{title}: {dict(outcomes[title])}\n")
    return outcomes


def config_of(commit_dir: Path) -> Callable[[Path], Path]:
    base = commit_dir / "configs" / "quickstart.yml"

    def make(root: Path) -> Path:
        path = make_config(root)
        path.write_text("\n".join([f"_base_: {base}", *path.read_text().splitlines()[1:]]) + "\n")
        return path

    return make


def make_copy(path: Path, root: Path) -> Path:
    root.mkdir(parents=True)
    if path.with_suffix("").is_dir():
        shutil.copytree(path.with_suffix(""), root / path.stem)
    return Path(shutil.copy(path, root))


def run_trials(command: Command, folder: Path, commit_dir: Path, trials: int) -> Counter[str]:
    path = command.make(folder / "set")
    given = path if not command.steps_up else path.parents[command.steps_up - 1]
    arguments = [str(given) if argument == "{}" else argument for argument in command.arguments]
    good, rng, outcomes = path.read_bytes(), random.Random(folder.name), Counter[str]()
    worker = None
    for _ in range(trials):
        if worker is None:  # its first command imports everything
            path.write_bytes(good)
            worker = start_worker(commit_dir, folder)
            ask(worker, commit_dir, arguments, limit_s=START_S)
        path.write_bytes(spoil(good, command.kind, rng))
        outcome = ask(worker, commit_dir, arguments, limit_s=LIMIT_S)
        outcomes[outcome] += 1
        if outcome not in ("read", "message") and not outcome.startswith("traceback"):
            worker.kill()
            worker = None
    if worker is not None:
        worker.kill()
    return outcomes


def ask(worker: "subprocess.Popen[str]", commit_dir: Path, arguments: list[str], *, limit_s: float) -> str:
    """Run a command in the process and return how it ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps([str(commit_dir / arguments[0]), *arguments[1:]]) + "\n")
    worker.stdin.flush()
    if not select.select([worker.stdout], [], [], limit_s)[0]:
        return f"longer than {limit_s} s"
    return worker.stdout.readline().strip() or "the process ended"


def start_worker(commit_dir: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "PYTHONPATH": str(commit_dir)},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def main() -> None:
    """Print a row for each kind of file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit_dir", type=Path, help="Checkout of the commit.")
    parser.add_argument("--trials", type=int, default=60, help="Damaged files of each kind.")
    args = parser.parse_args()
    rows = ["| kind of file | files | read | message | traceback, end or hang |", "|---|---|---|---|---|"]
    for title, outcomes in run_commands(args.commit_dir.resolve(), args.trials).items():
        total = outcomes.total()
        bad = total - outcomes["read"] - outcomes["message"]
        rows.append(f"| {title} | {total} | {outcomes['read']} | {outcomes['message']} | {bad} |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
