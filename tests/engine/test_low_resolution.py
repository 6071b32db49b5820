"""A first phase of low resolution: smaller batches, full validation, and the same bits after any stop."""

import logging
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.loader import config_to_yaml, load_config
from deim.config.schema import Config
from deim.data.batch import Batch
from deim.data.splits import build_splits
from deim.engine import preflight as preflight_module
from deim.engine.build import prepare_run
from deim.engine.checkpoints import read_checkpoint
from deim.engine.detection_task import build_detection_loader
from deim.engine.run_folder import find_resume
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, ConfigError, StopSignalError
from tests.engine.test_resume import MIXED, assert_equal_runs, stop_in_step

MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]
PHASES = ("image_size=128", "epochs=4", "schedule.low_resolution={image_size: 64, epochs: 2}")
TWO_STEPS = "evaluation.every_epochs=2"


def sizes_of(config: Config) -> list[set[tuple[int, int]]]:
    """The sizes of the training batches, (height, width) in pixels, of each epoch."""
    loader = build_detection_loader(prepare_run(config, build_splits(config.data)))
    sizes = []
    for epoch in range(config.epochs):
        loader.set_epoch(epoch)
        sizes.append({(batch.images.shape[2], batch.images.shape[3]) for batch in loader})
    return sizes


@pytest.mark.parametrize(
    ("options", "low", "full"),
    [
        ((), (64, 64), (128, 128)),
        (("data.num_workers=1", "data.cache_mb=1"), (64, 64), (128, 128)),
        (
            (
                "image_size=[128, 192]",
                "data.resize=letterbox",
                "schedule.low_resolution.image_size=[64, 96]",
            ),
            (64, 96),
            (128, 192),
        ),
        (("data.tiles={size: 48}", "schedule.low_resolution.image_size=[96, 64]"), (96, 64), (128, 128)),
        (
            ("augment={mosaic: 0.7, zoom_out: 0.5, crop: 0.5, mix_up: 0.5, copy_blend: 0.5}",),
            (64, 64),
            (128, 128),
        ),
    ],
    ids=["plain", "workers and cache", "letterbox", "tiles", "mixed"],
)
def test_the_first_epochs_have_smaller_batches(
    options: tuple[str, ...],
    low: tuple[int, int],
    full: tuple[int, int],
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *PHASES, *options)
    assert sizes_of(config) == [{low}, {low}, {full}, {full}]


def test_several_sizes_are_around_the_one_of_the_phase_until_the_final_stage(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig
) -> None:
    options = ("image_size=192", "schedule.low_resolution={image_size: 96, epochs: 4}")
    several = ("augment.multi_scale=0.5", "data.batch_size=1", "schedule.no_aug_epochs=2")
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=5", *options, *several)
    sizes = sizes_of(config)
    assert max(max(sizes[0] | sizes[1])) <= 144
    assert len(sizes[0] | sizes[1]) > 1
    assert sizes[3:] == [{(96, 96)}, {(192, 192)}]


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_reduced_batch_shows_the_same_image_with_the_same_boxes(
    resize: str, tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig
) -> None:
    batches: list[Batch] = []
    for options in ((), ("schedule.low_resolution={image_size: 64, epochs: 1}",)):
        config = tiny_config(tiny_set, tmp_path / "run", "image_size=128", f"data.resize={resize}", *options)
        batches.append(next(iter(build_detection_loader(prepare_run(config, build_splits(config.data))))))
    full, low = batches
    reduced = torch.nn.functional.interpolate(full.images, size=(64, 64), mode="bilinear", antialias=True)
    assert (reduced - low.images).abs().max() < 0.05
    for ours, theirs in zip(low.targets, full.targets, strict=True):
        assert torch.equal(ours["boxes"], theirs["boxes"])
        assert torch.equal(ours["labels"], theirs["labels"])
        assert torch.allclose(ours["area"], theirs["area"] / 4)


