"""Steps that give no finite number, memory that runs out, and what the run does about them."""

import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deim.config.schema import Config
from deim.data.batch import Batch
from deim.engine import recovery as recovery_module
from deim.engine.checkpoints import read_checkpoint
from deim.engine.step import StepContext, StepResult, train_step, unwrap_model
from deim.engine.trainer import Trainer
from deim.engine.validation import Validate, Validation
from deim.errors import StopSignalError, TrainingError

MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]
NAN = float("nan")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`spoil(steps, factor)`: multiply the images of these steps, counted over all calls, by a factor."""

    def install(steps: set[int], factor: float = NAN) -> None:
        calls = iter(range(10**6))

        def step(parts: StepContext, batch: Any, **options: Any) -> StepResult:
            if next(calls) in steps:
                batch.images.mul_(factor)
            return train_step(parts, batch, **options)

        monkeypatch.setattr(recovery_module, "train_step", step)

    return install


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_bad_steps_are_logged_and_the_run_goes_on(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, spoil: Callable[..., None]
) -> None:
    spoil({1, 2, 5})
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=4"))
    trainer.train()
    skipped = [line for line in events_of(tmp_path / "run") if line["event"] == "skipped_step"]
    assert [line["step"] for line in skipped] == [1, 2, 5]
    assert all(
        line["reason"] and len(line["images"]) == 3 and line["lr"] > 0 and line["weight_norm"] > 0
        for line in skipped
    )
    # Not finite, so there is no number for it.
    assert all("grad_norm" in line and line["grad_norm"] is None for line in skipped)
    assert all(
        [f"train_{image_id - 10}.png" for image_id in line["image_ids"]] == line["images"] for line in skipped
    )
    assert trainer.run.ema.updates == 5
    assert all(torch.isfinite(value).all() for value in trainer.run.step.model.state_dict().values())
    assert trainer.progress.restores == 0


@pytest.mark.slow
def test_bad_steps_of_every_kind_are_survived(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = np.random.default_rng(0).permutation(100)[:45].tolist()
    kinds = dict(zip(chosen, ["image", "activation", "gradient"] * 15, strict=True))
    calls = iter(range(100))

    def step(parts: StepContext, batch: Any, **options: Any) -> StepResult:
        model, kind = unwrap_model(parts.model), kinds.get(next(calls))
        hooks = []
        if kind == "image":
            batch.images[0, 0, 5, 5] = float("inf")
        elif kind == "activation":
            block = model.backbone.pretrained.blocks[1]
            hooks.append(block.register_forward_hook(lambda *args: args[-1] * float("inf")))
        elif kind == "gradient":
            weight = model.decoder.enc_score_head.weight
            hooks.append(weight.register_hook(lambda grad: grad * float("inf")))
        result = train_step(parts, batch, **options)
        for hook in hooks:
            hook.remove()
        return result

    monkeypatch.setattr(recovery_module, "train_step", step)
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=50", "evaluation.every_epochs=25"))
    trainer.train()
    skipped = [line["step"] for line in events_of(tmp_path / "run") if line["event"] == "skipped_step"]
    assert skipped == sorted(chosen)
    assert trainer.run.ema.updates == 55
    for model in (trainer.run.step.model, trainer.run.ema.model):
        assert all(value.isfinite().all() for value in model.state_dict().values())
    losses = [
        line["loss"] for line in events_of(tmp_path / "run") if line["event"] == "epoch" and line["loss"]
    ]
    assert sum(losses[-5:]) < sum(losses[:5])
    with capsys.disabled():
        print(f" {len(skipped)} of 100 steps spoiled and survived")  # noqa: T201


def test_after_too_many_the_last_good_state_comes_back_with_half_the_rate(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    spoil: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil({3, 4, 5})
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=4", "recipe.max_skipped_steps=3")
    trainer = build_tiny(config)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "3 steps in a row skipped: restored the state of step 2, learning rate times 0.5" in caplog.text
    restored = [line for line in events_of(tmp_path / "run") if line["event"] == "restored"]
    assert [(line["step"], line["to_step"], line["lr_scale"]) for line in restored] == [(5, 2, 0.5)]
    assert trainer.progress.lr_scale == 0.5
    # Two good steps before the restored state, and the last two of the run.
    assert trainer.run.ema.updates == 4
    lines = [line for line in events_of(tmp_path / "run") if line["event"] == "epoch"]
    timeline = trainer.timeline
    assert lines[-1]["lr"] == pytest.approx(0.5 * config.recipe.lr * timeline.lr_factor(7))


@pytest.mark.slow
def test_a_state_that_was_saved_between_bad_steps_is_not_gone_back_to(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, spoil: Callable[..., None]
) -> None:
    spoil({3, 4, 5, 6})
    options = ("epochs=4", "recipe.max_skipped_steps=4", "evaluation.every_epochs=4")
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *options))
    trainer.train()
    restored = [line for line in events_of(tmp_path / "run") if line["event"] == "restored"]
    # Saved after step 4 (one bad step) and after step 2.
    assert [line["to_step"] for line in restored] == [2]


@pytest.mark.parametrize("stopped_in", [pytest.param(step, marks=pytest.mark.slow) for step in (6, 7, 8, 9)])
def test_the_state_that_comes_back_does_not_depend_on_when_the_run_was_saved(
    stopped_in: int,
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 8, "val": 1, "test": 1})
    current: list[Trainer] = []

    def step(parts: StepContext, batch: Any, **options: Any) -> StepResult:
        number = current[-1].progress.step
        if number in (7, 8, 9):
            batch.images.mul_(NAN)
        if number == stopped_in and len(current) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(parts, batch, **options)

    monkeypatch.setattr(recovery_module, "train_step", step)
    options = ("epochs=3", "data.batch_size=2", "recipe.max_skipped_steps=3", "evaluation.every_epochs=3")
    for name, resume_from in (("whole", None), ("parts", None), ("parts", tmp_path / "parts" / "last.pth")):
        config = tiny_config(root, tmp_path / name, *options)
        current.append(build_tiny(config, resume_from=resume_from))
        with pytest.raises(StopSignalError) if len(current) == 2 else nullcontext():
            current[-1].train()
    for name in ("whole", "parts"):
        restored = [line["to_step"] for line in events_of(tmp_path / name) if line["event"] == "restored"]
        assert restored == [4], name
    expected, actual = (run.run.step.model.state_dict() for run in (current[0], current[2]))
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_a_run_resumed_elsewhere_brings_the_state_to_restore_along(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(parts: StepContext, batch: Any, **options: Any) -> StepResult:
        if trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(parts, batch, **options)

    monkeypatch.setattr(recovery_module, "train_step", step)
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "first", "epochs=2"))
    with pytest.raises(StopSignalError):
        trainer.train()
    last = tmp_path / "first" / "last.pth"
    assert read_checkpoint(last).step == 3
    second = build_tiny(tiny_config(tiny_set, tmp_path / "second", "epochs=2"), resume_from=last)
    second._save()
    content, path = second.checkpoints.read_good_start()
    assert (content.step, path) == (2, tmp_path / "second" / "last.previous.pth")
    monkeypatch.undo()
    second.train()
    assert [line["epoch"] for line in events_of(tmp_path / "second")] == [0, 1]
    assert [line["epoch"] for line in events_of(tmp_path / "first")] == [0]


@pytest.mark.slow
def test_after_three_restores_the_run_stops_and_names_the_images(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, spoil: Callable[..., None]
) -> None:
    spoil(set(range(3, 100)))
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=40", "recipe.max_skipped_steps=2")
    trainer = build_tiny(config)
    with pytest.raises(TrainingError, match=r"2 steps in a row .* restored 3 times .* images ") as caught:
        trainer.train()
    named = {f"train_{number}.png" for number in range(6)}
    assert all(name in str(caught.value) for name in named)
    assert (trainer.progress.restores, trainer.progress.lr_scale) == (3, 0.125)
    content = read_checkpoint(tmp_path / "run" / "last.pth")
    assert all(torch.isfinite(value).all() for value in content.model.values())


def test_a_refused_first_step_goes_back_to_the_beginning(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, spoil: Callable[..., None]
) -> None:
    spoil({0, 1})
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=2", "recipe.max_skipped_steps=2")
    trainer = build_tiny(config)
    trainer.train()
    assert trainer.progress.restores == 1
    assert trainer.run.ema.updates == 2


@pytest.mark.slow
def test_a_restore_in_the_final_stage_goes_back_to_its_start(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build, spoil: Callable[..., None]
) -> None:
    spoil({6, 7})
    options = ("epochs=5", "schedule.no_aug_epochs=2", "recipe.max_skipped_steps=2")
    scores = iter([0.5, 0.1, 0.1, 0.1, 0.1])

    def validate(new: Validate) -> Validate:
        return lambda model: Validation(
            ap=next(scores), ap50=None, worst_class=None, worst_class_ap50=None, summary={}, class_ap50={}
        )

    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *options), validate=validate)
    trainer.train()
    assert trainer.progress.restores == 1
    # Two updates before the best epoch ended; six more were thrown away; two followed the restore.
    assert trainer.run.ema.updates == 4


def run_out_of_memory(monkeypatch: pytest.MonkeyPatch, *, above: int, steps: set[int]) -> list[int | None]:
    """Raise in these calls if more images than `above` are processed at once; the sizes that were tried."""
    tried: list[int | None] = []

    def step(parts: StepContext, batch: Any, **options: Any) -> StepResult:
        size = options["micro_batch_size"]
        tried.append(size)
        if len(tried) - 1 in steps and (size or len(batch.targets)) > above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train_step(parts, batch, **options)

    monkeypatch.setattr(recovery_module, "train_step", step)
    return tried


def test_memory_that_runs_out_once_halves_the_micro_batch_and_keeps_the_step(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = run_out_of_memory(monkeypatch, above=2, steps={2})
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=2"))
    trainer.train()
    assert tried == [3, 3, 3, 2, 2]
    events = [line for line in events_of(tmp_path / "run") if line["event"] == "out_of_memory"]
    assert [(line["step"], line["micro_batch_size"]) for line in events] == [(2, 2)]
    assert (trainer.progress.step, trainer.run.ema.updates) == (4, 4)
    resumed = build_tiny(
        tiny_config(tiny_set, tmp_path / "run", "epochs=2"), resume_from=tmp_path / "run" / "last.pth"
    )
    assert resumed.progress.micro_batch_size == 2


def test_memory_that_runs_out_twice_ends_the_run_with_advice(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_out_of_memory(monkeypatch, above=1, steps={2, 3})
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=2"))
    with pytest.raises(TrainingError, match=r"out of memory in step 3 with 2 images at once\. Lower data"):
        trainer.train()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("update", r"^out of memory in the update of the weights\. Lower data\.batch_size, "),
        ("copy", r"^out of memory in copying a batch to the device\. Lower data\.batch_size, "),
        (
            "validation",
            r"^out of memory in validation\. Lower data\.eval_batch_size, then resume with --resume ",
        ),
    ],
)
def test_memory_that_runs_out_where_no_smaller_part_helps_ends_the_run_with_advice(
    place: str,
    message: str,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def validate(new: Validate) -> Validate:
        return fail if place == "validation" else new

    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=2"), validate=validate)
    if place == "update":
        monkeypatch.setattr(trainer.run.step.optimizer, "step", fail)
    if place == "copy":
        monkeypatch.setattr(Batch, "to", fail)
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert trainer.progress.micro_batch_size == 3  # no other try
    assert read_checkpoint(tmp_path / "run" / "last.pth").step == (2 if place == "validation" else 0)
