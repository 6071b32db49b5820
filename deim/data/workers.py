"""Loading processes: how they start, what they do about signals, why they fail, and how they end."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
STOPPING = (signal.SIGINT, signal.SIGTERM)
END_SECONDS = 5.0
"""How long a killed process may take to end."""

TIMED_OUT = re.compile(r"DataLoader timed out", re.IGNORECASE)
OPEN_FILES = re.compile(r"too many open files|received 0 items of ancdata", re.IGNORECASE)
LOST = re.compile(r"shared memory|shm|bus error|worker \(pid.*\)|No space left", re.IGNORECASE)
"""How torch says that a loading process could not hand over a batch, or was killed."""


@contextmanager
def starting_processes() -> Iterator[list[BaseProcess]]:
    """Start processes within; the list has them at the end.

    Signals to stop wait meanwhile: a new process would meet them with the handlers of this one.
    """
    before = multiprocessing.active_children()
    started: list[BaseProcess] = []
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if can_block else set()
    try:
        yield started
    finally:
        started += [process for process in multiprocessing.active_children() if process not in before]
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def detach_from_signals(worker: int) -> None:  # noqa: ARG001
    """Keep a loading process alive when terminals and launchers signal the whole group of a run.

    The main process still needs its workers then, and ends them when it exits.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def end_processes(processes: Sequence[BaseProcess]) -> None:
    """Kill processes and wait for their end; those too that are stopped, or wait for a network drive."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    # Torch would raise an error at the death of a process that it started.
    listens = is_main_thread and hasattr(signal, "SIGCHLD")
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if listens else None
    try:
        for process in processes:
            process.kill()
        for process in processes:
            process.join(END_SECONDS)
    finally:
        if listens:
            signal.signal(signal.SIGCHLD, previous)


def describe_failure(error: Exception, *, timeout_s: float) -> str:
    """Say in a message what is wrong when batches no longer come from loading processes.

    Args:
        error: What the loader raised.
        timeout_s: How long it waited for a batch.
    """
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    if TIMED_OUT.search(lines[-1]):
        return (
            f"data.worker_timeout_s: no batch came within {timeout_s:g} s. A loading process hangs, such as "
            f"on a network drive that is gone, or needs longer: raise data.worker_timeout_s."
        )
    if any(map(OPEN_FILES.search, lines)) or is_errno(error, errno.EMFILE, errno.ENFILE):
        return (
            f"data.num_workers: too many open files ({lines[-1]}). Every loading process needs some: raise "
            f"the limit with ulimit -n, or lower data.num_workers."
        )
    if is_errno(error, errno.EAGAIN, errno.ENOMEM):
        return f"data.num_workers: a loading process cannot start ({lines[-1]}). Lower data.num_workers."
    lost = [line for line in lines if LOST.search(line) or isinstance(error, (ConnectionError, EOFError))]
    if lost:
        is_killed = "Killed" in lost[-1]
        memory = "Without memory, the system kills processes: lower data.num_workers or data.cache_mb. "
        return (
            f"data.num_workers: a loading process ended ({lost[-1]}). {memory * is_killed}Batches go through "
            f"shared memory{_shared_memory()}. Start the container with more, such as docker run "
            f"--shm-size=8g, or set data.num_workers=0."
        )
    return (
        f"data.num_workers: a loading process failed ({lines[-1]}). Set data.num_workers=0 to see where, and "
        f"report it."
    )


def is_errno(error: Exception, *numbers: int) -> bool:
    """Tell whether an error is one of the system's with one of these numbers."""
    return isinstance(error, OSError) and error.errno in numbers


def _shared_memory() -> str:
    """Return the size of the shared memory in words; nothing on systems without."""
    if not SHARED_MEMORY.is_dir():
        return ""
    return f", of which {SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).total / 2**20:.0f} MiB"
