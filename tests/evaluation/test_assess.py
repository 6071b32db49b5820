"""Evaluation of a trained detector: the numbers, the report and the picture."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deim.data.build import read_split
from deim.engine.checkpoint import load_trained, read_checkpoint
from deim.evaluation.assess import Assessment, assess, to_validation
from deim.evaluation.evaluator import evaluator_of

PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SUMMARY = (*PRECISIONS, "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
VAL = "data.val_annotations=annotations/val.json"


def run_assess(run: Path, report: Path, *overrides: str, split: str = "val") -> Assessment:
    trained = load_trained(run / "best.pth", overrides=overrides)
    evaluator = evaluator_of(trained, read_split(trained.config.data, split))
    return assess(trained, evaluator, split_name=split, report_path=report)


def official_numbers(annotations: Path, results: list[dict]) -> list[float]:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(annotations))
        scored = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return list(scored.stats)


def test_a_split_of_only_empty_images_gives_a_report_without_numbers(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", empty=["val"])
    result = run_assess(tiny_run, tmp_path / "report.json", f"data.root={root}", VAL)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["summary"].values()) == {None}
    assert [entry["name"] for entry in report["classes"]] == ["pit", "scratch", "crack"]
    assert report["dataset"]["num_images_without_boxes"] == report["dataset"]["num_images"] == 4
    assert to_validation(result.evaluation.metrics).worst_class is None
    assert Image.open(result.sheet_path).size[0] > 100


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_numbers_equal_those_of_pycocotools(
    split: str, tiny_run: Path, tiny_set: Path, tmp_path: Path
) -> None:
    result = run_assess(tiny_run, tmp_path / "report.json", VAL, split=split)
    evaluation = result.evaluation
    results = evaluation.predictions.to_coco(evaluation.category_ids)
    expected = official_numbers(tiny_set / "annotations" / f"{split}.json", results)
    for name, number in zip(SUMMARY, expected, strict=True):
        found = getattr(evaluation.metrics.summary, name)
        assert (-1 if found is None else found) == pytest.approx(number, abs=1e-6), name
    report = json.loads((tmp_path / "report.json").read_text())
    assert [report["summary"][name] for name in SUMMARY] == pytest.approx(
        [getattr(evaluation.metrics.summary, name) for name in SUMMARY], abs=1e-9
    )


def test_the_detector_of_the_tiny_run_finds_something(tiny_run: Path, tmp_path: Path) -> None:
    """Without this, equal numbers could all be zero."""
    result = run_assess(tiny_run, tmp_path / "report.json", split="train")
    summary = result.evaluation.metrics.summary
    assert summary.ar100 is not None
    assert summary.ar100 > 0
    assert summary.ap50 is not None
    assert summary.ap50 > 0


def test_the_report_names_everything_it_was_made_from(tiny_run: Path, tmp_path: Path) -> None:
    result = run_assess(tiny_run, tmp_path / "deep" / "report.json", VAL)
    report = json.loads(result.report_path.read_text())
    assert [(entry["category_id"], entry["name"]) for entry in report["classes"]] == [
        (3, "pit"),
        (7, "scratch"),
        (90, "crack"),
    ]
    assert report["checkpoint"]["path"].endswith("best.pth")
    assert report["dataset"]["annotations_file"] == "val.json"
    assert (report["split"], report["image_size_hw"], report["resize"]) == ("val", [64, 64], "stretch")
    assert report["settings"]["max_detections"] == 20
    assert 0 < report["time_per_image_ms"]["network"] <= report["time_per_image_ms"]["total"]
    assert result.sheet_path == tmp_path / "deep" / "report_predictions.png"


def test_scoring_the_best_checkpoint_gives_the_score_that_made_it_best(
    tiny_run: Path, tmp_path: Path
) -> None:
    result = run_assess(tiny_run, tmp_path / "report.json")
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if line.get("is_best")][-1]
    assert best["ap"] > 0.05
    assert result.evaluation.metrics.summary.ap == pytest.approx(best["ap"], abs=1e-9)
    assert to_validation(result.evaluation.metrics).summary == pytest.approx(best["val"], abs=1e-9)


def test_a_class_that_the_split_does_not_list_is_reported_without_numbers(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", categories={"crack": 4, "pit": 9})
    result = run_assess(tiny_run, tmp_path / "report.json", f"data.root={root}", VAL)
    assert result.evaluation.category_ids == (9, 7, 4)  # 7 is its id in training
    results = result.evaluation.predictions.to_coco(result.evaluation.category_ids)
    results = [entry for entry in results if entry["category_id"] != 7]
    expected = official_numbers(root / "annotations" / "val.json", results)
    assert result.evaluation.metrics.summary.ap == pytest.approx(expected[0], abs=1e-6)
    rows = {entry.name: entry for entry in result.evaluation.metrics.classes}
    assert sorted(rows) == ["crack", "pit", "scratch"]
    assert (rows["scratch"].ap, rows["scratch"].num_boxes) == (None, 0)
    assert rows["scratch"].note is not None


def test_an_id_that_the_split_gives_to_another_class_is_not_used_twice(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", categories={"crack": 7, "pit": 3})
    result = run_assess(tiny_run, tmp_path / "report.json", f"data.root={root}", VAL)
    assert result.evaluation.category_ids == (3, 1, 7)


def test_crowd_regions_are_ignored_by_the_scores_and_drawn_without_fail(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set")
    path = root / "annotations" / "val.json"
    tree = json.loads(path.read_text())
    tree["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(tree))
    result = run_assess(tiny_run, tmp_path / "report.json", f"data.root={root}", VAL)
    metrics = result.evaluation.metrics
    assert metrics.num_boxes == len(tree["annotations"]) - 1
    results = result.evaluation.predictions.to_coco(result.evaluation.category_ids)
    assert metrics.summary.ap == pytest.approx(official_numbers(path, results)[0], abs=1e-6)


def test_evaluating_the_best_checkpoint_again_gives_its_recorded_score(
    tiny_run: Path, tmp_path: Path
) -> None:
    best = read_checkpoint(tiny_run / "best.pth")["best"]
    assert (best["metric"], best["weights"]) == ("ap", "ema")
    result = run_assess(tiny_run, tmp_path / "report.json")
    assert result.evaluation.metrics.summary.ap == pytest.approx(best["score"], abs=1e-9)
