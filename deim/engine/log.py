"""What a run writes while it trains: `metrics.jsonl`, TensorBoard curves, a line an epoch."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from deim.engine.memory import gigabytes

LINE_WIDTH = 120
SHORTEST_NAME = 3
"""Columns that a class name has at least."""
READABLE_NAME = 7
"""Columns of a class name for which separators shrink."""


class RunLog:
    """Writers of one run folder.

    Args:
        folder: The run folder; None writes nothing.
        tensorboard: Also write TensorBoard curves.
        first_step: Steps that the run has had; a resumed run writes the later curves again.
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
            file.write(f"{line}\n".encode())  # in one piece
            os.fsync(file.fileno())

    def curves(self, values: Mapping[str, float | None], *, step: int) -> None:
        """Add points to TensorBoard curves.

        Args:
            values: A number for each curve; None is left out.
            step: Optimizer steps so far.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def picture(self, name: str, pixels: NDArray[np.uint8], *, step: int) -> None:
        """Add a picture to TensorBoard.

        Args:
            name: Of the series.
            pixels: (H, W, 3) uint8.
            step: Optimizer steps so far.
        """
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")

    def keep_until(self, *, epoch: int, step: int) -> None:
        """Remove what a resumed run will write again, a line that a kill has cut off, and foreign ones.

        Args:
            epoch: The first epoch whose line will be written again.
            step: Steps that the run has had; events of later ones will be written again.
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
        temporary = self._path.with_name(".metrics.jsonl.part")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)


def _entry(line: str) -> dict[str, Any] | None:
    """What a line of `metrics.jsonl` holds; None if the run has not written it, or not all of it."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or "event" not in entry:
        return None
    return entry if all(isinstance(entry.get(name), int) for name in ("epoch", "step")) else None


def epoch_line(values: Mapping[str, Any], *, epochs: int) -> str:
    """One readable line an epoch, at most 120 columns but for runs of thousands of epochs.

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
