"""Two runs never write to one folder, and a run that has ended, however it did, keeps nobody out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deim.config.loader import config_to_yaml
from deim.config.schema import Config
from deim.engine import run_lock
from deim.engine.run_lock import LOCK_NAME, LockHolder, lock_run, read_holder
from deim.engine.trained_detector import load_trained, store_operating_points
from deim.engine.trainer import Trainer
from deim.errors import TrainingError

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from deim.engine.run_lock import lock_run
{before}
with lock_run(Path(sys.argv[1])):
    {within}
    print("locked", flush=True)
    time.sleep(100)
"""
CHILD = """
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    print(child.pid)
"""
WITHOUT_LOCKS = "from deim.engine import run_lock; run_lock._try_lock = lambda descriptor: None"


def hold(folder: Path, *, before: str = "", within: str = "") -> tuple[subprocess.Popen[str], list[str]]:
    """Start a process that holds the lock of a folder; and what it printed before."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(before=before, within=within.strip()), str(folder)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in iter(process.stdout.readline, "locked\n"):
        assert line
        lines.append(line.strip())
    return process, lines


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("command", ["new", "overwrite", "resume", "auto"])
def test_a_second_run_is_refused_with_the_process_of_the_first(
    command: str,
    tmp_path: Path,
    tiny_run: Path,
    tiny_config: Callable[..., Config],
    tiny_set: Path,
    call: Callable[..., Any],
) -> None:
    folder = tmp_path / "run"
    if command != "new":
        shutil.copytree(tiny_run, folder)
    config = tmp_path / "tiny.yml"
    config.write_text(config_to_yaml(tiny_config(tiny_set, folder)), encoding="utf-8")
    arguments = {
        "new": ("-c", config),
        "overwrite": ("-c", config, "--overwrite"),
        "resume": ("--resume", folder, "--set", "epochs=41"),
        "auto": ("-c", config, "--resume", "auto", "--set", "epochs=41"),
    }[command]
    process, _ = hold(folder)
    try:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        code, _, error = call("train", *arguments)
    finally:
        end(process)
    assert code == 2
    host = LockHolder.this_process().host
    assert error.startswith(f"{folder}: in use by process {process.pid} on {host} since 20")
    assert error.endswith(
        ". Wait for its end, stop it, or choose another folder with --set output_dir=FOLDER.\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_was_killed_is_taken_over(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    process, _ = hold(folder)
    process.send_signal(number)
    process.communicate()
    assert read_holder(folder / LOCK_NAME).pid == process.pid
    with lock_run(folder):
        assert read_holder(folder / LOCK_NAME).is_this_process
        with lock_run(folder):
            pass
        assert (folder / LOCK_NAME).is_file()
    assert list(folder.iterdir()) == []


def test_a_process_that_was_forked_within_does_not_keep_the_lock(tmp_path: Path) -> None:
    process, (child,) = hold(tmp_path, within=CHILD)
    end(process)
    try:
        with lock_run(tmp_path):
            os.kill(int(child), 0)
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_folder_that_was_made_for_a_run_that_did_not_begin_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock_run(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_lock_of_another_machine_says_what_to_remove(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:
        monkeypatch.setattr(run_lock, "_try_lock", lambda _: None)
    note = asdict(replace(LockHolder.this_process(), host="press-4", pid=77))
    (tmp_path / LOCK_NAME).write_text(json.dumps(note))
    with pytest.raises(TrainingError) as caught, lock_run(tmp_path):
        pass
    assert "in use by process 77 on press-4 since 20" in str(caught.value)
    assert str(caught.value).endswith(f"If that process is gone, remove {tmp_path / LOCK_NAME}.")
    (tmp_path / LOCK_NAME).unlink()
    with lock_run(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", '{"pid": "x"}', "[]", "\x00" * 40])
def test_a_note_that_cannot_be_read_keeps_nobody_out(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text(text)
    with lock_run(tmp_path):
        pass


def test_a_drive_without_locks_goes_by_the_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_try_lock", lambda _: None)
    process, _ = hold(tmp_path, before=WITHOUT_LOCKS)
    with pytest.raises(TrainingError, match=rf"in use by process {process.pid} on "), lock_run(tmp_path):
        pass
    end(process)
    with lock_run(tmp_path):
        pass


@pytest.mark.skipif(not run_lock.BOOT_ID.exists(), reason="reads Linux's record of processes")
@pytest.mark.parametrize("changes", [{"pid": 1}, {"started": "at another time"}], ids=str)
def test_another_process_of_the_same_number_is_not_taken_for_the_holder(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "_try_lock", lambda _: None)
    note = replace(LockHolder.this_process(), **changes)
    (tmp_path / LOCK_NAME).write_text(json.dumps(asdict(note)))
    with lock_run(tmp_path):
        pass


def test_thresholds_are_not_written_into_a_run_that_another_process_trains(
    tmp_path: Path, tiny_run: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    before = trained.path.read_bytes()
    process, _ = hold(tmp_path / "run")
    try:
        reason = store_operating_points(trained, {})
    finally:
        end(process)
    assert reason is not None
    assert f"in use by process {process.pid}" in reason
    assert trained.path.read_bytes() == before
    assert store_operating_points(trained, {}) is None
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_a_trainer_locks_its_folder(
    tmp_path: Path, tiny_set: Path, tiny_config: Callable[..., Config], build_tiny: Callable[..., Trainer]
) -> None:
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=1"))
    process, _ = hold(tmp_path / "run")
    try:
        with pytest.raises(TrainingError, match="in use by process"):
            trainer.train()
    finally:
        end(process)
    trainer.train()
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_of_many_that_start_together_one_gets_the_folder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from deim.engine.run_lock import lock_run
from deim.errors import TrainingError
time.sleep(max(0, float(sys.argv[2]) - time.time()))
for _ in range(30):
    try:
        with lock_run(Path(sys.argv[1])):
            mark = Path(sys.argv[1]) / "mark"
            mark.open("x").close()
            time.sleep(0.002)
            mark.unlink()
    except TrainingError:
        pass
"""
    start = str(time.time() + 1)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, str(tmp_path), start]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 4
