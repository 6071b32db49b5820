"""Runs that are killed, stopped or changed, and go on."""

import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deim.config.loader import config_to_yaml
from deim.config.schema import Config
from deim.engine.checkpoints import previous_path, read_checkpoint, save_checkpoint
from deim.engine.progress import Progress
from deim.engine.recovery import Recovery
from deim.engine.run_folder import finalize_run_dir, find_resume
from deim.engine.seeding import RandomStates, seed_everything
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, StopSignalError
from tests.conftest import TINY

REPOSITORY = Path(__file__).parents[2]
MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]
SIX_EPOCHS = (
    "epochs=6",
    "schedule.no_aug_epochs=2",
    "augment.photometric=0.5",
    "augment.vertical_flip=0.5",
)
MIXED = "augment={mosaic: 0.5, zoom_out: 0.5, crop: 0.5, mix_up: 0.5, copy_blend: 0.5, multi_scale: 0.5}"
EVERY_STEP = "runtime.checkpoint_minutes=1e-9"
COMPARED = ("epoch", "step", "loss", "grad_norm", "lr", "terms", "ap", "is_best", "skipped_steps")


@pytest.fixture(scope="module")
def ten_images(tmp_path_factory: pytest.TempPathFactory, write_coco: Callable[..., Path]) -> Path:
    """Four steps an epoch of at most three images, the last of one."""
    return write_coco(tmp_path_factory.mktemp("ten"), num_images={"train": 10, "val": 3, "test": 1})


