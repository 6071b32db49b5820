"""Checkpoints: whole, self-describing, and refused with a reason where they do not fit."""

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import deim
from deim.config.loader import config_to_dict
from deim.config.schema import Config
from deim.data.splits import read_split
from deim.engine.checkpoints import FORMAT, AveragedWeights, Checkpoint, read_checkpoint, save_checkpoint
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, ConfigError, DataError
from deim.inference.evaluator import build_evaluator
from deim.model.detector import Detector


def weights_hash(model: Detector) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def saved(tmp_path: Path, tiny_set: Path, tiny_config: Callable[..., Config]) -> Path:
    config = tiny_config(tiny_set, tmp_path / "run")
    raw, averaged = Detector(config.model, 2), Detector(config.model, 2)
    path = tmp_path / "best.pth"
    checkpoint = Checkpoint(
        config=config_to_dict(config),
        task="detection",
        task_state={},
        class_names=("pit", "scratch"),
        category_ids=(3, 7),
        model=raw.state_dict(),
        ema=AveragedWeights(model=averaged.state_dict(), updates=1),
        weights="ema",
        epoch=4,
        step=12,
    )
    save_checkpoint(checkpoint, path)
    return path


def change(path: Path, **values: Any) -> None:
    save_checkpoint(replace(read_checkpoint(path), **values), path)


@pytest.mark.parametrize("kind", ["ema", "raw"])
def test_a_checkpoint_alone_gives_the_same_detector(saved: Path, kind: str) -> None:
    change(saved, weights=kind)
    document = read_checkpoint(saved)
    trained = load_trained(saved)
    expected = Detector(trained.config.model, 2)
    expected.load_state_dict(document.ema.model if kind == "ema" else document.model)
    assert weights_hash(trained.model) == weights_hash(expected)
    assert weights_hash(load_trained(saved).model) == weights_hash(trained.model)
    assert (trained.class_names, trained.category_ids) == (("pit", "scratch"), (3, 7))
    assert (trained.epoch, trained.weights, trained.path) == (4, kind, saved)
    assert not trained.model.training
    assert config_to_dict(trained.config) == document.config


def test_stored_options_can_be_overridden(saved: Path) -> None:
    assert load_trained(saved, overrides=["data.root=elsewhere"]).config.data.root == "elsewhere"


def test_a_failing_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, checkpoint = saved.read_bytes(), read_checkpoint(saved)

    def fail(document: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint, saved)
    assert saved.read_bytes() == before


NO_ROOM = (
    r"/best\.pth: cannot be written \(No space left on device, it needs [0-9.]+ [KMGiB]+, and "
    r"[0-9.]+ [KMGiB]+ are free\)\. Free some space"
)


