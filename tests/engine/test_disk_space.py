"""What a run will write is compared with what the disk has, before its first step."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.engine import disk_space
from deim.engine.disk_space import plan_files
from deim.errors import DiskFullError


@pytest.fixture
def disk_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda free: monkeypatch.setattr(disk_space, "free_bytes", lambda path: free)


def test_a_run_whose_first_checkpoint_has_no_room_is_refused(
    disk_with, tiny_set: Path, tiny_config, build_tiny, tmp_path: Path
) -> None:
    disk_with(100_000)
    with pytest.raises(DiskFullError) as caught:
        build_tiny(tiny_config(tiny_set, tmp_path / "run"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/run/last.pth: the first checkpoint has no room (it needs ")
    assert "and 97.7 KiB are free). Free some space, or name a folder on another disk" in message
    assert not (tmp_path / "run").exists()


def test_a_run_that_may_fill_the_disk_is_told_so_with_numbers(
    disk_with, tiny_set: Path, tiny_config, build_tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "first"))
    first = next(plan_files(trainer.run, trainer.checkpoints)).num_bytes
    with caplog.at_level(logging.WARNING):
        build_tiny(tiny_config(tiny_set, tmp_path / "second"))
    assert "the run will write" not in caplog.text
    disk_with(first + 1000)
    with caplog.at_level(logging.WARNING):
        build_tiny(tiny_config(tiny_set, tmp_path / "third"))
    assert f"{tmp_path}/third: the run will write about " in caplog.text
    assert "are free: last.pth " in caplog.text
    assert "the other checkpoints " in caplog.text


def test_the_estimate_is_near_the_real_files(tiny_set: Path, tiny_config, build_tiny, tmp_path: Path) -> None:
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=2"))
    planned = {file.name: file.num_bytes for file in plan_files(trainer.run, trainer.checkpoints)}
    trainer.train()
    last, best = ((tmp_path / "run" / name).stat().st_size for name in ("last.pth", "best.pth"))
    assert 0.7 * last < planned["last.pth"] < last
    assert planned["last.pth"] + planned["the other checkpoints"] > 0.7 * (2 * last + best)


def test_caches_count_by_their_options(tiny_set: Path, tiny_config, build_tiny, tmp_path: Path) -> None:
    cached = ("data.disk_cache_mb=1", f"data.disk_cache_dir={tmp_path / 'cache'}", "runtime.tensorboard=true")
    plans = []
    for name, overrides in (("plain", ()), ("cached", cached)):
        trainer = build_tiny(tiny_config(tiny_set, tmp_path / name, *overrides))
        plans.append({file.name: file.num_bytes for file in plan_files(trainer.run, trainer.checkpoints)})
    assert plans[0]["cache of images"] == 0
    assert plans[1]["cache of images"] == 10 * 3 * 64 * 64
    assert plans[1]["report and logs"] > plans[0]["report and logs"]
