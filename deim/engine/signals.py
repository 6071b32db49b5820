"""Requests to stop: Ctrl-C, and the SIGTERM that schedulers send before they kill."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from deim.errors import StopSignalError

STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Notes that the run shall stop, so that the loop can save and end; a second signal ends it at once.

    Outside the main thread, where Python allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the signal; None if there was none."""
        self.at_once = False
        """Raise `StopSignalError` as soon as a signal comes: for long work whose start has been saved."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.received is not None
        self.received = number
        if again or self.at_once:
            raise StopSignalError(number)
