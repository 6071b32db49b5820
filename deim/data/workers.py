"""Loading processes: how they start, what they do about signals, why they fail, and how they end."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
STOPPING = (signal.SIGINT, signal.SIGTERM)
KILLED = 9  # `signal.SIGKILL`, which Windows lacks
END_SECONDS = 5.0
"""How long a killed process may take to end."""
FILES_OF_EACH, FILES_OF_ALL = 8, 32
"""Open files of this process for a loading process and its batches, and for all of them together."""

TIMED_OUT = re.compile(r"DataLoader timed out", re.IGNORECASE)
OPEN_FILES = re.compile(r"too many open files|received 0 items of ancdata", re.IGNORECASE)
LOST = re.compile(r"shared memory|shm|bus error|worker \(pid.*\)|No space left", re.IGNORECASE)
"""How torch says that a loading process could not hand over a batch, or was killed."""


@contextmanager
def starting_processes(number: int) -> Iterator[list[BaseProcess]]:
    """Start processes within; the list has them at the end.

    Signals to stop wait meanwhile: a new process would meet them with the handlers of this one.

    Raises:
        OSError: If there are not enough open files left for this number.
    """
    _try_open_files(FILES_OF_ALL + number * FILES_OF_EACH)
    before = multiprocessing.active_children()
    started: list[BaseProcess] = []
    # Torch's handler raises an error wherever this process is when a child dies; see `watching`.
    with _handling_deaths(None):
        can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if can_block else set()
        try:
            yield started
        finally:
            started += [process for process in multiprocessing.active_children() if process not in before]
            if can_block:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def watching(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """End a wait within when one of the processes ends, or has ended before.

    Raises:
        ChildProcessError: If one has; on systems without a signal for it, only if it had before.
    """

    def check(*_: object) -> None:
        if not all(process.is_alive() for process in processes):
            raise ChildProcessError("a loading process has ended")

    with _handling_deaths(check):
        check()
        yield


@contextmanager
def _handling_deaths(handler: Callable[..., None] | None) -> Iterator[None]:
    """Replace the handler for the death of child processes within, and restore it; None leaves it."""
    can_handle = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    previous = signal.getsignal(signal.SIGCHLD) if can_handle else None
    if previous is None:
        yield
        return
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _try_open_files(number: int) -> None:
    """Raise the system's OSError if so many files cannot be open; torch fails halfway, and untidily."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


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
    with _handling_deaths(lambda *_: None):
        for process in processes:
            process.kill()
        for process in processes:
            process.join(END_SECONDS)


def describe_failure(error: Exception, processes: Sequence[BaseProcess], *, timeout_s: float) -> str:
    """Say in a message what is wrong when batches no longer come from loading processes.

    Args:
        error: What the loader raised.
        processes: All of its processes.
        timeout_s: How long it waited for a batch.
    """
    lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    reason = (error.strerror if isinstance(error, OSError) else None) or lines[-1]
    dead = [process for process in processes if process.exitcode is not None]
    lost = [line for line in lines if LOST.search(line) or isinstance(error, (ConnectionError, EOFError))]
    if any(map(OPEN_FILES.search, lines)) or is_errno(error, errno.EMFILE, errno.ENFILE):
        return (
            f"data.num_workers: too many open files ({reason}). Every loading process needs some: raise the "
            f"limit with ulimit -n, or lower data.num_workers."
        )
    if is_errno(error, errno.EAGAIN, errno.ENOMEM):
        return f"data.num_workers: a loading process cannot start ({reason}). Lower data.num_workers."
    if dead or lost:
        memory = "Without memory, the system kills processes: lower data.num_workers or data.cache_mb. "
        is_killed = any(process.exitcode == -KILLED for process in dead)
        return (
            f"data.num_workers: a loading process ended ({_describe_end(dead[0]) if dead else lost[-1]}). "
            f"{memory if is_killed else ''}Batches go through shared memory{_shared_memory()}. Start the "
            f"container with more, such as docker run --shm-size=8g, or set data.num_workers=0."
        )
    if TIMED_OUT.search(reason):
        return (
            f"data.worker_timeout_s: no batch came within {timeout_s:g} s. A loading process hangs, such as "
            f"on a network drive that is gone, or needs longer: raise data.worker_timeout_s."
        )
    return (
        f"data.num_workers: a loading process failed ({reason}). Set data.num_workers=0 to see where, and "
        f"report it."
    )


def _describe_end(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code >= 0:
        return f"process {process.pid} with exit code {code}"
    return f"process {process.pid} by {signal.Signals(-code).name}"


def is_errno(error: Exception, *numbers: int) -> bool:
    """Tell whether an error is one of the system's with one of these numbers."""
    return isinstance(error, OSError) and error.errno in numbers


def _shared_memory() -> str:
    """Return the size of the shared memory in words; nothing on systems without."""
    if not SHARED_MEMORY.is_dir():
        return ""
    return f", of which {SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).total / 2**20:.0f} MiB"
