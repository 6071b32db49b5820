"""What the user sees of a run while it trains."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deim.engine.log import LINE_WIDTH, RunLog, epoch_line
from deim.engine.validation import Validation

VALUES: dict[str, Any] = {
    "epoch": 4,
    "loss": 31.959,
    "lr": 4e-4,
    "images_per_s": 8.63,
    "waiting_share": 0.123,
    "peak_memory_bytes": 10.24 * 2**30,
    "time_left_s": 126.0,
}
VALIDATED = VALUES | {
    "ap50": 0.5041,
    "ap": 0.3294,
    "is_best": True,
    "worst_class": "RAYONES_ARANAZOS",
    "worst_class_ap50": 0.26,
}


def validation(side: int) -> Validation:
    return Validation(
        ap=None,
        ap50=None,
        worst_class=None,
        worst_class_ap50=None,
        summary={"ap50": None},
        class_ap50={},
        image=np.zeros((side, side, 3), dtype=np.uint8),
    )


def test_an_epoch_is_one_readable_line() -> None:
    assert epoch_line(epochs=9, **VALUES) == (
        "epoch 5/9  loss 31.96  lr 4.0e-04  8.63 img/s  wait 12%  10.2 GB  2:06 left"
    )
    assert epoch_line(epochs=9, **VALIDATED) == (
        "epoch 5/9 loss 31.96 mAP50 0.504 mAP 0.329* lr 4.0e-04 8.63 img/s wait 12% 10.2 GB 2:06 left "
        "worst 0.26 RAYONES_ARANAZOS"
    )


@pytest.mark.parametrize("epochs", [9, 90, 300])
@pytest.mark.parametrize("seconds", [1.0, 3600.0, 100_000.0])
@pytest.mark.parametrize("name", ["pit", "RAYONES_ARANAZOS", "a name that is longer than any line " * 4])
def test_a_line_fits_the_console_and_keeps_every_number(epochs: int, seconds: float, name: str) -> None:
    values = VALIDATED | {
        "worst_class": name,
        "time_left_s": seconds,
        "loss": 123.5,
        "images_per_s": 234.5,
        "peak_memory_bytes": 23 * 2**30,
    }
    line = epoch_line(epochs=epochs, **values)
    assert len(line) <= LINE_WIDTH
    for part in ("loss 123.50", "mAP50 0.504", "mAP 0.329*", "0.26", "234 img/s", "23.0 GB", " left"):
        assert part in line
    assert name[:3] in line


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("epoch", epoch=0, step=2, loss=float("nan"), grad_norm=float("inf"))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line.pop("seal").startswith("crc32:")
    assert line == {
        "event": "epoch",
        "epoch": 0,
        "step": 2,
        "loss": None,
        "grad_norm": None,
    }


def test_a_resumed_run_drops_what_it_will_write_again_and_a_line_cut_off(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch in range(3):
        log.write("skipped_step", epoch=epoch, step=2 * epoch)
        log.write("epoch", epoch=epoch, step=2 * epoch + 2)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"event": "epo')
    log.keep_until(epoch=1, step=3)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in kept] == [
        ("skipped_step", 0),
        ("epoch", 2),
        ("skipped_step", 2),
    ]


@pytest.mark.parametrize(
    "foreign",
    [
        b"\x00" * 50,
        b'{"a": 1}',
        b"12",
        b"null",
        b"\xff\xfe",
        b'{"event": "epoch", "epoch": "x", "step": 1}',
        b'{"event": "epo',
    ],
    ids=str,
)
def test_lines_that_the_run_has_not_written_are_dropped(foreign: bytes, tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("epoch", epoch=0, step=2)
    path = tmp_path / "metrics.jsonl"
    new = path.read_bytes()
    path.write_bytes(foreign + b"\n" + new + foreign)
    log.keep_until(epoch=1, step=2)
    assert path.read_bytes() == new


def test_a_log_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(None, tensorboard=True) as log:
        log.write("epoch", epoch=0)
        log.curves({"loss": 1.0}, step=1)
        log.validation(validation(2), step=1)
        log.keep_until(epoch=0, step=0)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_curves_and_an_image(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, tensorboard=True) as log:
        log.curves({"train/loss": 3.0, "val/ap": None}, step=1)
        log.curves({"train/loss": 2.0}, step=2)
        log.validation(validation(4), step=2)
    with RunLog(tmp_path, tensorboard=True, first_step=1) as log:
        log.curves({"train/loss": 1.5}, step=2)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    # The resumed run, which had had one step, replaces the second point.
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 1.5)]
