"""The option for the detections that COCO metrics count, on images with more boxes than that."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deim.config.schema import Config
from deim.curation.check import check_before_run
from deim.data.splits import read_split
from deim.errors import ConfigError
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.assignment import compute_overlaps
from deim.metrics.bootstrap import resample_scores
from deim.metrics.coco import compute_coco_metrics
from deim.metrics.tide import tide_delta_ap50


def dense_split(number: int, *, shift: float = 0.0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One image with a grid of boxes of two classes, and a detection near each, at falling scores."""
    rng = np.random.default_rng(number)
    side = int(np.ceil(number**0.5))
    corners = [(20.0 * (index % side), 20.0 * (index // side)) for index in range(number)]
    size = {"width": 20 * side, "height": 20 * side}
    annotations = [
        {
            "id": index + 1,
            "image_id": 1,
            "category_id": 1 + index % 2,
            "bbox": [*corner, 12.0, 12.0],
            "area": 144.0,
            "iscrowd": 0,
        }
        for index, corner in enumerate(corners)
    ]
    moved = rng.uniform(0, shift, size=(number, 2)) if shift else np.zeros((number, 2))
    results = [
        {
            "image_id": 1,
            "category_id": 1 + index % 2,
            "bbox": [corner[0] + dx, corner[1] + dy, 12.0, 12.0],
            "score": 1 - index / number,
        }
        for index, (corner, (dx, dy)) in enumerate(zip(corners, moved.tolist(), strict=True))
    ]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", **size}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "pore"}, {"id": 2, "name": "grain"}],
    }
    return coco, results


@pytest.mark.parametrize("number", [400, 700])
def test_perfect_predictions_score_1_only_if_all_are_counted(number: int) -> None:
    coco, results = dense_split(number)
    truth = GroundTruthTable.from_coco(coco)
    table = DetectionTable.from_coco(results, truth)
    usual, full = (
        compute_coco_metrics(truth, table, max_detections=limit).summary for limit in (100, number // 2)
    )
    assert usual == compute_coco_metrics(truth, table).summary
    assert usual.ap is not None
    assert usual.ap < 0.6
    assert (full.ap, full.ar100) == (1.0, 1.0)
    overlaps = compute_overlaps(truth, table, max_detections=number // 2)
    assert resample_scores(overlaps, num_resamples=2).mean_ap.value == pytest.approx(1.0)
    assert tide_delta_ap50(overlaps).ap50 == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [10, 50, 150, 1000])
def test_the_numbers_are_those_of_pycocotools(limit: int) -> None:
    pycoco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    coco, results = dense_split(500, shift=5.0)
    truth = GroundTruthTable.from_coco(coco)
    ours = compute_coco_metrics(truth, DetectionTable.from_coco(results, truth), max_detections=limit)
    with contextlib.redirect_stdout(io.StringIO()):
        official = pycoco.COCO()
        official.dataset = coco
        official.createIndex()
        evaluated = cocoeval.COCOeval(official, official.loadRes(results), "bbox")
        evaluated.params.maxDets = [1, 10, limit]
        evaluated.evaluate()
        evaluated.accumulate()
    precision, recall = evaluated.eval["precision"][..., 0, -1], evaluated.eval["recall"][..., 0, -1]
    assert ours.summary.ap == pytest.approx(precision.mean(), abs=1e-9)
    assert ours.summary.ar100 == pytest.approx(recall.mean(), abs=1e-9)


def test_fewer_than_10_are_refused(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.max_detections: got 9, needs at least 10"):
        tiny_config(tmp_path, tmp_path / "run", "evaluation.max_detections=9")


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (["evaluation.max_detections=10"], 10),
        (["model.decoder.num_queries=11"], 11),
        (["evaluation.max_detections=12", "model.decoder.num_queries=300"], 12),
    ],
)
def test_training_warns_of_images_with_more_boxes_than_detections(
    options: list[str],
    limit: int,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tiny_config(tiny_set, tmp_path / "run", *options)
    assert not [issue for issue in check_before_run(config).issues if issue.rule == "many_boxes"]
    real = read_split(config.data, "train")
    assert np.diff(real.first_box).max() < limit

    def crowded(data: Any, name: str) -> Any:
        raw = original(data, name)
        first = raw.annotations[0]
        more = [{**first, "id": 1000 + number, "area": 1.0} for number in range(limit)]
        object.__setattr__(raw, "annotations", [*raw.annotations, *more])
        return raw

    from deim.curation import check

    original = check.read_raw_split
    monkeypatch.setattr(check, "read_raw_split", crowded)
    issues = [issue for issue in check_before_run(config).issues if issue.rule == "many_boxes"]
    assert len(issues) == 2
    assert f"An image has at most {limit} detections that count" in caplog.text
    assert "evaluation.max_detections" in caplog.text
