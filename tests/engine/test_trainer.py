"""Whole runs: what they write, how they stop and go on, and that they can be repeated."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deim.config.loader import config_from_dict, load_config
from deim.config.schema import Config
from deim.engine.checkpoints import read_checkpoint
from deim.engine.run_folder import find_resume
from deim.engine.trainer import Trainer
from deim.engine.validation import Validate, Validation
from deim.errors import CheckpointError, ConfigError, DataError, DeimError, TrainingError
from deim.model.detector import Detector

MakeConfig = Callable[..., Config]
Build = Callable[..., Trainer]
FOUR_EPOCHS = ("epochs=4", "schedule.no_aug_epochs=1", "augment.photometric=0.5")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    run = trainer.run
    averaged = {f"ema.{name}": value for name, value in run.ema.model.state_dict().items()}
    return run.step.model.state_dict() | averaged


def assert_same_weights(first: Trainer, second: Trainer) -> None:
    expected, actual = weights_of(first), weights_of(second)
    assert expected.keys() == actual.keys()
    different = [name for name, value in expected.items() if not torch.equal(actual[name], value)]
    assert different == []


def stop_in_validation(number: int) -> Callable[[Validate], Validate]:
    """Interrupt the run in its validation of this number, from 1."""

    def wrap(new: Validate) -> Validate:
        calls = []

        def validate(model: Detector) -> Validation:
            calls.append(model)
            if len(calls) == number:
                raise KeyboardInterrupt
            return new(model)

        return validate

    return wrap


def scores(values: list[float | None]) -> Callable[[Validate], Validate]:
    """Validation that gives these AP, one after the other."""

    def wrap(new: Validate) -> Validate:
        left = iter(values)
        return lambda model: Validation(
            ap=(ap := next(left)), ap50=ap, worst_class=None, worst_class_ap50=None, summary={}, class_ap50={}
        )

    return wrap


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_boxes_is_refused_before_the_run(
    split: str, tmp_path: Path, write_coco: Callable[..., Path], tiny_config: MakeConfig, build_tiny: Build
) -> None:
    root = write_coco(tmp_path / "set", empty=[split])
    with pytest.raises(DataError, match=rf"^{split}: no image has a box\."):
        build_tiny(tiny_config(root, tmp_path / "run", "epochs=1"))
    assert not (tmp_path / "run").exists()


def test_a_run_writes_its_files_and_learns(tiny_run: Path) -> None:
    assert {path.name for path in tiny_run.iterdir()} == {
        "config.yml",
        "last.pth",
        "best.pth",
        "metrics.jsonl",
    }
    config = load_config(tiny_run / "config.yml")
    assert (config.epochs, config.model.hidden_dim) == (40, 32)
    lines = lines_of(tiny_run)
    assert [line["event"] for line in lines] == ["epoch"] * 40
    assert [line["epoch"] for line in lines] == list(range(40))
    assert [line["step"] for line in lines] == list(range(2, 82, 2))
    # Every 20 epochs, and in the epoch before the final stage, which starts from the best weights.
    assert [line["epoch"] for line in lines if "ap" in line] == [19, 35, 39]
    assert all(line["skipped_steps"] == 0 for line in lines)
    first, last = lines[:5], lines[-5:]
    assert sum(line["loss"] for line in last) < 0.95 * sum(line["loss"] for line in first)
    assert lines[-1]["lr"] == pytest.approx(0.5 * max(line["lr"] for line in lines))


def test_the_last_checkpoint_goes_on_and_the_best_one_is_smaller(tiny_run: Path) -> None:
    last, best = read_checkpoint(tiny_run / "last.pth"), read_checkpoint(tiny_run / "best.pth")
    assert last.resume is not None
    assert last.resume.optimizer["state"]
    assert best.resume is None
    assert (last.epoch, last.step) == (39, 80)
    assert best.best == last.best
    assert best.epoch == best.best.epoch
    assert best.class_names == ("pit", "scratch", "crack")
    assert best.category_ids == (3, 7, 90)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    trainers = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ("epochs=2", "augment.photometric=0.5", f"seed={seed}")
        trainers.append(build_tiny(tiny_config(tiny_set, tmp_path / name, *options)))
        trainers[-1].train()
    assert_same_weights(trainers[0], trainers[1])
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in "abc"]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("num_workers", "stopped_in"),
    [
        pytest.param(0, 2, id="augmented", marks=pytest.mark.slow),
        pytest.param(0, 4, id="final stage", marks=pytest.mark.slow),
        pytest.param(1, 2, id="with a worker", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    num_workers: int,
    stopped_in: int,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
) -> None:
    options = (*FOUR_EPOCHS, f"data.num_workers={num_workers}")
    whole = build_tiny(tiny_config(tiny_set, tmp_path / "whole", *options))
    whole.train()
    config = tiny_config(tiny_set, tmp_path / "parts", *options)
    with pytest.raises(KeyboardInterrupt):
        build_tiny(config, validate=stop_in_validation(stopped_in)).train()
    last = find_resume(tmp_path / "parts", "auto")
    assert last is not None
    torch.manual_seed(999)  # the state must come from the checkpoint
    resumed = build_tiny(config, resume_from=last)
    assert resumed.progress.epoch == stopped_in - 1
    resumed.train()
    expected, actual = lines_of(tmp_path / "whole"), lines_of(tmp_path / "parts")
    assert [line["epoch"] for line in actual] == [0, 1, 2, 3]
    for key in ("loss", "grad_norm", "lr", "step", "terms", "ap", "is_best"):
        assert [line[key] for line in actual] == [line[key] for line in expected], key
    assert_same_weights(whole, resumed)
    assert whole.progress == resumed.progress


def test_resuming_a_finished_run_trains_no_further(tiny_run: Path, build_tiny: Build, tmp_path: Path) -> None:
    config = config_from_dict(
        read_checkpoint(tiny_run / "last.pth").config,
        where="last.pth",
        overrides=[f"output_dir={tmp_path / 'run'}"],
    )
    trainer = build_tiny(config, resume_from=tiny_run / "last.pth")
    trainer.train()
    assert not (tmp_path / "run" / "last.pth").exists()
    assert trainer.progress.epoch == 40


def test_an_existing_run_is_kept_unless_it_may_be_overwritten(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1")
    build_tiny(config).train()
    (tmp_path / "run" / "report.json").write_text("{}")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = (tmp_path / "run" / "last.pth").read_bytes()
    with pytest.raises(
        TrainingError, match=r"run: already holds a run \(last\.pth, best\.pth, .*--resume auto"
    ):
        build_tiny(config)
    assert (tmp_path / "run" / "last.pth").read_bytes() == before
    trainer = build_tiny(config, overwrite=True)
    # The old run waits until the new one has begun; `finalize_run_dir` then decides between them.
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".replaced", "config.yml", "notes.txt"}
    trainer.train()
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [0]


@pytest.fixture
def old_run(tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build) -> Path:
    """Folder of a finished run of one epoch, with a file of the user's."""
    build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=1")).train()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def break_mkdir(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Path.mkdir

    def mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == ".replaced":
            raise OSError(28, "No space left on device", str(self))
        new(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)


