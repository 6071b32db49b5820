"""Files of the project's first version: checkpoints give the same predictions, configs are migrated."""

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

import deim
from deim.config.loader import config_from_dict
from deim.engine.checkpoints import read_checkpoint, save_checkpoint
from deim.engine.trained_detector import load_trained
from deim.migration import migrate_checkpoint, migrate_config

FILES = Path(__file__).parents[1] / "fixtures" / "wave1"
CHECKPOINTS = ("best", "fusion_best")
"""Written by commit cea2299, without what resuming needs."""


def unpack(name: str, folder: Path) -> Path:
    path = folder / f"{name}.pth"
    path.write_bytes(lzma.decompress((FILES / f"{name}.pth.xz").read_bytes()))
    return path


def made_images() -> list[NDArray[np.uint8]]:
    """The images that the first version predicted."""
    rng = np.random.default_rng(0)
    images = []
    for number, color in enumerate([(230, 40, 40), (40, 60, 230), (40, 200, 60)]):
        pixels = rng.integers(110, 140, size=(72, 80, 3)).astype(np.uint8)
        pixels[10 + 8 * number : 30 + 8 * number, 20:44] = color
        images.append(pixels)
    return images


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize(("kind", "threshold"), [("raw", 0.0), ("kept", None)])
def test_a_checkpoint_gives_the_predictions_of_the_version_that_wrote_it(
    name: str, kind: str, threshold: float | None, tmp_path: Path
) -> None:
    expected = json.loads((FILES / "expected_predictions.json").read_text())[name][kind]
    detector = deim.load_detector(unpack(name, tmp_path), device="cpu")
    predicted = detector.predict(made_images(), score_threshold=threshold)
    assert kind == "kept" or all(entry["scores"] for entry in expected)
    for detections, entry in zip(predicted, expected, strict=True):
        assert detections.labels.tolist() == entry["labels"]
        np.testing.assert_allclose(detections.scores.numpy(), entry["scores"], atol=1e-6)
        boxes = np.reshape(entry["boxes_xyxy"], (-1, 4))
        np.testing.assert_allclose(detections.boxes_xyxy.numpy(), boxes, atol=1e-3)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_written_in_the_form_of_this_version(name: str, tmp_path: Path) -> None:
    path = unpack(name, tmp_path)
    before = read_checkpoint(path)
    save_checkpoint(before, path)
    content = torch.load(path, weights_only=True)
    assert (content["format"], content["task"]) == (
        2,
        "text_fusion" if name == "fusion_best" else "detection",
    )
    assert {"fusion", "progress"}.isdisjoint(content)
    trained = load_trained(path)
    assert trained.config.recipe.max_skipped_steps == (7 if name == "best" else 20)
    assert trained.config.evaluation.nms.mode == "class_aware"
    assert trained.operating_points is not None
    if name == "fusion_best":
        assert set(trained.task_state) == {"text_bank", "detector", "confused"}
        assert "nms" in trained.task_state["detector"]["operating_points"]


@pytest.mark.parametrize("name", ["config", "fusion_config"])
def test_a_config_is_migrated(name: str) -> None:
    first = yaml.safe_load((FILES / f"{name}.yml").read_text())
    config = config_from_dict(migrate_config(first), where=name)
    assert config.task.type == ("detection" if name == "config" else "text_fusion")
    assert config.data.scaling.type == "uint8"
    assert migrate_config(migrate_config(first)) == migrate_config(first)


def test_the_state_of_a_run_is_migrated() -> None:
    best = {"metric": "ap", "score": 0.5, "epoch": 3, "weights": "ema"}
    progress: dict[str, Any] = {
        "epoch": 4,
        "sums": {"num_good": 2, "num_refused": 1},
        "best": best,
        "gains": {"score": 0.5, "epoch": 3},
        "refused_in_a_row": 1,
        "refused_images": ["a.png"],
    }
    content = {
        "format": 1,
        "config": {"multimodal": None},
        "model": {"head.centre": 1},
        "ema": {"model": {"head.centre": 2}, "updates": 3},
        "progress": progress,
        "best": {},
        "optimizer": {},
        "scaler": {},
        "random": {},
        "fingerprints": {"training": "x"},
        "batches": {"images of a step": 8, "steps of an epoch": 5},
    }
    migrated = migrate_checkpoint(content)
    assert migrated["best"] is None
    assert migrated["model"] == {"head.center": 1}
    assert migrated["ema"] == {"model": {"head.center": 2}, "updates": 3}
    assert migrated["resume"] == {
        "optimizer": {},
        "scaler": {},
        "random": {},
        "fingerprints": {"training": "x"},
        "batch_size": 8,
        "steps_per_epoch": 5,
        "progress": {
            "epoch": 4,
            "sums": {"num_good": 2, "num_skipped": 1},
            "best": best,
            "early_stopping": {"score": 0.5, "epoch": 3},
            "skipped_in_a_row": 1,
            "skipped_images": ["a.png"],
        },
    }
    assert progress["sums"] == {"num_good": 2, "num_refused": 1}
