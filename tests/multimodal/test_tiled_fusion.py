"""Phase 2 on a detector that was trained on tiles: its fusion sees tiles, its scores are of whole images."""

import json
from dataclasses import replace

import pytest
import torch

from deim.data.images.tiling import tile_split
from deim.data.splits import read_split
from deim.engine.checkpoints import read_checkpoint, save_checkpoint
from deim.engine.trained_detector import load_trained
from deim.inference.evaluator import build_evaluator
from deim.inference.predictor import Predictor
from deim.report.files import ReportFiles
from multimodal.report import evaluate_checkpoint

TILES = {"size": 48, "overlap": 0.25, "keep_fraction": 0.5}


@pytest.fixture
def tiled_detector(tiny_run, tmp_path):
    """The detector of the tiny run, as if it had been trained on tiles."""
    content = read_checkpoint(tiny_run / "best.pth")
    config = content.config | {"data": content.config["data"] | {"tiles": TILES}}
    save_checkpoint(replace(content, config=config), tmp_path / "tiled.pth")
    return tmp_path / "tiled.pth"


@pytest.mark.slow
def test_a_fusion_on_tiles_is_trained_and_scored(
    phase2_config, build_phase2, tiled_detector, tmp_path, monkeypatch
):
    config = phase2_config(f"task.detector={tiled_detector}", "epochs=1", "evaluation.bootstrap_resamples=2")
    assert config.data.tiles.size == 48
    trainer = build_phase2(config)
    trainer.train()
    num_tiles = len(tile_split(read_split(config.data, "train"), config.data.tiles))
    stored = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(stored) == num_tiles > 20
    maps = []

    def note(axes, image, text_map, label, **rest):
        maps.append((text_map, image.size))

    monkeypatch.setattr("multimodal.text_maps.draw_text_map", note)
    trained = load_trained(trainer.checkpoints.last_path)
    split = read_split(config.data, "val")
    evaluator = build_evaluator(trained, split)
    evaluate_checkpoint(trained, evaluator, split_name="val", report_path=tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_images"] == len(split) == 6
    # A text map has the queries of all tiles, 20 each, over the whole image.
    assert maps
    for text_map, size_wh in maps:
        assert len(text_map.boxes_xyxy) == text_map.responses.shape[1] > 20
        assert len(text_map.boxes_xyxy) % 20 == 0
        assert (text_map.boxes_xyxy[:, 2:] <= torch.tensor(size_wh)).all()
    paths = [split.image_path(index) for index in range(len(split))]
    predicted = Predictor(trained).predict(paths, score_threshold=0.0)
    evaluated = json.loads(ReportFiles(tmp_path / "report.json").predictions.read_text())
    assert [entry["score"] for entry in evaluated] == [
        score for detections in predicted for score in detections.scores.tolist()
    ]
