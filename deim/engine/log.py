"""What a run writes while it trains: `metrics.jsonl`, TensorBoard curves, a line an epoch, a bar."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from deim.engine.memory import gigabytes
from deim.files import write_text

T = TypeVar("T")

LINE_WIDTH = 120
SHORTEST_NAME = 3
"""Columns that a class name has at least."""
READABLE_NAME = 7
"""Columns of a class name for which separators shrink."""


class ProgressBar:
    """A bar on a terminal that disappears at the end; nothing in a pipe or file.

    Args:
        title: Text before the bar.
        total: Steps in all.
        start: Steps that are done already.
        is_shown: Whether to draw it on a terminal.
    """

    def __init__(self, title: str, *, total: int, start: int = 0, is_shown: bool = True) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # Without a thread of its own: workers are forked while it is drawn.
        self._bar = Progress(
            *columns,
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items and count each."""
        for item in items:
            yield item
            self.advance()

    def advance(self, note: str = "") -> None:
        """Count a step.

        Args:
            note: Text after the bar; empty keeps the last one.
        """
        if note:
            self._bar.update(self._task, note=note)
        self._bar.update(self._task, advance=1, refresh=True)


class RunLog:
    """Writes the log files of a run folder.

    Args:
        folder: The run folder; None writes nothing.
        tensorboard: Also write TensorBoard curves.
        first_step: Steps of the run so far; a resumed run writes the later curves again.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False, first_step: int = 0) -> None:
        self._path = None if folder is None else folder / "metrics.jsonl"
        self._writer = None
        if folder is not None and tensorboard:
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one JSON line; numbers that are not finite become null.

        Args:
            event: Kind of the line, such as `epoch`.
            values: Its content.
        """
        if self._path is None:
            return
        line = json.dumps({"event": event} | {key: _plain(value) for key, value in values.items()})
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{line}\n".encode())  # in one call, so that a kill leaves a whole line or none
            os.fsync(file.fileno())

    def curves(self, values: Mapping[str, float | None], *, step: int) -> None:
        """Add points to TensorBoard curves.

        Args:
            values: A number for each curve; None adds no point.
            step: Optimizer steps so far.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: NDArray[np.uint8], *, step: int) -> None:
        """Add an image to TensorBoard.

        Args:
            name: Name of the series.
            pixels: (H, W, 3) uint8.
            step: Optimizer steps so far.
        """
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def keep_until(self, *, epoch: int, step: int) -> None:
        """Remove lines that a resumed run writes again, that a kill cut off, or that no run wrote.

        Args:
            epoch: The first epoch whose line will be written again.
            step: Steps of the run so far; events of later ones will be written again.
        """
        if self._path is None or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = _entry(line)
            if entry is None:
                continue
            is_epoch = entry["event"] == "epoch"
            if entry["epoch"] < epoch if is_epoch else (entry["epoch"], entry["step"]) < (epoch, step):
                kept.append(line)
        write_text(self._path, "".join(line + "\n" for line in kept))


def _entry(line: str) -> dict[str, Any] | None:
    """Return the content of a line of `metrics.jsonl`; None if a run did not write it, or not all of it."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or "event" not in entry:
        return None
    return entry if all(isinstance(entry.get(name), int) for name in ("epoch", "step")) else None


def epoch_line(values: Mapping[str, Any], *, epochs: int) -> str:
    """Return one readable line for an epoch, of at most 120 columns below thousands of epochs.

    Args:
        values: What `Trainer` records of the epoch.
        epochs: Length of the run.
    """
    before = [
        f"epoch {values['epoch'] + 1:>{len(str(epochs))}}/{epochs}",
        f"loss {values['loss']:.2f}",
    ]
    if values.get("ap50") is not None:
        before += [f"mAP50 {values['ap50']:.3f}", f"mAP {values['ap']:.3f}{'*' if values['is_best'] else ''}"]
    after = [
        f"lr {values['lr']:.1e}",
        f"{values['images_per_s']:.3g} img/s",
        f"wait {values['waiting_share']:.0%}",
        gigabytes(values["peak_memory_bytes"]),
        f"{_duration(values['time_left_s'])} left",
    ]
    if values.get("worst_class") is None:
        return "  ".join([*before, *after])
    score = f"{values['worst_class_ap50']:.2f}"
    room = LINE_WIDTH - len("  ".join([*before, f"worst  {score}", *after]))
    gap = "  " if room >= min(len(values["worst_class"]), READABLE_NAME) else " "
    room = LINE_WIDTH - len(gap.join([*before, f"worst  {score}", *after]))
    return gap.join([*before, f"worst {values['worst_class'][: max(room, SHORTEST_NAME)]} {score}", *after])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
