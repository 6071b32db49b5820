"""Output that never ends a command: any encoding, a pipe that is closed, a log on a full disk."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class SafeStream:
    """Writes to a text stream; letters that its encoding lacks become escapes, failed writes are dropped."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text and return its length, whether or not anyone can read it."""
        with self._closed_is_silent():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._closed_is_silent():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _closed_is_silent(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # a ValueError for a closed file
            # Python would try again to write what is buffered when it exits.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Make `sys.stdout` and `sys.stderr` safe within."""
    streams = sys.stdout, sys.stderr
    safe: list[Any] = [None if stream is None else SafeStream(stream) for stream in streams]
    sys.stdout, sys.stderr = safe
    try:
        yield
    finally:
        for stream in filter(None, safe):
            stream.flush()
        sys.stdout, sys.stderr = streams