def test_the_phase_is_shown_stored_and_validated_at_the_full_size(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *PHASES, TWO_STEPS)
    with caplog.at_level("INFO"):
        trainer = build_tiny(config)
    assert "  low resolution        64x64 px, epochs 1 to 2" in caplog.text
    assert "  epochs 1 to 2: flips, 64x64 px\n  epochs 3 to 4: flips" in caplog.text
    trained: list[int] = []
    validated: list[int] = []
    models = ((trainer.run.step.model, trained), (trainer.run.ema.model, validated))
    for model, heights in models:
        model.register_forward_pre_hook(lambda _, inputs, heights=heights: heights.append(inputs[0].shape[2]))
    trainer.train()
    assert trained == [64] * 4 + [128] * 4
    assert set(validated) == {128}
    path = tmp_path / "stored.yml"
    path.write_text(config_to_yaml(config), encoding="utf-8")
    assert load_config(path) == config
    timeline = read_checkpoint(tmp_path / "run" / "last.pth").timeline
    assert timeline is not None
    assert timeline.low_resolution == config.schedule.low_resolution


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (1, ()),
        (3, ("data.num_workers=2", "data.cache_mb=1")),
        (4, ("data.cache_mb=1",)),
        (5, ("data.disk_cache_mb=1", "data.num_workers=1")),
        pytest.param(2, (MIXED, "data.effective_batch_size=4", "data.batch_size=2"), marks=pytest.mark.slow),
        pytest.param(3, (MIXED, "data.disk_cache_mb=1"), marks=pytest.mark.slow),
    ],
    ids=["low", "the change, workers", "full", "full, disk cache", "mixed", "the change, mixed"],
)
def test_a_stopped_run_ends_with_the_same_bits(
    number: int,
    options: tuple[str, ...],
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch has two steps; the low resolution ends after two epochs."""
    schedule = (*PHASES, "epochs=3", "schedule.low_resolution.epochs=2", "evaluation.every_epochs=3")
    changes = [change for change in options if "cache" not in change and "workers" not in change]
    build_tiny(tiny_config(tiny_set, tmp_path / "whole", *schedule, *changes)).train()
    cache = f"data.disk_cache_dir={tmp_path / 'cache'}"
    config = tiny_config(tiny_set, tmp_path / "stopped", *schedule, *options, cache)
    stop_in_step(monkeypatch, number, signal.SIGTERM)
    with pytest.raises(StopSignalError):
        build_tiny(config).train()
    build_tiny(config, resume_from=find_resume(tmp_path / "stopped", "auto")).train()
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ("runtime.compile=true",),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
            ],
        ),
        ("runtime.activation_checkpointing=true",),
        ("task.type=faster_rcnn", "model.backbone={type: timm, name: resnet10t}", "model.hidden_dim=32"),
    ],
    ids=["compiled", "activation checkpointing", "Faster R-CNN"],
)
def test_both_sizes_train_in_every_kind_of_run(
    options: tuple[str, ...],
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "resnet" in str(options):
        pytest.importorskip("timm")
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    schedule = ("epochs=2", "schedule.low_resolution.epochs=1", "evaluation.every_epochs=2")
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *PHASES, *schedule, *options))
    trainer.train()
    assert trainer.progress.step == 4
    assert not trainer.progress.skipped_in_a_row


def test_another_phase_in_a_resumed_run_is_named(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    build_tiny(tiny_config(tiny_set, tmp_path / "run", *PHASES))._save()
    for change in ("schedule.low_resolution.epochs=1", "schedule.low_resolution=null"):
        config = tiny_config(tiny_set, tmp_path / "run", *PHASES, change)
        with pytest.raises(CheckpointError, match=r"schedule\.low_resolution.*->"):
            build_tiny(config, resume_from=tmp_path / "run" / "last.pth")


def test_memory_is_measured_at_the_full_size(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(preflight_module, "forward_and_backward", lambda _, batch: tried.append(batch))
    build_tiny(tiny_config(tiny_set, tmp_path / "run", *PHASES, "runtime.preflight=true"))
    assert [tuple(batch.images.shape) for batch in tried] == [(3, 3, 128, 128)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("schedule.low_resolution.epochs=4",),
            "schedule.low_resolution.epochs: got 4, but the run has 4 epochs and ends at the full "
            "image_size. Give at most 3, or null for the block.",
        ),
        (
            ("schedule.low_resolution.epochs=9", "schedule.low_resolution.image_size=[64, 160]"),
            "schedule.low_resolution.image_size: got 64x160, but image_size is 128x128. Give a smaller size",
        ),
        (
            ("schedule.low_resolution.image_size=128",),
            "schedule.low_resolution.image_size: got 128x128, but image_size is 128x128.",
        ),
        (
            ("schedule.low_resolution.image_size=100",),
            "schedule.low_resolution.image_size: got 100x100, both must be multiples of 32 and at least 64; "
            "the nearest are 96x96",
        ),
        (
            ("schedule.low_resolution.image_size=[32, 64]",),
            "schedule.low_resolution.image_size: got 32x64, both must be multiples of 32 and at least 64",
        ),
        (("schedule.low_resolution.epochs=0",), "schedule.low_resolution.epochs: got 0, needs at least 1"),
        (("schedule.low_resolution={epochs: 1}",), "missing key 'schedule.low_resolution.image_size'"),
        (
            ("image_size=[128, 256]", "data.resize=letterbox"),
            "schedule.low_resolution.image_size: got 64x64, which would distort the images of image_size "
            "128x256, but data.resize letterbox keeps their aspect ratio. Give sides of about the same "
            "ratio.",
        ),
    ],
)
def test_a_phase_that_does_not_fit_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, tiny_config: MakeConfig
) -> None:
    start = PHASES if "{" not in options[0] else PHASES[:2]
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny_config(tmp_path, tmp_path / "run", *start, *options)


def test_all_problems_of_a_phase_are_named_together(tmp_path: Path, tiny_config: MakeConfig) -> None:
    options = ("schedule.low_resolution={image_size: 160, epochs: 7}", "epochs=7", "image_size=128")
    with pytest.raises(ConfigError) as caught:
        tiny_config(tmp_path, tmp_path / "run", *options)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("--set: schedule.low_resolution.") for line in lines)


def test_patience_counts_from_the_end_of_the_phase(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    options = ("epochs=6", "early_stopping.patience=1", "early_stopping.before_final_stage=false")
    flat = ("schedule.no_aug_epochs=0", "evaluation.every_epochs=1", "early_stopping.min_delta=1.0")
    config = tiny_config(tiny_set, tmp_path / "run", *PHASES, *options, *flat)
    trainer = build_tiny(config)
    trainer.train()
    assert trainer.progress.stopped_early
    assert trainer.progress.epoch == 3  # two of the phase, and the patience