@pytest.fixture(scope="module")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> Path:
    """Folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    build_tiny(tiny_config(ten_images, folder, *SIX_EPOCHS)).train()
    return folder


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line.get(name) for name in COMPARED} for line in lines if line["event"] == "epoch"]


def states_of(folder: Path) -> dict[str, torch.Tensor]:
    last, best = read_checkpoint(folder / "last.pth"), read_checkpoint(folder / "best.pth")
    states = {"raw": last.model, "ema": last.ema.model, "best": best.inference_weights}
    return {f"{kind}.{name}": value for kind, state in states.items() for name, value in state.items()}


def assert_equal_runs(actual: Path, expected: Path) -> None:
    assert epochs_of(actual) == epochs_of(expected)
    theirs = states_of(expected)
    ours = states_of(actual)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in theirs.items() if not torch.equal(ours[name], value)] == []
    assert {path.name for path in actual.iterdir()} == {path.name for path in expected.iterdir()}


def train_until_killed(build: Build, config: Config, folder: Path) -> None:
    build(config, resume_from=find_resume(folder, "auto")).train()


def killed_run(build: Build, config: Config, folder: Path, *, delays: Iterator[float]) -> int:
    """Start the run anew after each kill, kill it after each delay; the kills until it ended by itself."""
    kills = 0
    for delay in delays:
        process = multiprocessing.get_context("fork").Process(
            target=train_until_killed, args=(build, config, folder)
        )
        process.start()
        process.join(delay)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            metrics = folder / "metrics.jsonl"
            for line in metrics.read_text().splitlines() if metrics.is_file() else []:
                json.loads(line)  # valid after any kill
        else:
            assert process.exitcode == 0
            break
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (EVERY_STEP,),
        (),
        (EVERY_STEP, "data.num_workers=2"),
        (EVERY_STEP, "data.effective_batch_size=6"),
        (EVERY_STEP, "data.effective_batch_size=6", "image_size=96", MIXED),
    ],
    ids=["saved each step", "saved each epoch", "workers", "accumulation", "mixed batches"],
)
def test_a_run_killed_at_random_ends_as_one_that_was_never_stopped(
    options: tuple[str, ...],
    tmp_path: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = tmp_path / "whole"
    started = time.monotonic()
    build_tiny(tiny_config(ten_images, whole, *SIX_EPOCHS, *options)).train()
    seconds = time.monotonic() - started
    rng = np.random.default_rng(0)
    kills = rounds = 0
    while kills < 20:
        folder = tmp_path / f"killed_{rounds}"
        config = tiny_config(ten_images, folder, *SIX_EPOCHS, *options)
        delays = iter([*rng.uniform(0.0, seconds / 3, size=10 + 10 * rounds).tolist(), 1800.0])
        kills += killed_run(build_tiny, config, folder, delays=delays)
        assert_equal_runs(folder, whole)
        rounds += 1
    with capsys.disabled():
        print(f" {kills} kills in {rounds} runs of {seconds:.1f} s")  # noqa: T201


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int, signal_number: int = signal.SIGTERM) -> None:
    """Send this process a signal while the trainer does a step of the run, counted from 0."""
    new = Recovery.step

    def step(self: Recovery, batch: Any, progress: Progress) -> Any:
        if progress.step == number:
            monkeypatch.setattr(Recovery, "step", new)
            os.kill(os.getpid(), signal_number)
        return new(self, batch, progress)

    monkeypatch.setattr(Recovery, "step", step)


@pytest.mark.parametrize(
    ("number", "signal_number"),
    [
        pytest.param(0, signal.SIGTERM, id="in the first step", marks=pytest.mark.slow),
        pytest.param(3, signal.SIGINT, id="in the last of an epoch", marks=pytest.mark.slow),
        pytest.param(17, signal.SIGTERM, id="in the final stage", marks=pytest.mark.slow),
        pytest.param(23, signal.SIGINT, id="in the last of all", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(
    number: int,
    signal_number: int,
    tmp_path: Path,
    whole_run: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = tmp_path / "stopped"
    config = tiny_config(ten_images, stopped, *SIX_EPOCHS)
    stop_in_step(monkeypatch, number, signal_number)
    with pytest.raises(StopSignalError, match=rf"stopped by SIG\w+ in epoch {number // 4 + 1} after step"):
        build_tiny(config).train()
    assert read_checkpoint(stopped / "last.pth").step == number + 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    torch.manual_seed(999)
    resumed = build_tiny(config, resume_from=stopped / "last.pth")
    assert (resumed.progress.epoch, resumed.progress.steps_of_epoch) == (number // 4, number % 4 + 1)
    resumed.train()
    assert_equal_runs(stopped, whole_run)


@pytest.mark.slow
def test_mixed_batches_in_other_micro_batches_are_the_same_after_a_stop(
    tmp_path: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = (*SIX_EPOCHS, "image_size=96", MIXED, "data.effective_batch_size=4", "data.batch_size=2")
    build_tiny(tiny_config(ten_images, tmp_path / "whole", *options)).train()
    config = tiny_config(ten_images, tmp_path / "stopped", *options, "data.num_workers=1")
    stop_in_step(monkeypatch, 4)
    with pytest.raises(StopSignalError):
        build_tiny(config).train()
    build_tiny(config, resume_from=tmp_path / "stopped" / "last.pth").train()
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(0, id="empty", marks=pytest.mark.slow),
        pytest.param(0.5, id="half", marks=pytest.mark.slow),
        pytest.param(-3, id="without its end", marks=pytest.mark.slow),
    ],
)
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    left: float,
    tmp_path: Path,
    whole_run: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped = tmp_path / "stopped"
    config = tiny_config(ten_images, stopped, *SIX_EPOCHS)
    stop_in_step(monkeypatch, 9)
    with pytest.raises(StopSignalError):
        build_tiny(config).train()
    last = stopped / "last.pth"
    content = last.read_bytes()
    last.write_bytes(content[: int(left * len(content)) if 0 < left < 1 else int(left)])
    with caplog.at_level(logging.WARNING):
        resumed = build_tiny(config, resume_from=find_resume(stopped, "auto"))
    assert "last.pth: damaged, truncated or not a weights file" in caplog.text
    assert f"Using the checkpoint before it, {previous_path(last)}." in caplog.text
    assert resumed.progress.step == 8
    resumed.train()
    assert_equal_runs(stopped, whole_run)


def test_a_kill_between_the_two_renames_of_a_checkpoint_loses_nothing(
    tmp_path: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(ten_images, tmp_path / "run", *SIX_EPOCHS)
    stop_in_step(monkeypatch, 5)
    with pytest.raises(StopSignalError):
        build_tiny(config).train()
    last = tmp_path / "run" / "last.pth"
    last.replace(previous_path(last))
    assert build_tiny(config, resume_from=find_resume(tmp_path / "run", "auto")).progress.step == 6


def test_a_kill_between_the_two_renames_of_the_very_last_checkpoint_loses_nothing(
    tmp_path: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(ten_images, tmp_path / "run", "epochs=1")
    build_tiny(config).train()
    last = tmp_path / "run" / "last.pth"
    expected = read_checkpoint(last).model
    last.replace(previous_path(last))
    build_tiny(config, resume_from=find_resume(tmp_path / "run", "auto")).train()
    assert not previous_path(last).exists()
    actual = read_checkpoint(last).model
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.fixture
def stopped_run(
    tmp_path: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Folder of a run that was stopped after its sixth step."""
    stop_in_step(monkeypatch, 5)
    with pytest.raises(StopSignalError):
        build_tiny(tiny_config(ten_images, tmp_path / "run", *SIX_EPOCHS)).train()
    return tmp_path / "run"


