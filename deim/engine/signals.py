"""Requests to stop: Ctrl-C, and the SIGTERM that schedulers send before they kill."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from deim.data.workers import STOPPING
from deim.errors import StopSignalError

SAME_REQUEST_SECONDS = 5.0
"""Signals within this time are one request: launchers and schedulers send several."""


class StopSignals:
    """Notes a request to stop, so that the loop can save and end.

    A signal after `SAME_REQUEST_SECONDS` is a second request and ends the run at once. Outside the main
    thread, where Python allows no handlers, signals have their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal; None if there was none."""
        self._received_at = 0.0
        self._where: str | None = None
        self._is_held = False
        self._ends_at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self, where: str) -> Iterator[None]:
        """Let the first signal end the work within at once; the state before it must be saved.

        Raises:
            StopSignalError: If a signal arrives, or has arrived before; it names the place `where`.
        """
        self._where = where
        try:
            if self.received is not None:
                raise StopSignalError(self.received, where)
            yield
        finally:
            self._where = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay signals until a file is written.

        Raises:
            StopSignalError: If a signal arrived that would have ended the run.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        self._end_if_asked()

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        is_first = self.received is None
        if not is_first and now - self._received_at <= SAME_REQUEST_SECONDS:
            return
        self.received = self.received or number
        self._received_at = now
        self._ends_at_once = not is_first or self._where is not None
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._ends_at_once and not self._is_held:
            assert self.received is not None
            self._ends_at_once = False
            raise StopSignalError(self.received, self._where or "")


class CommandInterrupt(KeyboardInterrupt):
    """What `CommandSignals` raises.

    If its base itself goes through generated code, such as that of a dataclass, Python kills the process by
    SIGINT in the end, whatever its exit code.
    """


class CommandSignals:
    """Lets Ctrl-C and SIGTERM end a command: the first one by a KeyboardInterrupt, a later one at once.

    A training loop takes the signals over for its time. Outside the main thread, where Python allows no
    handlers, signals have their usual effect.

    Args:
        is_program: Whether the process ends with the command. Then no interrupt is lost where Python cannot
            raise it, such as in a callback, nor shown as an error while Python exits.
    """

    def __init__(self, *, is_program: bool) -> None:
        self.received: int | None = None
        """Number of the first signal; None if there was none."""
        self._is_program = is_program
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
            if self._is_program:
                sys.unraisablehook = self._end_if_interrupted
        return self

    def __exit__(self, *error: object) -> None:
        _end_after(0)
        if not self._previous:
            return
        if self._is_program:
            # What is left is Python's end, which would show an interrupt as an error.
            self._previous = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        end_soon()
        _end_after(SAME_REQUEST_SECONDS, number)
        raise CommandInterrupt(number)

    def _end_if_interrupted(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _end_at_once(self.received or signal.SIGINT)
        sys.__unraisablehook__(unraisable)


def end_soon() -> None:
    """Ignore more signals of the same request while a process that was asked to stop ends.

    One after `SAME_REQUEST_SECONDS` ends it at once.
    """
    asked_at = time.monotonic()

    def end(number: int, _: FrameType | None) -> None:
        if time.monotonic() - asked_at > SAME_REQUEST_SECONDS:
            _end_at_once(number)

    for number in STOPPING:
        signal.signal(number, end)


def _end_after(seconds: float, number: int = signal.SIGINT) -> None:
    """End this process after a time, in case that an interrupt is lost, as in the import of some packages.

    0 calls it off. Without effect where systems have no such timer.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "setitimer") or not is_main_thread:
        return
    if seconds:
        signal.signal(signal.SIGALRM, lambda *_: _end_at_once(number))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _end_at_once(number: int) -> None:
    """End this process and those that it started, without cleaning up."""
    processes = multiprocessing.active_children()
    for process in processes:
        process.kill()
    for process in processes:
        process.join(1)
    with suppress(OSError):
        os.write(2, f"{describe_stop(number)}\n".encode())
    os._exit(128 + number)


def describe_stop(number: int) -> str:
    """Say which signal has stopped a command."""
    return "stopped by Ctrl-C" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
