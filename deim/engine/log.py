"""What a run writes while it trains: `metrics.jsonl`, TensorBoard curves, a line an epoch, a bar."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from torch.utils.tensorboard import SummaryWriter

from deim.config.loader import OptionValue
from deim.engine.memory import gigabytes
from deim.engine.validation import Validation
from deim.errors import DataError
from deim.files import (
    SEAL_KEY,
    UNSEALED,
    count,
    explain_full_disk,
    is_unchanged,
    seal,
    write_text,
    write_to_end,
)
from deim.parse import parse_json
from deim.records import to_json

logger = logging.getLogger(__name__)

LINE_WIDTH = 120


Advance = Callable[[str], None]
"""Counts a step of a bar, and shows a note after it."""


@contextmanager
def progress_bar(title: str, *, total: int, start: int = 0, is_shown: bool = True) -> Iterator[Advance]:
    """Draw a bar on a terminal that disappears at the end; in a pipe or a file there is none.

    It has `total` steps in all, of which `start` are done already.
    """
    console = Console(stderr=True)
    bar = Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        auto_refresh=False,  # without a thread: workers are forked while the bar is drawn
        disable=not (is_shown and console.is_terminal),
    )
    task = bar.add_task(title, total=total, completed=start)
    with bar:
        yield lambda note: bar.update(task, advance=1, description=f"{title} {note}", refresh=True)


class RunLog(AbstractContextManager["RunLog"]):
    """Writes the log files of a run folder.

    Args:
        folder: The run folder; None writes nothing.
        tensorboard: Also write TensorBoard curves.
        first_step: Steps of the run so far; a resumed run writes the later curves again.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False, first_step: int = 0) -> None:
        self._path = None if folder is None else folder / "metrics.jsonl"
        self._curves_path = Path() if folder is None else folder / "tensorboard"
        self._writer = None
        if folder is not None and tensorboard:
            self._writer = SummaryWriter(str(self._curves_path), purge_step=first_step + 1)

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            with explain_full_disk(self._curves_path):
                self._writer.close()

    def write(self, event: str, **values: Any) -> None:
        """Append a sealed JSON line for an event such as `epoch`; numbers that are not finite are null."""
        if self._path is None:
            return
        line = json.dumps({SEAL_KEY: UNSEALED, "event": event, **to_json(values)})
        content = seal(line.encode()) + b"\n"
        with (
            explain_full_disk(self._path, lambda: len(content)),
            self._path.open("ab", buffering=0) as file,
        ):
            start = file.seek(0, os.SEEK_END)
            try:
                write_to_end(file, content)  # in one call, so that a kill leaves a whole line or none
            except OSError:
                file.truncate(start)
                raise
            os.fsync(file.fileno())

    def curves(self, values: Mapping[str, float | None], *, step: int) -> None:
        """Add a point to each TensorBoard curve after `step` optimizer steps; None adds none."""
        with explain_full_disk(self._curves_path):
            for name, value in values.items():
                if self._writer is not None and value is not None:
                    self._writer.add_scalar(name, value, step)

    def validation(self, result: Validation, *, step: int) -> None:
        """Add the result of a validation, and its image, to TensorBoard."""
        rates = {"escape_rate": result.escape_rate, "overkill_rate": result.overkill_rate}
        values = {**result.summary, **rates, "loss": result.loss}
        self.curves({f"val/{name}": value for name, value in values.items()}, step=step)
        self.curves({f"val_ap/{name}": value for name, value in result.class_ap.items()}, step=step)
        self.curves({f"val_ap50/{name}": value for name, value in result.class_ap50.items()}, step=step)
        self.image("val/predictions", result.image, step=step)

    def image(self, name: str, image: NDArray[Any] | None, *, step: int) -> None:
        """Add an image, (H, W, 3) uint8, to TensorBoard; None adds none."""
        if self._writer is not None and image is not None:
            with explain_full_disk(self._curves_path):
                self._writer.add_image(name, image, step, dataformats="HWC")

    def options(self, options: Mapping[str, OptionValue], scores: Mapping[str, float]) -> None:
        """Add the options of the run, and what it reached with them, to the HParams page of TensorBoard."""
        if self._writer is not None:
            named = {f"hparam/{name}": value for name, value in scores.items()}
            with explain_full_disk(self._curves_path):
                self._writer.add_hparams(dict(options), named, run_name=".")  # in the folder of the curves

    def keep_until(self, *, epoch: int, step: int) -> None:
        """Keep the lines from before a step of an epoch; a resumed run writes the later ones again.

        Lines that a kill cut off, that are damaged, or that no run wrote, are removed too.
        """
        if self._path is None or not self._path.exists():
            return
        lines = read_log_lines(self._path)
        write_text(self._path, "".join(f"{line}\n" for line in lines if _is_before(line, epoch, step)))


def read_log_lines(path: Path) -> list[str]:
    """Return the lines of `metrics.jsonl`, except those that are no JSON or do not have their checksum.

    Letters that are no UTF-8 are replaced. Lines of older versions have no seal.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = [line for line in lines if is_unchanged(line.encode("utf-8")) and _is_json(line)]
    if len(whole) < len(lines):
        logger.warning("%s: %s damaged or cut off, left out", path, count("line", len(lines) - len(whole)))
    return whole


def _is_json(line: str) -> bool:
    try:
        parse_json(line, "")
    except DataError:
        return False
    return True


def _is_before(line: str, epoch: int, step: int) -> bool:
    """Return whether a run wrote a whole line of `metrics.jsonl` before a step of an epoch."""
    try:
        match parse_json(line, ""):
            case {"event": "epoch", "epoch": int(there), "step": int()}:
                return there < epoch
            case {"event": _, "epoch": int(there), "step": int(its_step)}:
                return (there, its_step) < (epoch, step)
    except DataError:
        pass
    return False


def epoch_line(*, epochs: int, **values: Any) -> str:
    """Return one readable line, of at most 120 columns, for the entries of an epoch in `metrics.jsonl`."""
    entries = [f"epoch {values['epoch'] + 1:>{len(str(epochs))}}/{epochs}", f"loss {values['loss']:.2f}"]
    if values.get("ap50") is not None:
        is_best = "*" if values["is_best"] else ""
        entries += [f"mAP50 {values['ap50']:.3f}", f"mAP {values['ap']:.3f}{is_best}"]
    elif values.get("val_loss") is not None and not values["class_ap50"]:
        entries.append(f"val loss {values['val_loss']:.4f}{'*' if values['is_best'] else ''}")
    entries += [
        f"lr {values['lr']:.1e}",
        f"{values['images_per_s']:.3g} img/s",
        f"wait {values['waiting_share']:.0%}",
        gigabytes(values["peak_memory_bytes"]),
        f"{_duration(values['time_left_s'])} left",
    ]
    if values.get("worst_class") is not None:
        entries.append(f"worst {values['worst_class_ap50']:.2f} {values['worst_class']}")
    line = "  ".join(entries)
    return (line if len(line) <= LINE_WIDTH else " ".join(entries))[:LINE_WIDTH]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
