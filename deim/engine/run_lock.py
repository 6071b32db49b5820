"""The lock of a run folder: two runs in one would tear each other's checkpoints.

The system locks the file, and gives it free when the process ends, however it ends. The file says who holds
it, for messages, and for drives on which the system cannot lock.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from deim.errors import DataError, TrainingError
from deim.parse import parse_json
from deim.records import from_json

LOCK_NAME = ".lock"
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
ORPHAN_S = 5.0
"""Time for the processes of a killed run to let go of its lock."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool | None:
        """Lock an open file, far behind its content; None where that is not possible."""
        try:
            os.lseek(descriptor, 2**30, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return None if error.errno in UNSUPPORTED else False
        return True
else:
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]

    def _try_lock(descriptor: int) -> bool | None:
        """Lock an open file; None where that is not possible."""
        if fcntl is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in UNSUPPORTED else False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class LockHolder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: str
    """Local time, such as 2026-01-31 14:05:59."""
    started: str | None = None
    """Distinguishes the process from a later one of the same number; None where that is not known."""

    @classmethod
    def this_process(cls) -> Self:
        """Return the process that calls this."""
        pid, since = os.getpid(), f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
        return cls(pid=pid, host=socket.gethostname(), since=since, started=_started(pid))

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, or did."""
        return self.host == socket.gethostname()

    @property
    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return self.is_here and self.pid == os.getpid() and self.started == _started(self.pid)

    @property
    def may_run(self) -> bool:
        """Whether it still runs, as far as that can be known."""
        if not self.is_here:
            return True
        if BOOT_ID.exists():
            return _started(self.pid) == self.started
        if os.name != "posix":  # where signal 0 would end it
            return True
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return error.errno == errno.EPERM
        return True


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process, which may do so again within; the folder is made for it if needed.

    The lock of a process that has ended is taken over. At the end the lock file is gone, and so are the
    folders that were made for it if they are empty.

    Raises:
        TrainingError: If another process holds the folder.
        OSError: If the folder cannot be written.
    """
    path = folder / LOCK_NAME
    holder = read_holder(path)
    if holder is not None and holder.is_this_process:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked_file(path):
            yield
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    descriptor = _open_locked(path)
    is_open = True

    def close() -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            os.close(descriptor)

    if hasattr(os, "register_at_fork"):
        # A process that outlives this one must not keep the lock.
        os.register_at_fork(after_in_child=close)
    try:
        note = json.dumps(asdict(LockHolder.this_process()))
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, note.encode())
        yield
    finally:
        if is_open:  # not in a child that was forked within
            if sys.platform == "win32":  # which removes no open file
                close()
            path.unlink(missing_ok=True)
            close()


def _open_locked(path: Path) -> int:
    """Open the lock file and lock it; raise a TrainingError if another process may hold it."""
    deadline = time.monotonic() + ORPHAN_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked, holder = _try_lock(descriptor), read_holder(path)
            is_gone = holder is not None and holder.is_here and not holder.may_run
            is_stale = holder is None or is_gone or (holder.is_here and is_locked)
            is_orphan = is_locked is False and is_gone and time.monotonic() < deadline
            if not is_orphan and (is_locked is False or not is_stale):
                raise TrainingError(_describe_conflict(path, holder))
            if not is_orphan and _is_same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it in between, or a process that it began ends soon
        if is_orphan:
            time.sleep(0.02)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _describe_conflict(path: Path, holder: LockHolder | None) -> str:
    choose = "or choose another folder with --set output_dir=FOLDER"
    if holder is None:
        return f"{path.parent}: another process has just locked it. Wait for its end, {choose}."
    who = f"process {holder.pid} on {holder.host} since {holder.since}"
    if holder.is_here:
        return f"{path.parent}: in use by {who}. Wait for its end, stop it, {choose}."
    return (
        f"{path.parent}: in use by {who}, which cannot be seen from here. Wait for its end, {choose}. If "
        f"that process is gone, remove {path}."
    )


def read_holder(path: Path) -> LockHolder | None:
    """Read who holds a lock file; None if there is none, or it does not say."""
    try:
        text = path.read_text(encoding="utf-8")
        return from_json(LockHolder, parse_json(text, str(path)), error=DataError)
    except (OSError, UnicodeDecodeError, DataError):
        return None


def _started(pid: int) -> str | None:
    """Return what no other process of this machine shares, even with the same number; None if unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return f"{BOOT_ID.read_text(encoding='ascii').strip()} {status.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None
