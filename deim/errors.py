"""The errors that a user can cause and mend.

Tools catch `DeimError`, print its message without a traceback and exit with code 2. Every message reads
`<where>: <what is wrong>, got <value>. <what is valid>. <what to do>.`
"""

import errno
import reprlib
import signal

MAX_SHOWN = 200
"""Characters of a wrong value that a message repeats."""


class DeimError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(DeimError):
    """A configuration file or an override is wrong."""


class DataError(DeimError):
    """An annotation file, an image or a dataset folder is wrong."""


class CheckpointError(DeimError):
    """A checkpoint or a weights file is missing, damaged or does not fit."""


class TrainingError(DeimError):
    """A run cannot start or cannot go on."""


class DiskFullError(DeimError, OSError):
    """A file has no room: the disk is full, or a quota or a limit is reached.

    Args:
        message: File, bytes that it needs, bytes that are free, and what to do.
        number: `errno` of the system's error.
        reason: The same without file and advice, as `strerror` for other messages.
    """

    def __init__(self, message: str, number: int = errno.ENOSPC, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.errno, self.strerror = number, reason

    def __str__(self) -> str:
        """Return the message without the number that Python puts before it."""
        return self.message


class StopSignalError(DeimError):
    """A signal has asked the run to stop, and its state is saved; `where` says how far it had come."""

    def __init__(self, number: int, where: str = "") -> None:
        self.number = number
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{where}. Go on with --resume auto.")


class NonFiniteError(DeimError):
    """The network gave NaN or infinity; the step that met it must not change any weight."""


def shorten(value: object) -> str:
    """Return how Python writes a value, cut to a length that a message can hold."""
    writer = reprlib.Repr()
    writer.maxlist = writer.maxtuple = writer.maxdict = 20
    writer.maxstring = writer.maxlong = writer.maxother = MAX_SHOWN
    text = writer.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
