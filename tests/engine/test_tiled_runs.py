"""Whole runs on tiles: training, validation and prediction cut alike; scores are of whole images."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deim.config.schema import Config
from deim.data.images.input_format import build_input_format
from deim.data.images.tiling import tile_split
from deim.data.loader import build_eval_loader
from deim.data.splits import read_split
from deim.engine.checkpoints import load_trained, read_checkpoint
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, StopSignalError
from deim.inference.evaluator import evaluator_of
from deim.inference.predictor import Predictions, Predictor, join_predictions, predict_split
from deim.report.evaluate import assess
from deim.structures import Detections

TILES = "data.tiles={size: 48, overlap: 0.25}"


def evaluate(run: Path, *overrides: str) -> Predictions:
    trained = load_trained(run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    return evaluator_of(trained, split).evaluate(trained.model).predictions


def predict(run: Path, *overrides: str) -> list[Detections]:
    trained = load_trained(run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    paths = [split.image_path(index) for index in range(len(split))]
    return Predictor(trained).predict(paths, score_threshold=0.0)


def assert_same_bits(one: Detections, other: Detections) -> None:
    for name in ("boxes_xyxy", "scores", "labels", "queries"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_images_that_fit_into_a_tile_give_the_bits_of_a_detector_without_tiles(
    resize: str, tiny_run: Path
) -> None:
    options, tiles = f"data.resize={resize}", "data.tiles={size: 97, overlap: 0.5}"
    whole, tiled = evaluate(tiny_run, options), evaluate(tiny_run, options, tiles)
    assert list(whole.by_image) == list(tiled.by_image)
    for image_id, found in whole.by_image.items():
        assert_same_bits(found, tiled.by_image[image_id])
    for found, other in zip(predict(tiny_run, options), predict(tiny_run, options, tiles), strict=True):
        assert_same_bits(found, other)


@pytest.mark.parametrize(("resize", "batch_size"), [("stretch", 1), ("letterbox", 3)])
def test_predict_gives_what_evaluation_scored_to_the_bit(
    resize: str, batch_size: int, tiny_run: Path, tiny_set: Path
) -> None:
    options = (f"data.resize={resize}", f"data.eval_batch_size={batch_size}", TILES)
    scored, found = evaluate(tiny_run, *options), predict(tiny_run, *options)
    assert len(scored.by_image) == len(found) == 6
    for one, other in zip(scored.by_image.values(), found, strict=True):
        assert_same_bits(one, other)
    sizes = [Image.open(tiny_set / "images" / f"train_{index}.png").size for index in range(6)]
    for (width, height), one in zip(sizes, found, strict=True):
        assert len(one.scores) == 20  # as many as there are queries, however many tiles
        assert (one.scores[:-1] >= one.scores[1:]).all()
        low, high = one.boxes_xyxy[:, :2], one.boxes_xyxy[:, 2:]
        assert (low >= 0).all()
        assert (high <= torch.tensor([width, height])).all()
        assert (low <= high).all()


def test_neither_batches_nor_workers_nor_processes_change_what_is_found(tiny_run: Path) -> None:
    plain = evaluate(tiny_run, TILES, "data.eval_batch_size=1")
    others = [
        evaluate(tiny_run, TILES, "data.eval_batch_size=5"),
        evaluate(tiny_run, TILES, "data.eval_batch_size=4", "data.num_workers=2"),
        in_processes(tiny_run, 2),
    ]
    for other in others:
        assert list(other.by_image) == list(plain.by_image)
        for image_id, found in plain.by_image.items():
            again = other.by_image[image_id]
            # Images of a batch are not rounded quite as one alone is.
            torch.testing.assert_close(again.boxes_xyxy, found.boxes_xyxy, atol=1e-3, rtol=0)
            torch.testing.assert_close(again.scores, found.scores, atol=1e-5, rtol=0)


def in_processes(run: Path, number: int) -> Predictions:
    """What the parts of several processes give, one after the other in this one."""
    trained = load_trained(run / "best.pth", overrides=[TILES])
    split = read_split(trained.config.data, "val")
    classes = {category_id: index for index, category_id in enumerate(split.category_ids)}
    parts = [
        predict_split(
            trained.model,
            build_eval_loader(
                split,
                classes,
                input_format=build_input_format(trained.config.data, trained.config.image_size_hw),
                data=trained.config.data,
                rank=rank,
                num_ranks=number,
            ),
            device=trained.device,
            max_detections=20,
        )
        for rank in range(number)
    ]
    assert [len(part.by_image) for part in parts] == [3, 3]
    return join_predictions(parts, split)


def test_a_run_on_tiles_trains_and_is_scored_by_whole_images(
    tmp_path: Path,
    write_coco: Callable[..., Path],
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_coco(tmp_path / "set", num_images={"train": 2, "val": 1, "test": 3})
    config = tiny_config(root, tmp_path / "run", TILES, "epochs=1", "runtime.preflight=true")
    with caplog.at_level(logging.INFO):
        trainer = build_tiny(config)
    num_tiles = len(
        tile_split(
            read_split(config.data, "train"), build_input_format(config.data, config.image_size_hw).tiles
        )
    )
    assert num_tiles > 4
    assert f"tiles: 2 images become {num_tiles} tiles of at most 48x48 px" in caplog.text
    assert len(trainer.parts.batches) == -(-num_tiles // 3)
    trainer.run(show_progress=False)
    trained = load_trained(trainer.best_path)
    assert trained.config.data.tiles == config.data.tiles
    found = evaluator_of(trained, read_split(config.data, "test")).evaluate(trained.model)
    assert list(found.predictions.by_image) == [10, 11, 12]
    assert found.metrics.num_images == 3
    assert {entry["image_id"] for entry in found.results} == {10, 11, 12}


@pytest.mark.slow
def test_a_stopped_run_on_tiles_goes_on_to_the_same_weights_and_report(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    def stop(own: Callable) -> Callable:
        def validate(model: torch.nn.Module) -> None:
            raise StopSignalError(15, "")

        return validate

    options = (TILES, "epochs=2", "data.batch_size=8", "augment={mosaic: 0.5, mix_up: 0.5, crop: 0.5}")
    whole = build_tiny(tiny_config(tiny_set, tmp_path / "whole", *options))
    whole.run(show_progress=False)
    config = tiny_config(tiny_set, tmp_path / "stopped", *options, "evaluation.bootstrap_resamples=0")
    stopped = build_tiny(config, validate=stop)
    with pytest.raises(StopSignalError):
        stopped.run(show_progress=False)
    build_tiny(config, resume_from=stopped.last_path).run(show_progress=False)
    one, other = (read_checkpoint(path)["model"] for path in (whole.last_path, stopped.last_path))
    assert all(torch.equal(one[name], other[name]) for name in one)

    other_tiles = tiny_config(tiny_set, tmp_path / "stopped", *options, "data.tiles.size=64")
    with pytest.raises(CheckpointError, match=r"data\.tiles\.size: 48 -> 64"):
        build_tiny(other_tiles, resume_from=stopped.last_path)

    trained = load_trained(stopped.best_path)
    evaluator = evaluator_of(trained, read_split(config.data, "test"))
    report_path = tmp_path / "report.json"
    found = assess(trained, evaluator, split_name="test", report_path=report_path)
    report = json.loads(report_path.read_text())
    assert report["dataset"]["num_images"] == 3
    assert report["tiles"] == {"size": 48, "overlap": 0.25, "keep_fraction": 0.5}
    assert "stretch, of tiles of 48 px, overlap 0.25" in found.files.page.read_text(encoding="utf-8")
    seconds = found.evaluation.predictions.total_seconds
    assert report["time_per_image_ms"]["total"] == pytest.approx(1000 * seconds / 3)


@pytest.mark.slow
def test_small_defects_are_found_in_tiles_and_not_without(
    tmp_path: Path, tiny_config: Callable[..., Config], build_tiny: Callable[..., Trainer]
) -> None:
    for name, number in (("train", 12), ("val", 6)):
        write_large_images(tmp_path, name, number)
    found = {}
    for tiles in ("null", "{size: 64, overlap: 0.1}"):
        config = tiny_config(
            tmp_path,
            tmp_path / f"run_{len(found)}",
            f"data.tiles={tiles}",
            # As many inputs in either run: 25 tiles an image, and 25 times as many epochs.
            f"epochs={150 if tiles == 'null' else 6}",
            "data.batch_size=6",
            "data.test_annotations=null",
            "data.cache_mb=64",
            "recipe={lr: 4e-3, backbone_lr: 2e-3, clip_grad_norm: 1.0}",
            "evaluation.every_epochs=1000",
        )
        trainer = build_tiny(config)
        trainer.run(show_progress=False)
        found[tiles] = trainer.parts.validate(trainer.parts.ema.model).ap50
    # 300 steps each: 0.62 and 0.13.
    assert found["{size: 64, overlap: 0.1}"] > 0.4
    assert found["null"] < 0.25


def write_large_images(root: Path, name: str, number: int) -> None:
    """Images of 272 px with eight dents of 5 to 8 px, which at a size of 64 px are smaller than 2."""
    rng = np.random.default_rng(len(name))
    for folder in ("images", "annotations"):
        (root / folder).mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(number):
        pixels = rng.integers(100, 150, size=(272, 272, 3)).astype(np.uint8)
        for cell in rng.permutation(16)[:8].tolist():
            side = int(rng.integers(5, 9))
            top, left = (68 * place + int(rng.integers(0, 60)) for place in divmod(cell, 4))
            pixels[top : top + side, left : left + side] = (220, 60, 60)
            box = [left, top, side, side]
            annotations.append({"id": len(annotations) + 1, "image_id": index, "category_id": 1, "bbox": box})
        Image.fromarray(pixels).save(root / "images" / f"{name}_{index}.png")
        images.append({"id": index, "file_name": f"{name}_{index}.png", "width": 272, "height": 272})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dent"}]}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
