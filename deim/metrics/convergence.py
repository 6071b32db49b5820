"""How the validation score of a run grew: its best epoch, and whether longer training may help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from deim.config.checks import below, check, not_fraction
from deim.engine.log import read_log_lines
from deim.errors import DataError
from deim.language import ENGLISH, Language
from deim.parse import parse_json
from deim.records import from_json

TREND_SHARE, MIN_TREND_VALIDATIONS = 0.2, 5
"""Last part of a run that tells whether the score still rises: share and least number of validations."""
LAST_LAYER_TERMS = ("loss_mal", "loss_bbox", "loss_giou")
"""Terms of the training loss that can be computed from the detections of a validation."""
MIN_RISE = 0.005
"""AP in [0, 1]; a smaller rise over that part is not called one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convergence:
    """Scores of the validation split by epoch. Epochs are 0-based, scores COCO AP in [0, 1]."""

    planned_epochs: int
    """Length of the run as configured."""
    epochs: tuple[int, ...]
    """E epochs in the log, ascending."""
    ap: tuple[float | None, ...]
    """E scores; None where there was no validation."""
    ap50: tuple[float | None, ...]
    loss: tuple[float | None, ...] = ()
    """E losses of the last decoder layer in training, of classes and boxes; empty if the log has none."""
    val_loss: tuple[float | None, ...] = ()
    """The same on the validation split, without augmentation."""
    hours: float | None
    """Training and validation of all these epochs; None if the log does not say."""
    training_hours: float | None = None
    """Time of all steps that led to the last epoch, with waiting for their data and without validation; None
    if the log does not hold all of it, and in older reports."""
    stopped_early: bool
    best_epoch: int
    """Epoch of the best score; of equal scores the last, as for `best.pth`."""
    best_ap: float
    still_rising: bool | None
    """Whether the best score lies in the last fifth of the validations and a straight line through that part
    rises; None with fewer than 5 validations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _EpochEntry:
    """A line of the log about an epoch."""

    event: Literal["epoch"]
    epoch: int
    ap: float | None
    ap50: float | None
    seconds: float | None
    terms: dict[str, float | None] = field(default_factory=dict)
    """Loss terms in training."""
    val_loss: float | None = None
    validation_seconds: float | None = None
    """Part of `seconds`; None without a validation."""
    stopped_early: bool = False

    def __post_init__(self) -> None:
        check(
            [
                *below(0, epoch=self.epoch, seconds=self.seconds, validation_seconds=self.validation_seconds),
                *not_fraction(ap=self.ap or 0, ap50=self.ap50 or 0),
            ]
        )

    @property
    def loss(self) -> float | None:
        """The terms of the last layer that a validation has too; None if they are missing."""
        terms = [self.terms.get(name) for name in LAST_LAYER_TERMS]
        return None if None in terms else sum(term for term in terms if term is not None)

    @property
    def training_seconds(self) -> float | None:
        """Seconds without validation; None if they are unknown."""
        if self.seconds is None or (self.validation_seconds is None and self.ap is not None):
            return None
        return self.seconds - (self.validation_seconds or 0.0)


def read_convergence(metrics_path: Path, *, planned_epochs: int) -> Convergence | None:
    """Read how a run converged from its log.

    A line about an epoch replaces the earlier lines about that epoch and later ones: the run was resumed
    there. Lines about other events, and lines that are damaged or cut off, are skipped.

    Args:
        metrics_path: The `metrics.jsonl` of a run folder.
        planned_epochs: Length of the run as configured.

    Returns:
        None if there is no log, or no validation score in it.
    """
    if not metrics_path.is_file():
        return None
    entries: list[_EpochEntry] = []
    for line in read_log_lines(metrics_path):
        entry = _read_entry(line)
        if entry is not None:
            entries = [earlier for earlier in entries if earlier.epoch < entry.epoch] + [entry]
    rated = [(entry.ap, entry.epoch) for entry in entries if entry.ap is not None]
    if not rated:
        return None
    best_ap, best_epoch = max(rated)
    is_whole = [entry.epoch for entry in entries] == list(range(len(entries)))
    return Convergence(
        planned_epochs=max(planned_epochs, entries[-1].epoch + 1),
        epochs=tuple(entry.epoch for entry in entries),
        ap=tuple(entry.ap for entry in entries),
        ap50=tuple(entry.ap50 for entry in entries),
        loss=_known([entry.loss for entry in entries]),
        val_loss=_known([entry.val_loss for entry in entries]),
        hours=_hours([entry.seconds for entry in entries]),
        training_hours=_hours([entry.training_seconds for entry in entries]) if is_whole else None,
        stopped_early=entries[-1].stopped_early,
        best_epoch=best_epoch,
        best_ap=best_ap,
        still_rising=_is_rising([epoch for _, epoch in rated], [ap for ap, _ in rated]),
    )


def _hours(seconds: list[float | None]) -> float | None:
    """Return the sum in hours; None if one is unknown."""
    known = [value for value in seconds if value is not None]
    return sum(known) / 3600 if len(known) == len(seconds) else None


def _known(values: list[float | None]) -> tuple[float | None, ...]:
    """Return the values; none at all if none is known."""
    return () if set(values) == {None} else tuple(values)


def describe_convergence(convergence: Convergence, language: Language = ENGLISH) -> str:
    """Return the best epoch and the trend as sentences; epochs count from 1 here."""
    done = convergence.epochs[-1] + 1
    sentences = [
        language.text(
            "Best mAP {ap:.3f} in epoch {epoch} of {planned}.",
            ap=convergence.best_ap,
            epoch=convergence.best_epoch + 1,
            planned=convergence.planned_epochs,
        )
    ]
    if convergence.stopped_early:
        sentences.append(language.text("Early stopping ended the run after epoch {epoch}.", epoch=done))
    elif done < convergence.planned_epochs:
        sentences.append(language.text("The run is not finished: {epochs} epochs are done.", epochs=done))
    trend = {
        None: "Too few validations to tell whether the score still rises.",
        True: "The score still rises at the end: train longer.",
        False: "The score no longer rises at the end.",
    }[convergence.still_rising]
    return " ".join([*sentences, language.text(trend)])


def _is_rising(epochs: list[int], scores: list[float]) -> bool | None:
    if len(scores) < MIN_TREND_VALIDATIONS:
        return None
    length = max(MIN_TREND_VALIDATIONS, int(TREND_SHARE * len(scores)))
    x, y = np.array(epochs[-length:]), np.array(scores[-length:])
    slope = float(np.polyfit(x, y, 1)[0])
    return bool(y.max() == max(scores) and slope * (x[-1] - x[0]) > MIN_RISE)


def _read_entry(line: str) -> _EpochEntry | None:
    """Read a line; None if it is about something else, or is the last one of a run that was killed."""
    try:
        return from_json(_EpochEntry, parse_json(line, ""))
    except (ValueError, DataError):
        return None