def test_another_config_is_refused_with_every_difference_unless_forced(
    stopped_run: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = ("recipe.lr=1e-5", "model.decoder.num_denoising=4")
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS, *changes)
    before = {path.name: path.read_bytes() for path in stopped_run.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        build_tiny(config, resume_from=stopped_run / "last.pth")
    assert str(caught.value) == (
        f"{stopped_run}/last.pth: the run was started with other options or data (there -> here):\n"
        f"  model.decoder.num_denoising: 8 -> 4\n"
        f"  recipe.lr: 0.0005 -> 1e-05\n"
        f"Undo the changes, start a new run, or resume all the same with --force."
    )
    assert {path.name: path.read_bytes() for path in stopped_run.iterdir()} == before
    with caplog.at_level(logging.WARNING):
        trainer = build_tiny(config, resume_from=stopped_run / "last.pth", force=True)
    assert "changed since the run was stopped: recipe.lr: 0.0005 -> 1e-05" in caplog.text
    assert trainer.run.step.optimizer.param_groups[-1]["flat_lr"] == 1e-5


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_data_are_refused_unless_forced(
    split: str,
    stopped_run: Path,
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: MakeConfig,
    build_tiny: Build,
) -> None:
    numbers = {"train": 10, "val": 3, "test": 1}
    root = write_coco(tmp_path / "other", num_images=numbers)
    config = tiny_config(root, stopped_run, *SIX_EPOCHS)
    assert build_tiny(config, resume_from=stopped_run / "last.pth").progress.step == 6  # a copy is the same
    file = root / "annotations" / f"{split}.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(document))
    name = {"train": "training", "val": "validation"}[split]
    with pytest.raises(CheckpointError, match=f"\n  {name} data: other images or annotations\n"):
        build_tiny(config, resume_from=stopped_run / "last.pth")
    assert build_tiny(config, resume_from=stopped_run / "last.pth", force=True).progress.step == 6


def test_options_of_the_machine_may_change(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    free = ("data.num_workers=1", "data.cache_mb=7", "runtime.checkpoint_minutes=3", "data.eval_batch_size=1")
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS, *free)
    assert build_tiny(config, resume_from=stopped_run / "last.pth").progress.step == 6


def test_options_that_came_after_the_checkpoint_have_their_defaults_there(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    path = stopped_run / "last.pth"
    document = read_checkpoint(path)
    del document.config["augment"]["mosaic"], document.config["data"]["sampling"]
    save_checkpoint(document, path)
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS)
    assert build_tiny(config, resume_from=path).progress.step == 6
    with pytest.raises(CheckpointError, match=r"\n  augment\.mosaic: 0\.0 -> 0\.5\n"):
        build_tiny(replace(config, augment=replace(config.augment, mosaic=0.5)), resume_from=path)


def test_a_checkpoint_holds_all_that_a_run_needs(stopped_run: Path) -> None:
    document = read_checkpoint(stopped_run / "last.pth")
    assert document.resume is not None
    assert {field.name for field in fields(document.resume.random)} == {"torch", "cuda", "python", "numpy"}
    progress = document.resume.progress
    assert (progress.epoch, progress.steps_of_epoch, progress.step) == (1, 2, 6)
    assert progress.sums.num_good == 2


@pytest.mark.slow
def test_a_run_stopped_early_stays_stopped(
    tmp_path: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    options = (*SIX_EPOCHS, "early_stopping.patience=1", "early_stopping.min_delta=1.0")
    config = tiny_config(ten_images, tmp_path / "run", *options)
    trainer = build_tiny(config)
    trainer.train()
    # The final stage begins in epoch 4; its first epoch brings no gain.
    assert [line["epoch"] for line in epochs_of(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert trainer.progress.stopped_early
    resumed = build_tiny(config, resume_from=tmp_path / "run" / "last.pth")
    resumed.train()
    assert asdict(resumed.progress) == asdict(trainer.progress)
    assert len(epochs_of(tmp_path / "run")) == 5


def start_tool(config: Path) -> subprocess.Popen[str]:
    """Train in a process group of its own, as a terminal or a scheduler starts it."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "tools" / "train.py"), "-c", str(config), "--resume", "auto"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_saves_the_step_and_leaves_the_workers_out(
    number: int, tmp_path: Path, ten_images: Path
) -> None:
    folder = tmp_path / "run"
    document = TINY | {
        "output_dir": str(folder),
        "epochs": 400,
        "data": TINY["data"] | {"root": str(ten_images), "num_workers": 2},
    }
    (tmp_path / "tiny.yml").write_text(json.dumps(document), encoding="utf-8")
    steps = []
    for _ in range(3):
        process = start_tool(tmp_path / "tiny.yml")
        assert process.stdout is not None
        # The workers of training and of validation are there after an epoch.
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("epoch ") for line in lines)
        time.sleep(0.3)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 128 + number, err
        assert err.startswith(f"stopped by {signal.Signals(number).name} in epoch ")
        assert "Traceback" not in err
        steps.append(read_checkpoint(folder / "last.pth").step)
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    last = stopped_run / "last.pth"
    last.write_bytes(last.read_bytes()[:1000])
    before = read_checkpoint(previous_path(last)).step
    trainer = build_tiny(tiny_config(ten_images, stopped_run, *SIX_EPOCHS), resume_from=last)
    document, path = trainer.checkpoints.read_good_start()
    assert (document.step, path) == (before, previous_path(last))
    trainer._save()
    assert read_checkpoint(last).step == read_checkpoint(previous_path(last)).step == before


@pytest.mark.slow
def test_a_run_resumed_into_another_folder_can_be_resumed_there(
    stopped_run: Path,
    tmp_path: Path,
    ten_images: Path,
    whole_run: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(ten_images, tmp_path / "other", *SIX_EPOCHS)
    stop_in_step(monkeypatch, 7)
    with pytest.raises(StopSignalError):
        build_tiny(config, resume_from=stopped_run / "last.pth").train()
    assert previous_path(tmp_path / "other" / "last.pth").is_file()  # saved at the start, too
    build_tiny(config, resume_from=find_resume(tmp_path / "other", "auto")).train()
    assert states_of(tmp_path / "other").keys() == states_of(whole_run).keys()
    ours, theirs = states_of(tmp_path / "other"), states_of(whole_run)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_lower_batch_size_takes_effect_on_resume(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    lower = ("data.batch_size=1", "data.effective_batch_size=3")
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS, *lower)
    trainer = build_tiny(config, resume_from=stopped_run / "last.pth", force=True)
    assert trainer.progress.micro_batch_size == 1


def test_another_size_of_a_step_is_named(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS, "data.batch_size=5")
    with pytest.raises(CheckpointError, match=r"images of a step: 3 -> 5 .*\n  steps of an epoch: 4 -> 2 "):
        build_tiny(config, resume_from=stopped_run / "last.pth")


@pytest.mark.slow
def test_another_number_of_steps_keeps_the_place_in_the_schedule(
    stopped_run: Path,
    ten_images: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS, "data.batch_size=5")
    with caplog.at_level(logging.WARNING):
        trainer = build_tiny(config, resume_from=stopped_run / "last.pth", force=True)
    # Two of four steps of the second epoch are one of two.
    progress = trainer.progress
    assert (progress.epoch, progress.steps_of_epoch, progress.step) == (1, 1, 3)
    assert "an epoch has 2 steps instead of 4: step 6 becomes 3" in caplog.text
    trainer.train()
    lines = epochs_of(stopped_run)
    assert [line["step"] for line in lines] == [4, 4, 6, 8, 10, 12]
    new_rates = [trainer.timeline.lr_factor(2 * epoch - 1) for epoch in range(2, 7)]
    assert [line["lr"] for line in lines[1:]] == [config.recipe.lr * rate for rate in new_rates]


def test_the_checkpoint_before_the_last_can_be_resumed_from_by_name(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    before = previous_path(stopped_run / "last.pth")
    trainer = build_tiny(tiny_config(ten_images, stopped_run, *SIX_EPOCHS), resume_from=before)
    assert (trainer.progress.step, trainer.checkpoints.is_saved) == (4, False)
    trainer._save()
    assert [read_checkpoint(path).step for path in (stopped_run / "last.pth", before)] == [4, 4]


def test_a_killed_overwriting_run_can_be_overwritten(
    stopped_run: Path, ten_images: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(ten_images, stopped_run, *SIX_EPOCHS)
    (stopped_run / "tensorboard").mkdir()
    (stopped_run / "tensorboard" / "events").write_text("first")
    for _ in range(3):  # killed before its first step each time
        build_tiny(config, overwrite=True)
    assert (stopped_run / ".replaced" / "tensorboard" / "events").read_text() == "first"
    finalize_run_dir(stopped_run, has_begun=False)
    assert read_checkpoint(stopped_run / "last.pth").step == 6
    assert not (stopped_run / ".replaced").exists()


def test_random_states_come_back() -> None:
    seed_everything(3)
    states = RandomStates.capture()
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    seed_everything(4)
    states.restore()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


LONG = ("epochs=4", "schedule.no_aug_epochs=1", "recipe.lr=1e-3")


@pytest.mark.parametrize("epochs", [6, 9])
def test_more_epochs_need_no_force_and_repeat_no_warm_up(
    epochs: int, tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    build_tiny(tiny_config(tiny_set, run, *LONG, "schedule.warmup_steps=2")).train()
    best = read_checkpoint(run / "best.pth").best
    longer = tiny_config(tiny_set, run, *LONG, "schedule.warmup_steps=2", f"epochs={epochs}")
    trainer = build_tiny(longer, resume_from=find_resume(run, "auto"))
    assert f"epochs: 4 -> {epochs}. The phases follow from the new number" in caplog.text
    trainer.train()
    lines = epochs_of(run)
    assert [line["epoch"] for line in lines] == list(range(epochs))
    assert lines[-1]["lr"] < lines[4]["lr"] <= 1e-3  # it falls at the new end
    assert read_checkpoint(run / "last.pth").config["epochs"] == epochs
    assert read_checkpoint(run / "best.pth").best.score >= best.score


def test_a_longer_run_that_is_killed_again_keeps_its_plan(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    run = tmp_path / "run"
    build_tiny(tiny_config(tiny_set, run, "epochs=2")).train()
    config = tiny_config(tiny_set, run, "epochs=200")
    first = build_tiny(config, resume_from=find_resume(run, "auto"))
    assert first.timeline.warmup_steps == 0  # as planned for 2 epochs; 200 alone would begin with 20
    assert first.timeline.augment_start_epoch == 0
    first._save()
    again = build_tiny(config, resume_from=find_resume(run, "auto"))
    assert again.timeline == first.timeline


def test_fewer_epochs_than_are_done_are_refused(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    run = tmp_path / "run"
    build_tiny(tiny_config(tiny_set, run, "epochs=3")).train()
    with pytest.raises(CheckpointError, match=r"epochs: got 2, but the run is in epoch 3 already\."):
        build_tiny(tiny_config(tiny_set, run, "epochs=2"), resume_from=find_resume(run, "auto"))


@pytest.mark.parametrize(
    "arguments",
    [["--resume", "run"], ["--resume", "run/last.pth"], ["--resume", "auto", "--set", "output_dir=run"]],
    ids=" ".join,
)
def test_a_run_is_resumed_by_its_folder_alone(
    arguments: list[str], call: Callable, tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1", "evaluation.bootstrap_resamples=0")
    (tmp_path / "tiny.yml").write_text(config_to_yaml(config), encoding="utf-8")
    assert call("train", "-c", "tiny.yml")[0] == 0
    (tmp_path / "tiny.yml").unlink()
    more = ["epochs=2"] if "--set" in arguments else ["--set", "epochs=2"]
    code, _, err = call("train", *arguments, *more)
    assert (code, err) == (0, "")
    assert [line["epoch"] for line in epochs_of(tmp_path / "run")] == [0, 1]


@pytest.mark.parametrize("arguments", [[], ["--resume", "auto"], ["--resume", "lost"]], ids=" ".join)
def test_without_a_config_or_a_run_both_are_asked_for(arguments: list[str], call: Callable) -> None:
    code, _, err = call("train", *arguments)
    assert (code, "Give -c CONFIG" in err) == (2, True)


def test_an_overwritten_run_is_back_if_the_new_one_cannot_write_its_first_checkpoint(
    stopped_run: Path,
    tiny_config: MakeConfig,
    ten_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable,
) -> None:
    before = {path.name: path.read_bytes() for path in stopped_run.iterdir() if path.is_file()}
    config = tiny_config(ten_images, stopped_run, "epochs=1")
    experiment = stopped_run.parent / "experiment.yml"
    experiment.write_text(config_to_yaml(config), encoding="utf-8")

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(stopped_run / "last.pth"))

    monkeypatch.setattr("deim.engine.checkpoints.save_checkpoint", fails)
    code, _, message = call("train", "-c", experiment, "--overwrite")
    assert (code, "last.pth" in message) == (2, True)
    assert {path.name: path.read_bytes() for path in stopped_run.iterdir() if path.is_file()} == before
