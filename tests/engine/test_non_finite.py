"""NaN and infinity in weights, outputs and inputs: an error with a place, never an image without defects."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from deim.config.schema import Config
from deim.data.splits import read_split
from deim.engine.checkpoints import RunCheckpoints, read_checkpoint
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.engine.validation import Validate, Validation
from deim.errors import CheckpointError, NonFiniteError, TrainingError
from deim.inference.evaluator import build_evaluator
from deim.inference.predictor import Predictor, load_detector
from deim.model.build import build_variant

Edit = Callable[[dict[str, Any]], object]


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """Write a copy of a checkpoint with other content."""
    content = torch.load(source, weights_only=True)
    edit(content)
    torch.save(content, target)
    return target


def spoil(weights: dict[str, Tensor], ending: str, value: float) -> None:
    name = next(name for name in weights if name.endswith(ending))
    weights[name].view(-1)[-1] = value


DAMAGES: dict[str, tuple[Edit, str]] = {
    "averaged weight": (
        lambda content: spoil(content["ema"]["model"], "weight", math.nan),
        "averaged weights",
    ),
    "raw bias": (lambda content: spoil(content["model"], "bias", -math.inf), "raw weights"),
    "running variance": (
        lambda content: spoil(content["ema"]["model"], "running_var", math.inf),
        "running_var of the averaged weights",
    ),
    "running mean": (
        lambda content: spoil(content["model"], "running_mean", math.nan),
        "running_mean of the raw",
    ),
}


@pytest.mark.parametrize(
    ("command", "damage"),
    [
        *(("predict", damage) for damage in DAMAGES),
        ("evaluate", "averaged weight"),
        ("evaluate", "running mean"),
        ("init_from", "running variance"),
        ("resume", "raw bias"),
        ("resume", "running variance"),
    ],
)
def test_no_command_takes_weights_that_are_not_finite(
    command: str, damage: str, tmp_path: Path, tiny_run: Path, tiny_set: Path, call: Callable[..., Any]
) -> None:
    edit, place = DAMAGES[damage]
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run / "config.yml", run)
    path = edited(tiny_run / "last.pth", run / "last.pth", edit)
    before = path.read_bytes()
    arguments = {
        "predict": ("predict", path, tiny_set / "images"),
        "evaluate": ("evaluate", path),
        "init_from": (
            "train",
            "-c",
            run / "config.yml",
            "--set",
            f"model.init_from={path}",
            "output_dir=other",
        ),
        "resume": ("train", "--resume", run, "--set", "epochs=41"),
    }[command]
    code, _, error = call(*arguments)
    assert code == 2
    assert error.startswith(f"{path}: 1 tensors hold NaN or infinity, first ")
    assert (place if command != "init_from" else "") in error
    assert len(error.splitlines()) == 1
    assert path.read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_moments_that_are_not_finite_are_refused_on_resume(tmp_path: Path, tiny_run: Path) -> None:
    def damage(content: dict[str, Any]) -> None:
        content["resume"]["optimizer"]["state"][0]["exp_avg_sq"].view(-1)[0] = math.inf

    path = edited(tiny_run / "last.pth", tmp_path / "last.pth", damage)
    with pytest.raises(CheckpointError, match=r"first resume\.optimizer\.state\.0\.exp_avg_sq\."):
        RunCheckpoints(tmp_path).read_for_resume(path)
    # The state before it is used where there is one.
    shutil.copy(tiny_run / "last.pth", tmp_path / "last.previous.pth")
    assert RunCheckpoints(tmp_path).read_for_resume(path)[1].name == "last.previous.pth"


def test_numbers_too_large_for_float32_are_not_finite(tmp_path: Path, tiny_run: Path) -> None:
    def enlarge(content: dict[str, Any]) -> None:
        for weights in (content["model"], content["ema"]["model"]):
            name = next(name for name in weights if name.endswith("bias"))
            weights[name] = weights[name].double().fill_(1e39)

    with pytest.raises(CheckpointError, match="2 tensors hold NaN or infinity"):
        load_detector(edited(tiny_run / "best.pth", tmp_path / "best.pth", enlarge))


@pytest.mark.parametrize("size", ["nano", "l"])
def test_no_buffer_of_a_detector_is_infinite_by_design(size: str) -> None:
    state = build_variant(size, num_classes=2).state_dict()
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def overflow(model: torch.nn.Module) -> None:
    """Make finite weights whose product is not."""
    for head in model.decoder.dec_score_head:
        torch.nn.init.constant_(head.weight, 3e38)


def test_prediction_names_the_images_of_an_overflow_and_keeps_the_others(
    tmp_path: Path, tiny_run: Path, tiny_set: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(tiny_run)
    forward = trained.model.forward

    def of_bright_images(images: Tensor) -> Any:
        output = forward(images)
        output["pred_boxes"][images.flatten(1).mean(dim=1) > 1.5] = math.nan
        return output

    monkeypatch.setattr(trained.model, "forward", of_bright_images)
    monkeypatch.setattr("deim.engine.trained_detector.load_trained", lambda *_, **__: trained)
    folder = tmp_path / "lot"
    folder.mkdir()
    for number, gray in enumerate((90, 255, 80, 254, 70)):
        Image.new("RGB", (70, 60), (gray, gray, gray)).save(folder / f"{number}.png")
    code, out, error = call("predict", tiny_run, folder, "--output", "out", "--score-threshold", 0)
    assert code == 1
    assert "in 3 images" in out
    assert "failed     2 images: 1.png, 3.png" in out
    lines = error.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(folder / "1.png"), str(folder / "3.png")]
    assert all(": the network gives NaN or infinity for it. " in line for line in lines)
    listed = json.loads((tmp_path / "out" / "images.json").read_text())
    assert ["error" in entry for entry in listed] == [False, True, False, True, False]


def test_an_array_with_an_overflow_is_named_by_its_number(tiny_run: Path) -> None:
    trained = load_trained(tiny_run)
    overflow(trained.model)
    with pytest.raises(NonFiniteError, match=r"^image 1: the network gives NaN or infinity"):
        Predictor(trained).predict(Image.new("RGB", (64, 64), "gray"))


def test_float16_that_overflows_is_an_error(tiny_run: Path, tiny_set: Path) -> None:
    trained = load_trained(tiny_run)
    for head in trained.model.decoder.dec_score_head:
        torch.nn.init.constant_(head.weight, 6e4)
    path = tiny_set / "images" / "val_0.png"
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(NonFiniteError, match="the network gives NaN"),
    ):
        Predictor(trained).predict(path)
    assert Predictor(trained).predict(path)


def test_an_input_that_is_not_finite_is_an_error(
    tiny_run: Path, tiny_set: Path, call: Callable[..., Any]
) -> None:
    # So small that the quotient of a pixel is beyond float32.
    code, _, error = call(
        "predict", tiny_run, tiny_set / "images" / "val_1.png", "--set", "data.std=[1e-39,1,1]"
    )
    assert (code, "val_1.png: the network gives NaN or infinity" in error) == (1, True)
    assert "data.std" in error


@pytest.mark.parametrize("tiles", [False, True])
def test_evaluation_ends_with_the_image(tiles: bool, tiny_run: Path, tiny_set: Path) -> None:
    overrides = ["data.tiles={size: 48, overlap: 0.2}"] if tiles else []
    trained = load_trained(tiny_run, overrides=overrides)
    overflow(trained.model)
    evaluator = build_evaluator(trained, read_split(trained.config.data, "test"))
    with pytest.raises(NonFiniteError, match=r"^test_0\.png: the network gives NaN or infinity"):
        evaluator.evaluate(trained.model)


@pytest.mark.parametrize(("kind", "options"), [("averaged", ()), ("raw", ("evaluation.evaluate_raw=true",))])
def test_a_validation_without_finite_outputs_stops_the_run_and_keeps_what_was_good(
    kind: str,
    options: tuple[str, ...],
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    trainers: list[Trainer] = []

    def overflowing_later(new: Validate) -> Validate:
        def validate(model: torch.nn.Module) -> Validation:
            run = trainers[0].run
            if trainers[0].progress.epoch == 1:
                overflow(run.ema.model if kind == "averaged" else run.step.model)
            return new(model)

        return validate

    config = tiny_config(tiny_set, tmp_path / "run", "epochs=3", *options)
    trainers.append(build_tiny(config, validate=overflowing_later))
    message = rf"^validation of the {kind} weights of epoch 2: val_0\.png: the network gives NaN or infinity"
    with pytest.raises(TrainingError, match=message) as caught:
        trainers[0].train()
    assert "kept as they were: last.previous.pth, last.pth, best.pth" in str(caught.value)
    assert read_checkpoint(tmp_path / "run" / "best.pth").epoch == 0
    state = read_checkpoint(tmp_path / "run" / "last.previous.pth")
    assert (state.step, state.resume.progress.epoch) == (2, 1)
    # The advice works.
    continued = build_tiny(config, resume_from=tmp_path / "run" / "last.previous.pth", force=True)
    continued.train()
    assert read_checkpoint(tmp_path / "run" / "last.pth").step == 6


@pytest.mark.parametrize("ending", ["weight", "running_var"])
def test_averaged_weights_that_are_not_finite_are_never_written(
    ending: str,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    trainers: list[Trainer] = []

    def spoiling(new: Validate) -> Validate:
        def validate(model: torch.nn.Module) -> Validation:
            result = new(model)
            spoil(trainers[0].run.ema.model.state_dict(), ending, math.nan)
            return result

        return validate

    trainers.append(build_tiny(tiny_config(tiny_set, tmp_path / "run", "epochs=3"), validate=spoiling))
    with pytest.raises(TrainingError, match=rf"best\.pth: not written after step 2 in epoch 1: .*{ending}"):
        trainers[0].train()
    assert read_checkpoint(tmp_path / "run" / "last.pth").step == 2