def break_a_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    new = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "config.yml" and target.parent.name == ".replaced":
            raise KeyboardInterrupt
        return new(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def break_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_text(path: Path, text: str) -> None:
        path.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("deim.engine.run_folder.write_text", write_text)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(break_mkdir, OSError), (break_config, OSError), (break_a_rename, KeyboardInterrupt)],
    ids=["full disk", "full at config.yml", "Ctrl-C"],
)
def test_a_failed_overwrite_leaves_the_old_run_as_it_was(
    spoil: Callable[[pytest.MonkeyPatch], None],
    error: type[BaseException],
    old_run: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in old_run.iterdir()}
    with monkeypatch.context() as patch:
        spoil(patch)
        with pytest.raises(error):
            build_tiny(tiny_config(tiny_set, old_run, "epochs=1"), overwrite=True)
    assert {path.name: path.read_bytes() for path in old_run.iterdir()} == before


def test_a_file_where_the_old_run_would_be_kept_is_no_reason_to_delete_it(
    old_run: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    (old_run / ".replaced").write_text("not a folder")
    before = {path.name: path.read_bytes() for path in old_run.iterdir()}
    with pytest.raises(
        TrainingError, match=r"run/\.replaced: a file stands where --overwrite keeps the old run"
    ):
        build_tiny(tiny_config(tiny_set, old_run, "epochs=1"), overwrite=True)
    assert {path.name: path.read_bytes() for path in old_run.iterdir()} == before


def test_the_final_stage_starts_from_the_best_weights(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_start: dict[int, dict[str, torch.Tensor]] = {}
    train_epoch = Trainer._train_epoch

    def record(self: Trainer, *args: Any) -> None:
        at_start[self.progress.epoch] = {name: value.clone() for name, value in weights_of(self).items()}
        train_epoch(self, *args)

    monkeypatch.setattr(Trainer, "_train_epoch", record)
    config = tiny_config(tiny_set, tmp_path / "run", *FOUR_EPOCHS)
    trainer = build_tiny(config, validate=scores([0.1, 0.3, 0.2, 0.25]))
    trainer.train()
    # The best weights are those after epoch 1, which are those before epoch 2.
    assert all(torch.equal(at_start[3][name], value) for name, value in at_start[2].items())
    assert trainer.progress.best.epoch == 1
    assert read_checkpoint(trainer.checkpoints.best_path).epoch == 1
    assert read_checkpoint(trainer.checkpoints.last_path).epoch == 3


@pytest.mark.parametrize(
    ("values", "best"),
    [
        pytest.param([0.1, 0.2, 0.3], 2, marks=pytest.mark.slow),
        ([0.3, 0.3, 0.1], 1),
        pytest.param([None, 0.2, 0.1], 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_best_is_the_last_of_the_highest_scores(
    values: list[float | None],
    best: int,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=3")
    build_tiny(config, validate=scores(values)).train()
    content = read_checkpoint(tmp_path / "run" / "best.pth")
    assert content.epoch == content.best.epoch == best
    assert [line["is_best"] for line in lines_of(tmp_path / "run")].count(True) >= 1


@pytest.mark.slow
def test_a_damaged_best_checkpoint_does_not_keep_the_final_stage_from_beginning(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    new = Trainer._begin_final_stage

    def begin(self: Trainer) -> None:
        self.checkpoints.best_path.write_bytes(self.checkpoints.best_path.read_bytes()[:1000])
        new(self)

    monkeypatch.setattr(Trainer, "_begin_final_stage", begin)
    config = tiny_config(tiny_set, tmp_path / "run", *FOUR_EPOCHS)
    trainer = build_tiny(config, validate=scores([0.4, 0.3, 0.2, 0.1]))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "best.pth: damaged, truncated or not a weights file" in caplog.text
    assert "final stage: best.pth is not of this run's best epoch" in caplog.text
    assert read_checkpoint(trainer.checkpoints.best_path).epoch == 3


@pytest.mark.slow
def test_without_a_final_stage_patience_counts_from_the_start_of_augmentation(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    options = ("epochs=8", "schedule={no_aug_epochs: 0, augment_start_epoch: 3}", "early_stopping.patience=2")
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", *options), validate=scores([0.1] * 8))
    trainer.train()
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [0, 1, 2, 3, 4]


def test_raw_weights_are_saved_as_best_where_they_score_higher(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1", "evaluation.evaluate_raw=true")
    build_tiny(config, validate=scores([0.1, 0.4])).train()
    assert read_checkpoint(tmp_path / "run" / "best.pth").weights == "raw"
    assert lines_of(tmp_path / "run")[0]["weights"] == "raw"


def test_skipped_steps_are_logged_with_their_images_and_do_not_move_the_average(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
) -> None:
    trainer = build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=1"), validate=scores([None]))
    with torch.no_grad():
        trainer.run.step.model.decoder.dec_score_head[0].weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in trainer.run.ema.model.state_dict().items()}
    trainer.train()
    skipped, epoch = lines_of(tmp_path / "run")[:-1], lines_of(tmp_path / "run")[-1]
    assert [line["event"] for line in skipped] == ["skipped_step"] * 2
    assert all(line["reason"] and len(line["images"]) == 3 for line in skipped)
    assert (epoch["skipped_steps"], epoch["loss"], epoch["step"]) == (2, None, 2)
    after = trainer.run.ema.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("schedule={augment_start_epoch: 2, mix_end_epoch: 1}",), ConfigError),
        (("runtime.device=cuda:99",), ConfigError),
        (("runtime.amp=fp16",), ConfigError),
        (("model.init_from=lost.pth",), CheckpointError),
    ],
    ids=str,
)
def test_wrong_options_leave_no_folder_behind(
    options: tuple[str, ...],
    error: type[DeimError],
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: MakeConfig,
    build_tiny: Build,
) -> None:
    with pytest.raises(error):
        build_tiny(tiny_config(tiny_set, tmp_path / "run", *options))
    assert list(tmp_path.iterdir()) == []


def test_resume_auto_starts_anew_where_nothing_is(tmp_path: Path) -> None:
    assert find_resume(tmp_path, None) is None
    assert find_resume(tmp_path, "auto") is None
    with pytest.raises(CheckpointError, match=r"lost\.pth: no such checkpoint to resume from\."):
        find_resume(tmp_path, str(tmp_path / "lost.pth"))


# Bugs reported to the author of deim/engine.


def test_a_learning_rate_changed_on_resume_takes_effect(
    tmp_path: Path, tiny_run: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=40", "recipe.lr=1e-5")
    try:
        trainer = build_tiny(config, resume_from=tiny_run / "last.pth")
    except DeimError:
        return  # refusing it would do as well
    assert trainer.run.step.optimizer.param_groups[-1]["flat_lr"] == 1e-5


def test_a_run_stopped_in_its_first_epoch_can_be_taken_up_by_resume_auto(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "epochs=1")
    with pytest.raises(KeyboardInterrupt):
        build_tiny(config, validate=stop_in_validation(1)).train()
    build_tiny(config, resume_from=find_resume(tmp_path / "run", "auto")).train()


@pytest.mark.slow
def test_a_run_resumed_into_another_folder_has_a_best_checkpoint(
    tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    first = tiny_config(tiny_set, tmp_path / "first", "epochs=2")
    with pytest.raises(KeyboardInterrupt):
        build_tiny(first, validate=lambda new: stop_in_validation(2)(scores([0.5, 0.1])(new))).train()
    second = tiny_config(tiny_set, tmp_path / "second", "epochs=2")
    trainer = build_tiny(second, validate=scores([0.1]), resume_from=tmp_path / "first" / "last.pth")
    trainer.train()
    assert trainer.checkpoints.best_path.is_file()


@pytest.mark.parametrize("value", [0.0, None], ids=["nothing found", "validation without boxes"])
@pytest.mark.slow
def test_the_final_stage_does_not_throw_training_away_where_scores_say_nothing(
    value: float | None, tmp_path: Path, tiny_set: Path, tiny_config: MakeConfig, build_tiny: Build
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *FOUR_EPOCHS)
    trainer = build_tiny(config, validate=scores([value] * 4))
    trainer.train()
    # Two steps an epoch: weights that were trained throughout have had eight updates.
    assert trainer.run.ema.updates == 8
    assert read_checkpoint(trainer.checkpoints.best_path).epoch == 3
