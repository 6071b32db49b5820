"""Ctrl-C and SIGTERM at any moment of any command: one line, the exit code of the signal, no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deim.engine import signals
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
LINES = {signal.SIGINT: "stopped by Ctrl-C\n", signal.SIGTERM: "stopped by SIGTERM\n"}


def interrupted(number: int) -> Callable[..., Any]:
    return lambda *_, **__: os.kill(os.getpid(), number) or time.sleep(10)


def interrupted_and_lost(number: int) -> Callable[..., Any]:
    """A package that takes the interrupt for an error of its own."""

    def call(*_: Any, **__: Any) -> None:
        try:
            interrupted(number)()
        except KeyboardInterrupt:
            raise (ImportError, OSError)[number == signal.SIGTERM]("this package has no idea") from None

    return call


@pytest.mark.parametrize("number", LINES)
@pytest.mark.parametrize("kind", [interrupted, interrupted_and_lost])
@pytest.mark.parametrize(
    ("command", "moment"),
    [
        ("train", "deim.cli.train._prepare"),
        ("train", "deim.cli.train._report"),
        ("evaluate", "deim.engine.trained_detector.load_trained"),
        ("predict", "deim.inference.predictor.Predictor.stream"),
        ("data", "deim.curation.check.check_dataset"),
    ],
)
def test_a_signal_outside_the_training_loop_is_one_line(
    command: str,
    moment: str,
    kind: Callable[[int], Any],
    number: int,
    tmp_path: Path,
    tiny_run: Path,
    tiny_set: Path,
    call: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers = [signal.getsignal(each) for each in LINES]
    monkeypatch.setattr(moment, kind(number))
    options = [f"data.root={tiny_set}", "output_dir=out", "epochs=1"]
    arguments = {
        "train": ("-c", tiny_run / "config.yml", "--set", *options),
        "evaluate": (tiny_run,),
        "predict": (tiny_run, tiny_set / "images"),
        "data": ("check", tiny_set),
    }[command]
    code, _, error = call(command, *arguments)
    assert (code, error) == (128 + number, LINES[number])
    assert [signal.getsignal(each) for each in LINES] == handlers
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0.0, 0.0)
    if moment.endswith("_prepare"):
        assert not (tmp_path / "out").exists()
    elif command == "train":
        assert (tmp_path / "out" / "last.pth").is_file()
        assert not (tmp_path / "out" / ".lock").exists()


SWALLOW = """
import sys, time
import deim.cli.train
from deim.cli.main import main
from deim.engine import signals
signals.SAME_REQUEST_SECONDS = 1.0

class Careless:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(20)

def swallow(*_):
    if sys.argv.pop() == "in a callback":
        Careless()
    try:
        print("ready", flush=True)
        time.sleep(20)
    except BaseException:
        pass
    time.sleep(20)

deim.cli.train._config_and_overrides = swallow
sys.exit(main(command=["train"]))
"""


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("in a callback", signal.SIGINT),
        ("in a package", signal.SIGTERM),
        pytest.param("in a callback", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("in a package", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_that_python_loses_ends_the_process_all_the_same(
    where: str, number: int, tmp_path: Path
) -> None:
    script = tmp_path / "swallow.py"
    script.write_text(SWALLOW.replace("sys.argv.pop()", repr(where)), encoding="utf-8")
    process = start([sys.executable, str(script)])
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, LINES[number])
    assert time.monotonic() - started < 10


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of(session: int) -> list[str]:
    """Return the processes that are alive in a session, by Linux's records."""
    alive = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            alive.append(status.parent.name)
    return alive


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's record of processes")
@pytest.mark.parametrize("number", LINES)
@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "data"])
def test_a_signal_at_any_moment_leaves_one_line_and_no_process(
    command: str, number: int, tmp_path: Path, tiny_run: Path, tiny_set: Path
) -> None:
    content = TINY | {
        "output_dir": str(tmp_path / "run"),
        "epochs": 2,
        "data": TINY["data"] | {"root": str(tiny_set), "num_workers": 2},
    }
    (tmp_path / "tiny.yml").write_text(json.dumps(content), encoding="utf-8")
    arguments = {
        "train": ["train", "-c", str(tmp_path / "tiny.yml"), "--overwrite"],
        "evaluate": ["evaluate", str(tiny_run), "--output", str(tmp_path / "evaluation.json")],
        "predict": ["predict", str(tiny_run), str(tiny_set / "images"), "--output", str(tmp_path / "out")],
        "data": ["data", "check", str(tiny_set), "--output", str(tmp_path / "check.json")],
    }[command]
    moments = [0.4, 0.9, 1.5, 2.2, 3.0, 4.0, 5.0, 6.5] if command == "train" else [0.4, 1.2, 2.0, 3.0]
    for moment in moments:
        process = start([sys.executable, "-m", "deim", *arguments])
        time.sleep(moment)
        if process.poll() is None:
            os.killpg(process.pid, number)
        _, error = process.communicate(timeout=120)
        assert processes_of(process.pid) == []
        if process.returncode in (0, -signal.SIGTERM):  # Python was ending already
            continue
        assert process.returncode == 128 + number, error
        lines = [line for line in error.splitlines() if "Warning" not in line and not line.startswith("  ")]
        assert len(lines) == 1
        assert lines[0].startswith("stopped by ")


def test_a_second_request_ends_a_process_that_hangs_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals, "_end_at_once", ended.append)
    now = [50.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    before = [signal.getsignal(number) for number in LINES]
    try:
        signals.end_soon()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
        now[0] += signals.SAME_REQUEST_SECONDS + 0.1
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [signal.SIGTERM]
    finally:
        for number, handler in zip(LINES, before, strict=True):
            signal.signal(number, handler)
