"""Whole runs on images of 16 bits: what is learned from them; prediction reads them as training did."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, DataError
from deim.inference.predictor import Predictor, load_detector
from tests.data.sensor_files import write_png, write_tiff

SENSOR = (
    "data.channels=1",
    "data.mean=[0.4]",
    "data.std=[0.25]",
    "data.scaling={type: window, low: 16384, high: 16639}",
)
EIGHT_BITS = SENSOR[:3]


def hide_defects(root: Path, *, low: int, bits: int) -> None:
    """Replace the images of a set by gray of 16 bits, or of their high byte, in which defects add to the low.

    The high byte is the same everywhere; the low one is that of the former image.
    """
    for path in (root / "images").iterdir():
        gray = np.asarray(Image.open(path).convert("RGB"))[..., 0].astype(np.uint16)
        values = (low + gray)[..., None]
        write_png(path, values if bits == 16 else (values >> 8).astype(np.uint8))


def make_sensor_set(root: Path, write_coco: Callable[..., Path], *, bits: int, num_train: int) -> Path:
    write_coco(root, categories={"pit": 3}, num_images={"train": num_train, "val": 20, "test": 2})
    hide_defects(root, low=16384, bits=bits)
    return root


def test_a_run_on_16_bits_is_predicted_as_it_was_evaluated(
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    root = make_sensor_set(tmp_path / "set", write_coco, bits=16, num_train=3)
    config = tiny_config(root, tmp_path / "run", *SENSOR, "epochs=1", "augment.photometric=0.5")
    build_tiny(replace(config, runtime=replace(config.runtime, preflight=True))).train()
    detector = load_detector(tmp_path / "run" / "last.pth", device="cpu")
    assert detector.input_format.pixels.channels == 1
    path = root / "images" / "val_0.png"
    values = np.asarray(Image.open(path)).astype(np.uint16)
    write_tiff(tmp_path / "copy.tif", values[..., None])
    several = [path, tmp_path / "copy.tif", Image.open(path), values, values[..., None]]
    first, *others = detector.predict(several, score_threshold=0)
    for other in others:
        # Images of a batch are not rounded quite as one alone is.
        torch.testing.assert_close(other.boxes_xyxy, first.boxes_xyxy, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.scores, first.scores, atol=1e-5, rtol=0)
    with pytest.raises(
        DataError, match=r"predict: has 8 bits per channel, but data\.scaling is a window up to 16639"
    ):
        detector.predict((values >> 8).astype(np.uint8))
    with pytest.raises(DataError, match=r"predict: has 3 channels, data\.channels is 1"):
        detector.predict(np.repeat(values[..., None], 3, axis=-1))
    two = ["data.channels=2", "data.mean=[0, 0]", "data.std=[1, 1]"]
    with pytest.raises(CheckpointError, match=r"last\.pth: its weights do not fit its config"):
        load_trained(tmp_path / "run" / "last.pth", overrides=two)
    plain = Predictor(replace(detector.trained, config=tiny_config(root, tmp_path)))
    with pytest.raises(DataError, match="predict: has more than 8 bits per channel"):
        plain.predict(values)


@pytest.mark.slow
def test_a_defect_in_the_low_byte_is_learned_from_16_bits_alone(
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    actual = {}
    for bits, options in ((16, SENSOR), (8, EIGHT_BITS)):
        root = make_sensor_set(tmp_path / f"set_{bits}", write_coco, bits=bits, num_train=40)
        config = tiny_config(
            root,
            tmp_path / f"run_{bits}",
            *options,
            "epochs=25",
            "data.batch_size=5",
            "recipe={lr: 4e-3, backbone_lr: 2e-3, clip_grad_norm: 1.0}",
            "evaluation.every_epochs=25",
        )
        trainer = build_tiny(config)
        trainer.train()
        actual[bits] = trainer.validate(trainer.run.ema.model).ap50
    # 200 steps. Without the low byte all images are the same, and only the usual places can be guessed.
    assert actual[16] > 0.6
    assert actual[8] < 0.2
