"""What is tried before a run, and how batches are planned."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deim.config.schema import Config
from deim.data.batch import Batch
from deim.engine import preflight as preflight_module
from deim.engine.build import plan_batches
from deim.engine.distributed import DistributedContext
from deim.engine.memory import limit_bytes, peak_bytes, reset_peak
from deim.engine.step import StepContext
from deim.engine.trainer import Trainer
from deim.errors import ConfigError, TrainingError

MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]
PREFLIGHT = "runtime.preflight=true"
AUTO = ("data.batch_size=auto", "data.effective_batch_size=6")
GB = 2**30


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        (("data.batch_size=4",), 1, (4, 4, 4)),
        (("data.batch_size=4",), 2, (8, 4, 4)),
        (("data.batch_size=2", "data.effective_batch_size=8"), 1, (8, 8, 2)),
        (("data.batch_size=2", "data.effective_batch_size=8"), 2, (8, 4, 2)),
        (AUTO, 2, (6, 3, None)),
    ],
)
def test_batches_are_planned(
    options: tuple[str, ...],
    processes: int,
    expected: tuple[int, int, int | None],
    tmp_path: Path,
    tiny_config: MakeConfig,
) -> None:
    plan = plan_batches(tiny_config(tmp_path, tmp_path / "run", *options), DistributedContext(size=processes))
    assert (plan.effective, plan.share, plan.micro) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("data.effective_batch_size=7",),
            "7 cannot be split equally among 2 processes",
        ),
        (
            ("data.batch_size=4", "data.effective_batch_size=6"),
            "got 4, but a process has 3 images of a step of effective_batch_size 6",
        ),
    ],
)
def test_contradicting_sizes_are_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, tiny_config: MakeConfig
) -> None:
    with pytest.raises(TrainingError, match=message):
        plan_batches(tiny_config(tmp_path, tmp_path / "run", *options), DistributedContext(size=2))


def test_auto_needs_the_size_of_a_step(tmp_path: Path, tiny_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 'auto' needs effective_batch_size, the images of an"):
        tiny_config(tmp_path, tmp_path / "run", "data.batch_size=auto")


def test_it_prints_what_memory_is_taken_and_left_and_changes_nothing(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    caplog: pytest.LogCaptureFixture,
) -> None:
    without = build_tiny(tiny_config(tiny_set, tmp_path / "without", "epochs=2"))
    without.train()
    with caplog.at_level(logging.INFO):
        trainer = build_tiny(tiny_config(tiny_set, tmp_path / "with", "epochs=2", PREFLIGHT))
    line = next(message for message in caplog.messages if message.startswith("memory: "))
    pattern = (
        r"training with 3 images at once \(up to 2 boxes in each\) and validation need up to .* of .* GB"
    )
    assert re.fullmatch(f"memory: {pattern}", line)
    trainer.train()
    expected, actual = (run.run.step.model.state_dict() for run in (without, trainer))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def pretend_memory(monkeypatch: pytest.MonkeyPatch, *, model: float, image: float, total: float) -> list[int]:
    """A device that holds `total` GB, of which a step takes `model` and so much an image; sizes tried."""
    tried: list[int] = []

    def work(parts: StepContext, batch: Batch) -> None:
        tried.append(len(batch.targets))
        if model + image * tried[-1] > total:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(preflight_module, "forward_and_backward", work)
    monkeypatch.setattr(preflight_module, "peak_bytes", lambda device: int((model + image * tried[-1]) * GB))
    monkeypatch.setattr(preflight_module, "limit_bytes", lambda device: int(total * GB))
    return tried


def test_the_largest_step_has_the_largest_size_and_the_boxes_of_all_mixed_images(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []
    monkeypatch.setattr(preflight_module, "forward_and_backward", lambda parts, batch: tried.append(batch))
    augment = "augment={mosaic: 0.5, mix_up: 0.5, copy_blend: 0.5, multi_scale: 0.5}"
    build_tiny(tiny_config(tiny_set, tmp_path / "run", PREFLIGHT, "image_size=128", augment))
    # Two boxes in an image at most: in four images, in two such mosaics, and three copies.
    assert [(*batch.images.shape, len(batch.targets[0]["labels"])) for batch in tried] == [
        (3, 3, 192, 192, 19)
    ]


@pytest.mark.parametrize(("total", "expected"), [(12, 6), (7, 3), (5, 2), (3, 1)], ids="{} GB".format)
def test_auto_takes_the_most_images_that_fit_in_equal_parts(
    total: float,
    expected: int,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=total)
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *AUTO))
    assert trainer.progress.micro_batch_size == expected


def test_auto_goes_on_with_as_many_images_as_before_the_stop(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *AUTO, "epochs=2")
    last = tmp_path / "run" / "last.pth"
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=7)
    first = build_tiny(config)
    assert first.progress.micro_batch_size == 3
    first._save()
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=12)  # room for all 6
    with caplog.at_level(logging.WARNING):
        assert build_tiny(config, resume_from=last).progress.micro_batch_size == 3
    assert caplog.text == ""
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=5)
    with caplog.at_level(logging.WARNING):
        assert build_tiny(config, resume_from=last).progress.micro_batch_size == 2
    assert (
        "3 images at once, as before the stop, no longer fit into memory; with another number" in caplog.text
    )


def test_auto_chooses_anew_where_a_number_was_given_before(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("data.batch_size=1", "data.effective_batch_size=6")
    build_tiny(tiny_config(tiny_set, tmp_path / "run", *given))._save()
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=7)
    config = tiny_config(tiny_set, tmp_path / "run", *AUTO)
    resumed = build_tiny(config, resume_from=tmp_path / "run" / "last.pth", force=True)
    assert resumed.progress.micro_batch_size == 3


def test_auto_trains_on_this_machine(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *AUTO, "epochs=1"))
    trainer.train()
    assert trainer.progress.step == 1
    assert trainer.progress.micro_batch_size in (1, 2, 3, 6)


def test_a_step_that_does_not_fit_is_refused_at_once_with_advice(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_memory(monkeypatch, model=1.0, image=1.4, total=4.0)
    with pytest.raises(TrainingError) as caught:
        build_tiny(tiny_config(tiny_set, tmp_path / "run", PREFLIGHT))
    assert str(caught.value) == (
        "data.batch_size: a step of 3 images at 64x64 px does not fit into memory. Use --set "
        "data.batch_size=auto data.effective_batch_size=3, or runtime.activation_checkpointing=true, or a "
        "smaller image_size."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("most_boxes", "expected"), [(0, 0), (1, 1), (7, 5), (50, 50), (51, 50), (99, 50), (101, 101)]
)
def test_the_most_denoising_queries_do_not_belong_to_the_most_boxes(most_boxes: int, expected: int) -> None:
    assert preflight_module.most_demanding_boxes(most_boxes, 100) == expected


def test_the_peak_of_this_process_is_measured() -> None:
    device = torch.device("cpu")
    held = torch.ones(400 * 2**20, dtype=torch.uint8)
    highest = peak_bytes(device)
    limit = limit_bytes(device)
    assert limit is None or limit > 400 * 2**20
    del held
    reset_peak(device)
    before = peak_bytes(device)
    if before > highest - 200 * 2**20:
        pytest.skip("this system does not forget the peak of a process")
    held = torch.ones(400 * 2**20, dtype=torch.uint8)
    assert peak_bytes(device) - before > 300 * 2**20
    del held