class FullDisk(io.BytesIO):
    """A file with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, content: bytes) -> int:
        if self.tell() + len(content) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.mark.parametrize("room", [0, 1, 100, 1_000, 100_000, 150_000])
def test_a_full_disk_is_named_as_such_with_the_path(
    room: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    assert len(before) > 150_000
    document = read_checkpoint(saved)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *args: FullDisk(room))
        with pytest.raises(OSError, match=NO_ROOM):
            save_checkpoint(document, saved)
    assert saved.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_disk_that_is_full_at_the_last_byte_is_named_too(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    saved.with_name(f".best.pth.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=NO_ROOM):
        save_checkpoint(checkpoint, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["best.pth"]


def test_a_save_leaves_no_other_file(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["best.pth"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"best\.pth: damaged, truncated or not a weights file \("):
        load_trained(saved)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lost\.pth: no such weights file"):
        deim.load_detector(tmp_path / "lost.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",
        b"just text",
    ],
    ids=["empty", "pickle", "text"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.pth: damaged, truncated or not a weights file"):
        load_trained(path)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (
            {"model": {}},
            r"foreign\.pth: not a checkpoint of this project, it lacks format, config, class_names",
        ),
        ([1, 2], r"foreign\.pth: holds a list\."),
    ],
    ids=["weights", "list"],
)
def test_a_file_of_another_project_is_refused(document: object, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pth"
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=problem):
        load_trained(path)


def test_another_format_is_refused(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    torch.save(content | {"format": FORMAT + 1}, saved)
    with pytest.raises(
        CheckpointError, match=rf"has checkpoint format {FORMAT + 1}, this version reads {FORMAT}\."
    ):
        load_trained(saved)


def test_weights_that_do_not_fit_the_config_are_refused(saved: Path) -> None:
    change(saved, class_names=("pit", "scratch", "crack"), category_ids=(3, 7, 9))
    with pytest.raises(CheckpointError, match=r"best\.pth: its weights do not fit its config\."):
        load_trained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(class_names="pit"), "class_names: got 'pit', needs a list."),
        (lambda content: content.update(category_ids=[3, 7, 9]), "got class_names 2, category_ids 3."),
        (
            lambda content: content.update(category_ids=[3, 2**80]),
            "category_ids[1]: got 1208925819614629174706176",
        ),
        (lambda content: content["ema"].update(model=[1]), "ema.model: got [1], needs an object."),
        (lambda content: content["ema"]["model"].update(x=1.5), "ema.model.x: got 1.5, needs Tensor."),
        (lambda content: content.update(task=["detection"]), "task: got ['detection'], needs str."),
        (lambda content: content.update(format=torch.ones(2)), "has checkpoint format tensor([1., 1.])"),
        (
            lambda content: content.update(best={"score": float("nan")}),
            "best.score",
        ),
        (
            lambda content: content["config"].update(model=[[["deep"]]]),
            "model: got [[[",
        ),
        (lambda content: content.pop("task"), "task: missing."),
    ],
)
def test_edited_checkpoints_are_refused(saved: Path, change: Callable[[Any], object], message: str) -> None:
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, saved)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_trained(saved)
    assert str(caught.value).startswith(f"{saved}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_of_another_kind_of_numbers_are_refused(saved: Path, dtype: torch.dtype) -> None:
    content = torch.load(saved, weights_only=True)
    key = next(key for key, value in content["ema"]["model"].items() if value.is_floating_point())
    content["ema"]["model"][key] = content["ema"]["model"][key].to(dtype)
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match=re.escape(f"config. {key}: got {dtype}, needs")):
        load_trained(saved)


def test_resuming_with_other_classes_is_refused(
    tiny_run: Path,
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    root = write_coco(tmp_path / "set", categories={"pit": 1, "dent": 2, "hole": 3})
    with pytest.raises(
        CheckpointError,
        match=r"last\.pth: the run was started .*\n  classes: pit, scratch, crack -> pit, dent, hole\n",
    ):
        build_tiny(tiny_config(root, tmp_path / "run"), resume_from=tiny_run / "last.pth")
    assert not (tmp_path / "run").exists()


def test_resuming_from_weights_alone_is_refused(
    tiny_run: Path,
    tiny_set: Path,
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    with pytest.raises(CheckpointError, match=r"best\.pth: holds weights only\. Resume from last\.pth"):
        build_tiny(tiny_config(tiny_set, tmp_path / "run"), resume_from=tiny_run / "best.pth")


def test_resuming_with_another_model_is_refused(
    tiny_run: Path,
    tiny_set: Path,
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "model.hidden_dim=64")
    with pytest.raises(CheckpointError, match=r"\n  model\.hidden_dim: 32 -> 64\n"):
        build_tiny(config, resume_from=tiny_run / "last.pth")
    with pytest.raises(CheckpointError, match=r"last\.pth: does not fit the config of this run\."):
        build_tiny(config, resume_from=tiny_run / "last.pth", force=True)


def test_evaluating_a_dataset_with_other_classes_is_refused(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", categories={"pit": 1, "dent": 2})
    trained = load_trained(
        tiny_run / "best.pth", overrides=[f"data.root={root}", "data.val_annotations=annotations/val.json"]
    )
    with pytest.raises(
        DataError,
        match=r"val\.json: class 'dent' is not known to the detector, which has pit, scratch, crack\.",
    ):
        build_evaluator(trained, read_split(trained.config.data, "val"))
