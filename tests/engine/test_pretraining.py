"""Pretraining of a backbone: what it learns, what it writes, and what it refuses."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from deim.config.loader import config_from_dict
from deim.data.options import DataOptions
from deim.data.unlabeled import build_unlabeled_splits
from deim.engine.checkpoints import read_checkpoint
from deim.engine.step import train_step
from deim.errors import CheckpointError, DataError
from deim.loss.pretraining import FeatureLoss, pixel_loss
from deim.model.backbone.timm import TimmOptions
from deim.model.baselines.faster_rcnn import FasterRcnn
from deim.model.detector import Detector
from deim.model.pretraining.network import PretrainingNetwork, PretrainingOutput, draw_masks
from deim.model.pretraining.teacher import Teacher
from deim.model.weights import load_initial_weights
from tests.conftest import TINY
from tests.engine.test_resume import assert_equal_runs, stop_in_step

timm = pytest.importorskip("timm")

LEARNS = "recipe={lr: 5e-3, backbone_lr: 5e-3, clip_grad_norm: 5.0}"
Call = Callable[..., tuple[int, str, str]]
TEACHER = "resnet10t"
METHODS = {
    "distillation": "{{type: distillation, teacher: resnet10t, weights: {weights}}}",
    "masked_images": "{{type: masked_images, mask_ratio: 0.5}}",
}


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "resnet10t.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(TEACHER).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in folders within folders, without annotations, and a file that is none."""
    folder = tmp_path_factory.mktemp("unlabeled")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / f"line_{number % 2}" / "day" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(40, 90, 2)
        pixels = np.full((height, width, 3), rng.integers(0, 255, 3), dtype=np.uint8)
        pixels[: height // 2] //= 2
        Image.fromarray(pixels).save(path)
    (folder / "notes.txt").write_text("nothing")
    return folder


@pytest.fixture
def config_path(tmp_path: Path, unlabeled: Path, teacher_weights: Path) -> Callable[[str], Path]:
    def write(method: str) -> Path:
        path = tmp_path / f"{method}.yml"
        block = yaml.safe_load(METHODS[method].format(weights=teacher_weights))
        data = {**TINY["data"], "root": str(unlabeled)}
        content = {**TINY, "data": data, "task": {"type": "pretraining", "method": block}}
        path.write_text(yaml.safe_dump({**content, "output_dir": str(tmp_path / method)}))
        return path

    return write


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_starts_from_what_was_learned(
    method: str,
    tmp_path: Path,
    tiny_set: Path,
    config_path: Callable[[str], Path],
    call: Call,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    code, output, errors = call("pretrain", "-c", config_path(method), "--set", "epochs=10", LEARNS)
    assert code == 0, errors
    folder = tmp_path / method
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines]
    best = next(line for line in reversed(lines) if line["is_best"])
    assert best["val_loss"] == min(losses) < losses[0]
    assert f"loss of held-out images {min(losses):.4f}" in output
    learned = load_file(folder / "backbone.safetensors")
    for start in (folder / "backbone.safetensors", folder):  # the file, or the folder of the run
        config = config_from_dict(TINY, where="tiny", overrides=[f"data.root={tiny_set}", "output_dir=x"])
        detector = Detector(config.model, num_classes=3)
        path = start if start.is_file() else start / "best.pth"
        report = load_initial_weights(detector, path)
        assert (report.part, report.share) == ("backbone", 1.0)
        for name, value in learned.items():
            assert torch.equal(detector.state_dict()[name], value)
    options = [f"data.root={tiny_set}", "epochs=1", f"output_dir={tmp_path / 'detector'}"]
    options += [f"model.init_from={folder}", "task={type: detection}"]
    code, output, errors = call("train", "-c", config_path(method), "--set", *options)
    assert code == 0, errors
    assert "loaded 100.0 % of the backbone" in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_to_the_same_bit(
    method: str,
    tmp_path: Path,
    config_path: Callable[[str], Path],
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = [f"output_dir={tmp_path / 'whole'}", "epochs=2"]
    assert call("pretrain", "-c", config_path(method), "--set", *whole)[0] == 0
    stopped = [f"output_dir={tmp_path / 'stopped'}", "epochs=2"]
    stop_in_step(monkeypatch, 2)
    assert call("pretrain", "-c", config_path(method), "--set", *stopped)[0] == 128 + 15
    code, _, errors = call("pretrain", "--resume", tmp_path / "stopped")
    assert code == 0, errors
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_another_teacher_is_noticed_in_a_resumed_run(
    tmp_path: Path, config_path: Callable[[str], Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_path("distillation")
    stop_in_step(monkeypatch, 1)
    assert call("pretrain", "-c", path)[0] == 128 + 15
    weights = Path(yaml.safe_load(path.read_text())["task"]["method"]["weights"])
    other = {name: value + 1 for name, value in torch.load(weights).items()}
    content = weights.read_bytes()
    torch.save(other, weights)
    code, _, errors = call("pretrain", "--resume", tmp_path / "distillation")
    weights.write_bytes(content)
    assert code == 2
    assert "task.method: a teacher with other weights" in errors


def test_masks_belong_to_the_image_and_hide_the_asked_share() -> None:
    images = torch.zeros(3, 1, 128, 160)
    mask = draw_masks(images, [5, 6, 5], ratio=0.6)
    assert mask.shape == (3, 4, 5)
    assert mask.flatten(1).sum(dim=1).tolist() == [12, 12, 12]
    assert torch.equal(mask[0], mask[2])
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(draw_masks(images[:1], [6], ratio=0.6)[0], mask[1])  # whatever its place in a batch
    assert draw_masks(images[:1], [5], ratio=0.001).sum() == 1


def test_the_loss_of_pixels_counts_only_what_is_masked() -> None:
    images = torch.randn(2, 3, 64, 64)
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[:, 0, 1] = True
    maps = [torch.nn.functional.pixel_unshuffle(images, stride) for stride in (8, 16, 32)]
    assert sum(pixel_loss(PretrainingOutput(images, maps, mask)).values()).item() == 0
    for features in maps:
        features[:, :, features.shape[2] // 2 :] += 9  # below, where nothing is masked
    assert sum(pixel_loss(PretrainingOutput(images, maps, mask)).values()).item() == 0
    maps[1] = maps[1] + 0.5
    terms = pixel_loss(PretrainingOutput(images, maps, mask))
    assert terms["pixels_16"].item() == pytest.approx(0.5, abs=1e-5)
    assert terms["pixels_8"].item() == terms["pixels_32"].item() == 0


def test_a_teacher_sees_images_in_its_own_normalization(teacher_weights: Path) -> None:
    options = TimmOptions(type="timm", name=TEACHER, weights=str(teacher_weights))
    image = torch.rand(1, 3, 64, 96)
    maps = []
    for mean, std in (((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))):
        teacher = Teacher(options, mean=mean, std=std)
        inputs = (image - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        maps.append(teacher(inputs))
    for first, second, stride in zip(*maps, (8, 16, 32), strict=True):
        assert first.shape[-2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(first.mean(dim=1), torch.zeros_like(first[:, 0]), atol=1e-4, rtol=0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    output = PretrainingOutput(inputs, list(maps[1]), None)
    assert sum(FeatureLoss(teacher)(output).values()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task.method.teacher=resnet10"], "task.method.teacher: timm has no model 'resnet10'. Did you mean"),
        (["task.method.teacher=vit_tiny_patch16_224"], "task.method.teacher: vit_tiny_patch16_224"),
        (["task.method.weights=nowhere.pth"], "nowhere.pth: no such weights file"),
        (["task.method.teacher=resnet18"], "resnet10t.pth: not weights of resnet18"),
        (["task.method={type: masked_images, mask_ratio: 1.0}"], "mask_ratio: got 1, must be above 0"),
        (["task.method.weights=none"], "weights: got none, needs weights"),
        (["data.format=yolo"], "leave data.format at auto"),
        (["task.method={type: masked_images, mask_ratio: -0.1}"], "mask_ratio"),
        (["task.method={type: masked_image}"], "masked_images"),
        (["task.method.techer=x"], "teacher"),
        (["data.root=nowhere"], "data.root: there is no folder 'nowhere'"),
    ],
)
def test_bad_options_are_named(
    options: list[str], message: str, config_path: Callable[[str], Path], call: Call
) -> None:
    code, _, errors = call("pretrain", "-c", config_path("distillation"), "--set", *options)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_teacher_sees_no_gray_files(tmp_path: Path, config_path: Callable[[str], Path], call: Call) -> None:
    (tmp_path / "gray").mkdir()
    for number in range(3):
        Image.new("L", (64, 64), number).save(tmp_path / "gray" / f"{number}.png")
    options = ["data.root=gray", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]
    code, _, errors = call("pretrain", "-c", config_path("distillation"), "--set", *options)
    assert code == 2
    assert "data.channels: got 1, but the teacher resnet10t sees 3" in errors
    assert call("pretrain", "-c", config_path("masked_images"), "--set", "epochs=1", *options)[0] == 0


def test_each_command_trains_its_own_tasks(
    tmp_path: Path, config_path: Callable[[str], Path], call: Call
) -> None:
    path = config_path("masked_images")
    assert "Use deim pretrain." in call("train", "-c", path)[2]
    assert "Use deim train." in call("pretrain", "-c", "neu_det")[2]
    assert not (tmp_path / "masked_images").exists()
    assert call("pretrain", "-c", path, "--set", "epochs=1")[0] == 0
    code, _, errors = call("evaluate", tmp_path / "masked_images")
    assert code == 2
    assert "a pretrained backbone, which detects nothing yet" in errors


def test_a_backbone_of_another_size_is_refused(
    tmp_path: Path, config_path: Callable[[str], Path], call: Call, tiny_set: Path
) -> None:
    assert call("pretrain", "-c", config_path("masked_images"), "--set", "epochs=1")[0] == 0
    config = config_from_dict(
        TINY,
        where="tiny",
        overrides=[f"data.root={tiny_set}", "output_dir=x", "model.hidden_dim=64", "model.backbone.dim=64"],
    )
    with pytest.raises(CheckpointError, match=r"fills only \d+% of the backbone"):
        load_initial_weights(
            Detector(config.model, num_classes=3), tmp_path / "masked_images" / "backbone.safetensors"
        )


@pytest.mark.parametrize("name", ["backbone.safetensors", "best.pth"])
@pytest.mark.parametrize("option", ["model.init_from", "task.method.weights"])
def test_a_run_keeps_the_weights_that_it_begins_with(
    name: str, option: str, tmp_path: Path, config_path: Callable[[str], Path], call: Call
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"weights")
    options = ["output_dir=run", f"{option}=run/{name}"]
    code, _, errors = call("pretrain", "-c", config_path("distillation"), "--overwrite", "--set", *options)
    assert (code, "which is read" in errors) == (2, True)
    assert (tmp_path / "run" / name).read_bytes() == b"weights"


def test_micro_batches_have_the_gradient_of_the_whole_batch(
    tmp_path: Path, config_path: Callable[[str], Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deim.engine import recovery

    losses: dict[str, list[float]] = {"whole": [], "parts": []}
    for name, options in (
        ("whole", ["data.batch_size=3"]),
        ("parts", ["data.batch_size=1", "data.effective_batch_size=3"]),
    ):

        def record(*args: object, name: str = name, **kwargs: object) -> object:
            result = train_step(*args, **kwargs)
            losses[name].append(result.loss)
            return result

        monkeypatch.setattr(recovery, "train_step", record)
        options += [f"output_dir={tmp_path / name}", "epochs=1", "augment.horizontal_flip=0.5"]
        assert call("pretrain", "-c", config_path("masked_images"), "--set", *options)[0] == 0
    # Batch norm sees other statistics, so only the first step is alike, and only nearly.
    assert losses["parts"][0] == pytest.approx(losses["whole"][0], rel=0.2)
    assert len(losses["parts"]) == len(losses["whole"])


def data_options(root: Path, *overrides: str) -> DataOptions:
    places = [f"data.root={root}", "output_dir=x", *overrides]
    return config_from_dict(TINY, where="tiny", overrides=places).data


def test_a_tenth_of_a_folder_is_held_out_and_stays_so(unlabeled: Path, tmp_path: Path) -> None:
    splits = build_unlabeled_splits(data_options(unlabeled))
    names = [*splits.train.file_names, *splits.val.file_names]
    assert sorted(names) == sorted(f"line_{number % 2}/day/{number}.png" for number in range(12))
    assert len(splits.val) == 1
    again = build_unlabeled_splits(data_options(unlabeled))
    assert again.val.file_names == splits.val.file_names


def test_the_test_images_of_a_dataset_are_left_alone(tiny_set: Path) -> None:
    splits = build_unlabeled_splits(data_options(tiny_set))
    assert {name.split("_")[0] for name in splits.train.file_names} == {"train"}
    assert {name.split("_")[0] for name in splits.val.file_names} == {"val"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds 0 images"),
        ({"a.png": (8, 8)}, "holds 1 image "),
        ({"notes.txt": b"nothing", "b.doc": b""}, "holds 0 images"),
        ({"a.png": (8, 8), "b.png": (9, 9), "c.png": b"broken"}, "c.png"),
        ({"a.png": (8, 8), "b.jpg": b"", "c.bmp": b"BM"}, "b.jpg"),
    ],
)
def test_folders_without_usable_images_are_refused(
    files: dict[str, bytes | tuple[int, int]], message: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            Image.new("RGB", content).save(tmp_path / name)
    with pytest.raises(DataError, match=message):
        build_unlabeled_splits(data_options(tmp_path))


def test_the_checkpoint_does_not_hold_the_teacher(
    tmp_path: Path, config_path: Callable[[str], Path], call: Call
) -> None:
    assert call("pretrain", "-c", config_path("distillation"), "--set", "epochs=1")[0] == 0
    checkpoint = read_checkpoint(tmp_path / "distillation" / "best.pth")
    assert {name.split(".")[0] for name in checkpoint.model} == {"backbone", "heads"}


def test_training_over_a_pretrained_folder_keeps_the_weights_it_begins_with(
    tmp_path: Path, tiny_set: Path, config_path: Callable[[str], Path], call: Call
) -> None:
    path = config_path("masked_images")
    assert call("pretrain", "-c", path, "--set", "epochs=1")[0] == 0
    folder = tmp_path / "masked_images"
    options = [f"data.root={tiny_set}", "task={type: detection}"]
    options += [f"model.init_from={folder / 'backbone.safetensors'}"]
    code, _, errors = call("train", "-c", path, "--overwrite", "--set", *options)
    assert (code, "which is read" in errors) == (2, True)
    assert (folder / "backbone.safetensors").is_file()


def test_comparisons_name_a_pretrained_folder(
    tmp_path: Path, tiny_run: Path, config_path: Callable[[str], Path], call: Call
) -> None:
    assert call("pretrain", "-c", config_path("masked_images"), "--set", "epochs=1")[0] == 0
    code, _, errors = call("compare", tmp_path / "masked_images", tiny_run, "--output", "c.json")
    assert code == 2
    assert "a pretrained backbone, which detects nothing" in errors


def test_faster_rcnn_starts_from_the_body_of_a_pretrained_network(tmp_path: Path) -> None:
    options = TimmOptions(type="timm", name=TEACHER)
    pretrained = PretrainingNetwork(options, hidden_dim=16, channels=3, head_channels=(1, 1, 1))
    model = FasterRcnn(
        options, hidden_dim=32, num_classes=2, channels=3, max_detections=5, anchor_sides=(8, 16, 24, 32, 48)
    )
    torch.save(pretrained.state_dict(), tmp_path / "pretrained.pth")
    report = load_initial_weights(model, tmp_path / "pretrained.pth")
    assert (report.part, report.share) == ("backbone", 1.0)
    for name, value in pretrained.backbone.pretrained.state_dict().items():
        assert torch.equal(model.backbone.pretrained.state_dict()[name], value)
