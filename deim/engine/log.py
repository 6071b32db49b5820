"""What a run writes while it trains: `metrics.jsonl`, TensorBoard curves, a line an epoch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writers of one run folder.

    Args:
        folder: The run folder.
        tensorboard: Also write TensorBoard curves.
    """

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._path = folder / "metrics.jsonl"
        self._writer = SummaryWriter(str(folder / "tensorboard")) if tensorboard else None

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
        line = json.dumps({"event": event} | {key: _plain(value) for key, value in values.items()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def curves(self, values: Mapping[str, float | None], *, step: int) -> None:
        """Add points to TensorBoard curves.

        Args:
            values: A number for each curve; None is left out.
            step: Optimiser steps so far.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def drop_after(self, epoch: int) -> None:
        """Remove the lines of epochs after `epoch`, which a resumed run will write again."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if entry.get("epoch", -1) <= epoch:
                kept.append(line)
        temporary = self._path.with_name(".metrics.jsonl.part")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)


def epoch_line(values: Mapping[str, Any], *, epochs: int) -> str:
    """One readable line an epoch, at most 120 columns.

    Args:
        values: What `Trainer` records of the epoch.
        epochs: Length of the run.
    """
    parts = [
        f"epoch {values['epoch'] + 1:>{len(str(epochs))}}/{epochs}",
        f"loss {values['loss']:.2f}",
        f"lr {values['lr']:.1e}",
        f"{values['images_per_s']:.1f} img/s",
    ]
    if values.get("ap50") is not None:
        parts += [f"mAP50 {values['ap50']:.3f}", f"mAP {values['ap']:.3f}"]
    if values.get("worst_class") is not None:
        parts.append(f"worst {values['worst_class'][:16]} {values['worst_class_ap50']:.2f}")
    if values.get("is_best"):
        parts.append("best")
    parts.append(f"{_duration(values['time_left_s'])} left")
    return "  ".join(parts)[:120]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
