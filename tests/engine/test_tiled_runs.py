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
from deim.data.images.tiling import TilesOptions, tile_split
from deim.data.loader import build_eval_loader
from deim.data.splits import read_split
from deim.engine.checkpoints import read_checkpoint
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.errors import CheckpointError, StopSignalError
from deim.inference.detection_table import DetectionTable
from deim.inference.evaluator import build_evaluator
from deim.inference.predictor import Predictor, predict_split
from deim.report.evaluate import evaluate_checkpoint
from deim.report.schema import read_report
from deim.structures import Detections

TILES = "data.tiles={size: 48, overlap: 0.25}"


def evaluate(run: Path, *overrides: str) -> DetectionTable:
    trained = load_trained(run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    return build_evaluator(trained, split).evaluate(trained.model).detections


def predict(run: Path, *overrides: str) -> list[Detections]:
    trained = load_trained(run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    paths = [split.image_path(index) for index in range(len(split))]
    return Predictor(trained).predict(paths, score_threshold=0.0)


def assert_same_tables(first: DetectionTable, other: DetectionTable) -> None:
    for column in ("image", "label", "boxes_xywh", "score", "query"):
        np.testing.assert_array_equal(getattr(first, column), getattr(other, column), err_msg=column)


def assert_same_bits(first: Detections, other: Detections) -> None:
    for name in ("boxes_xyxy", "scores", "labels", "queries"):
        assert torch.equal(getattr(first, name), getattr(other, name)), name


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_images_that_fit_into_a_tile_give_the_bits_of_a_detector_without_tiles(
    resize: str, tiny_run: Path
) -> None:
    options, tiles = f"data.resize={resize}", "data.tiles={size: 97, overlap: 0.5}"
    whole, tiled = evaluate(tiny_run, options), evaluate(tiny_run, options, tiles)
    assert len(whole) > 0
    assert_same_tables(whole, tiled)
    for actual, other in zip(predict(tiny_run, options), predict(tiny_run, options, tiles), strict=True):
        assert_same_bits(actual, other)


@pytest.mark.parametrize(("resize", "batch_size"), [("stretch", 1), ("letterbox", 3)])
def test_predict_gives_what_evaluation_scored_to_the_bit(
    resize: str, batch_size: int, tiny_run: Path, tiny_set: Path
) -> None:
    options = (f"data.resize={resize}", f"data.eval_batch_size={batch_size}", TILES)
    evaluated, actual = evaluate(tiny_run, *options), predict(tiny_run, *options)
    assert len(actual) == 6
    assert_same_tables(evaluated, DetectionTable.from_detections(dict(enumerate(actual))))
    sizes = [Image.open(tiny_set / "images" / f"train_{index}.png").size for index in range(6)]
    for (width, height), first in zip(sizes, actual, strict=True):
        assert len(first.scores) == 20  # as many as there are queries, however many tiles
        assert (first.scores[:-1] >= first.scores[1:]).all()
        low, high = first.boxes_xyxy[:, :2], first.boxes_xyxy[:, 2:]
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
        np.testing.assert_array_equal(other.image, plain.image)
        # Images of a batch are not rounded quite as one alone is.
        np.testing.assert_allclose(other.boxes_xywh, plain.boxes_xywh, atol=1e-3, rtol=0)
        np.testing.assert_allclose(other.score, plain.score, atol=1e-5, rtol=0)


def in_processes(run: Path, number: int) -> DetectionTable:
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
            image_ids=split.image_ids.tolist(),
        ).detections
        for rank in range(number)
    ]
    assert [len(np.unique(part.image)) for part in parts] == [3, 3]
    return DetectionTable.concatenate(parts)


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
    assert len(trainer.run.products.loader) == -(-num_tiles // 3)
    trainer.train()
    trained = load_trained(trainer.checkpoints.best_path)
    assert trained.config.data.tiles == config.data.tiles
    actual = build_evaluator(trained, read_split(config.data, "test")).evaluate(trained.model)
    assert actual.ground_truth.image_ids == (10, 11, 12)
    assert set(actual.detections.image.tolist()) == {0, 1, 2}


@pytest.mark.slow
def test_a_stopped_run_on_tiles_goes_on_to_the_same_weights_and_report(
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
) -> None:
    def stop(new: Callable) -> Callable:
        def validate(model: torch.nn.Module) -> None:
            raise StopSignalError(15, "")

        return validate

    options = (TILES, "epochs=2", "data.batch_size=8", "augment={mosaic: 0.5, mix_up: 0.5, crop: 0.5}")
    whole = build_tiny(tiny_config(tiny_set, tmp_path / "whole", *options))
    whole.train()
    config = tiny_config(tiny_set, tmp_path / "stopped", *options, "evaluation.bootstrap_resamples=0")
    stopped = build_tiny(config, validate=stop)
    with pytest.raises(StopSignalError):
        stopped.train()
    build_tiny(config, resume_from=stopped.checkpoints.last_path).train()
    first, other = (
        read_checkpoint(path).model for path in (whole.checkpoints.last_path, stopped.checkpoints.last_path)
    )
    assert all(torch.equal(first[name], other[name]) for name in first)

    other_tiles = tiny_config(tiny_set, tmp_path / "stopped", *options, "data.tiles.size=64")
    with pytest.raises(CheckpointError, match=r"data\.tiles\.size: 48 -> 64"):
        build_tiny(other_tiles, resume_from=stopped.checkpoints.last_path)

    trained = load_trained(stopped.checkpoints.best_path)
    evaluator = build_evaluator(trained, read_split(config.data, "test"))
    report_path = tmp_path / "report.json"
    evaluate_checkpoint(trained, evaluator, split_name="test", report_path=report_path)
    report = read_report(report_path)
    assert report.num_images == 3
    expected = TilesOptions(size=48, overlap=0.25, keep_fraction=0.5)
    assert report.provenance.tiles == expected
    assert "stretch, tiles of 48 px, overlap 0.25" in report_path.with_suffix(".html").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_small_defects_are_found_in_tiles_and_not_without(
    tmp_path: Path, tiny_config: Callable[..., Config], build_tiny: Callable[..., Trainer]
) -> None:
    for name, number in (("train", 12), ("val", 6)):
        write_large_images(tmp_path, name, number)
    actual = {}
    for tiles in ("null", "{size: 64, overlap: 0.1}"):
        config = tiny_config(
            tmp_path,
            tmp_path / f"run_{len(actual)}",
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
        trainer.train()
        actual[tiles] = trainer.validate(trainer.run.ema.model).ap50
    # 300 steps each: 0.62 and 0.13.
    assert actual["{size: 64, overlap: 0.1}"] > 0.4
    assert actual["null"] < 0.25


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
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dent"}]}
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
