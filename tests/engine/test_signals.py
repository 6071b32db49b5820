"""Requests to stop, as they reach a process that works, saves or validates."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.schema import Config
from deim.engine import signals as signals_module
from deim.engine.checkpoints import read_checkpoint
from deim.engine.signals import SAME_REQUEST_SECONDS, StopSignals
from deim.engine.trainer import Trainer
from deim.engine.validation import Validate, Validation
from deim.errors import StopSignalError
from deim.model.detector import Detector


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that go by when they are set."""
    now = [100.0]
    monkeypatch.setattr(signals_module.time, "monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def test_one_request_of_several_signals_is_noted_once(clock: list[float]) -> None:
    with StopSignals() as stop:
        send(signal.SIGINT)
        clock[0] += SAME_REQUEST_SECONDS - 0.1
        send(signal.SIGTERM)
        assert stop.received == signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_later_signal_ends_the_run_at_once(clock: list[float]) -> None:
    with StopSignals():
        send()
        clock[0] += SAME_REQUEST_SECONDS + 0.1
        with pytest.raises(StopSignalError, match=r"^stopped by SIGTERM\. Go on with --resume auto\.$"):
            send()
        send()  # of the same request as the second


def test_long_work_is_interrupted_by_the_first_signal_only(clock: list[float]) -> None:
    def work(stop: StopSignals) -> None:
        with stop.interruptible(" in epoch 3"):
            try:
                send()
            finally:
                send()  # while it ends

    with StopSignals() as stop:
        with pytest.raises(StopSignalError, match=r"^stopped by SIGTERM in epoch 3\."):
            work(stop)
        assert stop.received == signal.SIGTERM


def test_long_work_is_not_begun_after_a_signal() -> None:
    with StopSignals() as stop:
        send()
        with pytest.raises(StopSignalError, match="in epoch 3"), stop.interruptible(" in epoch 3"):
            pytest.fail("begun all the same")


def test_what_is_written_is_never_broken_off(clock: list[float]) -> None:
    written = []

    def write(stop: StopSignals) -> None:
        with stop.held():
            send()
            written.append(clock[0])

    with StopSignals() as stop:
        write(stop)
        clock[0] += SAME_REQUEST_SECONDS + 0.1
        with pytest.raises(StopSignalError):
            write(stop)
    assert len(written) == 2


@pytest.mark.parametrize("moment", ["in validation", "while best.pth is written"])
@pytest.mark.slow
def test_several_signals_in_an_epochs_end_stop_the_run_once_without_harm(
    moment: str,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def validate(new: Validate) -> Validate:
        def interrupted(model: Detector) -> Validation:
            if moment == "in validation":
                send()
                send()
            return new(model)

        return interrupted

    class SignallingFile(io.BytesIO):
        def write(self, content: bytes) -> int:
            if self.tell() > 1000:
                send()
                send()
            return super().write(content)

    def save(document: dict[str, Any], file: Any) -> None:
        if ".best.pth" in file.name and moment != "in validation":
            patched_save(
                document, SignallingFile()
            )  # torch calls it back from C++, where an error would be lost
        patched_save(document, file)

    patched_save = torch.save
    monkeypatch.setattr(torch, "save", save)
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=3")
    with pytest.raises(StopSignalError, match=r"^stopped by SIGTERM in epoch [12] .*Go on with"):
        build_tiny(config, validate=validate).train()
    document = read_checkpoint(tmp_path / "run" / "last.pth")
    assert (document.step, document.resume.progress.epoch) == (2, int(moment != "in validation"))
    if moment != "in validation":
        assert read_checkpoint(tmp_path / "run" / "best.pth").epoch == 0
    assert not list((tmp_path / "run").glob(".*"))
