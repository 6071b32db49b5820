"""The baseline Faster R-CNN: trained, resumed, evaluated and compared like the detector."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deim.config.schema import Config
from deim.engine.checkpoints import read_checkpoint
from deim.engine.faster_rcnn_task import name_losses
from deim.engine.run_folder import find_resume
from deim.engine.task import load_task
from deim.engine.trainer import Trainer
from deim.errors import ConfigError, StopSignalError
from deim.inference.postprocess import select_detections
from deim.loss.criterion import LossCounts
from deim.loss.image_mean import ImageMeanLoss
from deim.model.backbone.timm import TimmOptions
from deim.model.baselines.faster_rcnn import FasterRcnn
from deim.structures import Placement, Target
from tests.engine.test_resume import assert_equal_runs, stop_in_step

pytest.importorskip("timm")

BACKBONE = "model.backbone={type: timm, name: resnet10t}"
BASELINE = ("task={type: faster_rcnn, anchor_sides: [8, 16, 24, 32, 48]}", BACKBONE, "model.hidden_dim=32")


def build_model(num_classes: int = 3, channels: int = 3) -> FasterRcnn:
    torch.manual_seed(0)
    return FasterRcnn(
        TimmOptions(type="timm", name="resnet10t"),
        hidden_dim=32,
        num_classes=num_classes,
        channels=channels,
        max_detections=20,
        anchor_sides=(8, 16, 32, 48, 64),
    )


def make_batch() -> tuple[torch.Tensor, list[Target]]:
    """One image with a bright square, and one without boxes."""
    images = torch.zeros(2, 3, 64, 96)
    images[0, :, 16:40, 24:60] = 2.0
    box = torch.tensor([[42 / 96, 28 / 64, 36 / 96, 24 / 64]])
    targets: list[Target] = [
        {"boxes": box, "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


def test_it_learns_a_square_and_gives_its_box_in_pixels() -> None:
    model, loss = build_model(), ImageMeanLoss(name_losses)
    images, targets = make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        outputs = model.train()(images, targets)
        matched = loss.match(outputs, targets, epoch=0)
        terms = loss.terms(outputs, matched, matched.counts)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert set(terms) == {"classifier", "box_reg", "objectness", "rpn_box_reg"}
    place = Placement(orig_size_hw=(128, 192), span_hw=(128, 192), shift_yx=(0, 0))
    with torch.no_grad():
        detected, empty = select_detections(model.eval()(images), [place, place], max_detections=20)
    assert detected.labels[0] == 2
    assert detected.scores[0] > 0.5
    torch.testing.assert_close(
        detected.boxes_xyxy[0], torch.tensor([48.0, 32.0, 120.0, 80.0]), atol=12, rtol=0
    )
    assert (empty.scores < 0.5).all()


def test_images_without_a_detection_give_none() -> None:
    model = build_model().eval()
    for parameter in model.roi_heads.box_predictor.cls_score.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = 50.0  # background
        (detections,) = select_detections(
            model(torch.zeros(1, 3, 64, 64)),
            [Placement(orig_size_hw=(64, 64), span_hw=(64, 64), shift_yx=(0, 0))],
        )
    assert len(detections.scores) == 0


def test_the_terms_of_micro_batches_add_up_to_a_mean_over_images() -> None:
    loss = ImageMeanLoss(name_losses)
    _, targets = make_batch()
    total = LossCounts(images=6, boxes=0, pairs=0)
    outputs = {"loss_objectness": torch.tensor(3.0)}
    matched = loss.match(outputs, targets, epoch=0)
    assert loss.terms(outputs, matched, total)["objectness"].item() == pytest.approx(1.0)


def test_a_stopped_baseline_resumes_to_the_same_bit(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tiny_config(tiny_set, tmp_path / "whole", *BASELINE)
    build_tiny(whole).train()
    stopped = tiny_config(tiny_set, tmp_path / "stopped", *BASELINE)
    stop_in_step(monkeypatch, 3)
    with pytest.raises(StopSignalError):
        build_tiny(stopped).train()
    build_tiny(stopped, resume_from=find_resume(tmp_path / "stopped", "auto")).train()
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_recomputed_activations_give_the_same_run_with_less_memory(
    tmp_path: Path, tiny_set: Path, tiny_config: Callable[..., Config], build_tiny: Callable[..., Trainer]
) -> None:
    kept = []
    for is_on in ("false", "true"):
        options = (*BASELINE, "epochs=1", f"runtime.activation_checkpointing={is_on}")
        trainer = build_tiny(tiny_config(tiny_set, tmp_path / is_on, *options))
        model = trainer.run.products.model
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept[-1].append(x.numel()) or x, lambda x: x):
            kept.append([])
            model.train().backbone(torch.rand(2, 3, 64, 64))
        trainer = build_tiny(tiny_config(tiny_set, tmp_path / f"run_{is_on}", *options))
        trainer.train()
    assert sum(kept[1]) < 0.7 * sum(kept[0])
    assert_equal_runs(tmp_path / "run_true", tmp_path / "run_false")


def test_the_backbone_is_compiled_on_request(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    build_tiny(tiny_config(tiny_set, tmp_path / "run", *BASELINE, "runtime.compile=true"))
    assert compiled == ["PyramidBackbone"] * 2  # the model and its average


def test_the_commands_train_evaluate_predict_and_compare_it(
    tmp_path: Path, tiny_set: Path, tiny_run: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    pytest.importorskip("timm")
    options = [f"data.root={tiny_set}", f"output_dir={tmp_path / 'run'}", "runtime.device=cpu", "epochs=1"]
    options += ["image_size=64", "data.num_workers=0", "schedule.warmup_steps=0", "schedule.flat_epochs=1"]
    options += ["data.val_annotations=annotations/train.json", "model.backbone.name=resnet10t"]
    code, _, errors = call("train", "-c", "baseline_resnet18", "--set", *options)
    assert code == 0, errors
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["provenance"]["model"]["name"] == "faster_rcnn-resnet10t"
    assert read_checkpoint(tmp_path / "run" / "last.pth").task == "faster_rcnn"
    detector = f"task.detector={tmp_path / 'run'}"
    code, _, errors = call("train", "-c", "quickstart_multimodal", "--set", detector)
    assert code == 2
    assert "best.pth: trains the task 'faster_rcnn', which text fusion does not extend." in errors
    code, _, errors = call("evaluate", tmp_path / "run")
    assert code == 0, errors
    code, _, errors = call("predict", tmp_path / "run", tiny_set / "images", "--score-threshold", 0)
    assert code == 0, errors
    code, _, errors = call("compare", tmp_path / "run", tmp_path / "run")
    assert code == 0, errors


def test_another_backbone_is_refused(
    tiny_set: Path, tmp_path: Path, tiny_config: Callable[..., Config], build_tiny: Callable[..., Trainer]
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", "task={type: faster_rcnn}")
    with pytest.raises(ConfigError, match=r"model\.backbone\.type: got 'vit_tiny', but faster_rcnn"):
        build_tiny(config)
    with pytest.raises(ConfigError, match=r"anchor_sides: got \[0, 1, 2, 3, 4\], needs at least 1"):
        tiny_config(tiny_set, tmp_path / "run", "task={type: faster_rcnn, anchor_sides: [0, 1, 2, 3, 4]}")
    assert not load_task("faster_rcnn").has_query_loss
