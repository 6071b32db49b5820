"""Evaluation of a trained detector: the numbers, the operating points, the report."""

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from deim.data.splits import read_split
from deim.engine.checkpoints import read_checkpoint
from deim.engine.trained_detector import load_trained
from deim.errors import ConfigError, DataError
from deim.inference.detection_table import DetectionTable
from deim.inference.evaluator import EvaluationResult, build_evaluator
from deim.inference.predictor import Predictor, stored_points
from deim.metrics.coco import CocoMetrics, compute_coco_metrics
from deim.records import to_json
from deim.report.evaluate import evaluate_checkpoint, evaluate_split, to_validation
from deim.report.schema import Report, read_report

PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SUMMARY = (*PRECISIONS, "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
VAL = "data.val_annotations=annotations/val.json"
FEW = "evaluation.bootstrap_resamples=20"


def run_evaluate(run: Path, *overrides: str, split: str = "val") -> EvaluationResult:
    trained = load_trained(run / "best.pth", overrides=overrides)
    return build_evaluator(trained, read_split(trained.config.data, split)).evaluate(trained.model)


def run_report(run: Path, report: Path, *overrides: str, split: str = "val") -> Report:
    trained = load_trained(run / "best.pth", overrides=[FEW, *overrides])
    evaluator = build_evaluator(trained, read_split(trained.config.data, split))
    return evaluate_checkpoint(trained, evaluator, split_name=split, report_path=report)


def metrics_of(result: EvaluationResult) -> CocoMetrics:
    return compute_coco_metrics(result.ground_truth, result.detections)


def coco_results(result: EvaluationResult) -> list[dict]:
    return list(result.detections.to_coco(result.ground_truth.image_ids, result.ground_truth.category_ids))


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run whose checkpoint may be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def official_numbers(annotations: Path, results: list[dict]) -> list[float]:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(annotations))
        evaluated = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return list(evaluated.stats)


def test_a_split_of_only_empty_images_gives_a_report_without_numbers(
    copied_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", empty=["val"])
    run_report(copied_run, tmp_path / "report.json", f"data.root={root}", VAL)
    report = read_report(tmp_path / "report.json")
    assert set(to_json(report.summary).values()) == {None}
    assert report.class_names == ("pit", "scratch", "crack")
    assert report.num_images_without_boxes == report.num_images == 4
    assert {entry.origin for entry in report.operating_points.classes} == {"default"}
    assert report.image_level.at_operating_points.num_good == 4
    assert Image.open(tmp_path / "report" / "predictions.png").size[0] > 100


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_numbers_equal_those_of_pycocotools(split: str, tiny_run: Path, tiny_set: Path) -> None:
    evaluation = run_evaluate(tiny_run, VAL, split=split)
    expected = official_numbers(tiny_set / "annotations" / f"{split}.json", coco_results(evaluation))
    for name, number in zip(SUMMARY, expected, strict=True):
        actual = getattr(metrics_of(evaluation).summary, name)
        assert (-1 if actual is None else actual) == pytest.approx(number, abs=1e-6), name


def test_the_detector_of_the_tiny_run_finds_something(tiny_run: Path) -> None:
    """Without this, equal numbers could all be zero."""
    summary = metrics_of(run_evaluate(tiny_run, split="train")).summary
    assert summary.ar100 is not None
    assert summary.ar100 > 0
    assert summary.ap50 is not None
    assert summary.ap50 > 0


def test_the_report_names_everything_it_was_made_from(copied_run: Path, tmp_path: Path) -> None:
    report = run_report(copied_run, tmp_path / "deep" / "report.json", VAL)
    assert report == read_report(tmp_path / "deep" / "report.json")
    assert [(entry.metrics.category_id, entry.metrics.name) for entry in report.classes] == [
        (3, "pit"),
        (7, "scratch"),
        (90, "crack"),
    ]
    source = report.provenance
    assert source.checkpoint.path.endswith("best.pth")
    assert source.dataset.annotations_file == "val.json"
    assert (source.split, source.image_size_hw, source.resize) == ("val", (64, 64), "stretch")
    assert source.max_detections == 20
    times = source.time_per_image_ms
    assert 0 < times.network <= times.total
    assert times.latency is not None
    assert times.latency > 0
    assert report.convergence is not None
    assert len([ap for ap in report.convergence.ap if ap is not None]) == 3
    assert len(report.convergence.loss) == 40
    assert len([loss for loss in report.convergence.val_loss if loss is not None and 0 < loss < 50]) == 3
    for name in ("convergence", "loss"):
        assert (tmp_path / "deep" / "report" / f"{name}.svg").is_file()


@pytest.mark.parametrize("size", [1, 3])
def test_the_loss_of_a_split_does_not_depend_on_its_batches(size: int, tiny_run: Path) -> None:
    losses = []
    for batch_size in (2, size):
        trained = load_trained(tiny_run / "best.pth", overrides=[f"data.eval_batch_size={batch_size}"])
        evaluator = build_evaluator(trained, read_split(trained.config.data, "train"))
        losses.append(evaluator.evaluate(trained.model, with_loss=True).loss)
        assert evaluator.evaluate(trained.model).loss is None
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_scoring_the_best_checkpoint_gives_the_score_that_made_it_best(tiny_run: Path) -> None:
    evaluation = run_evaluate(tiny_run)
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    best = [line for line in lines if line.get("is_best")][-1]
    assert best["ap"] > 0.05
    assert metrics_of(evaluation).summary.ap == pytest.approx(best["ap"], abs=1e-9)
    assert to_validation(evaluation).summary == pytest.approx(best["val"], abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_training_evaluation_and_prediction_agree_on_the_score(batch_size: int, tiny_run: Path) -> None:
    """One truth: what training recorded, what evaluation finds, and COCO on the JSON of predict."""
    recorded = read_checkpoint(tiny_run / "best.pth").best.score
    overrides = [f"data.eval_batch_size={batch_size}"]
    assert metrics_of(run_evaluate(tiny_run, *overrides)).summary.ap == pytest.approx(recorded, abs=1e-6)
    trained = load_trained(tiny_run / "best.pth", overrides=overrides)
    split = read_split(trained.config.data, "val")
    paths = [split.image_path(index) for index in range(len(split))]
    actual = Predictor(trained).predict(paths, score_threshold=0.0)
    table = DetectionTable.from_detections(dict(enumerate(actual)))
    results = list(table.to_coco(split.image_ids.tolist(), trained.category_ids))
    results = json.loads(json.dumps(results))
    assert official_numbers(split.annotations_path, results)[0] == pytest.approx(recorded, abs=1e-6)


def test_a_class_that_the_split_does_not_list_is_reported_without_numbers(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", categories={"crack": 4, "pit": 9})
    evaluation = run_evaluate(tiny_run, f"data.root={root}", VAL)
    assert evaluation.ground_truth.category_ids == (9, 7, 4)  # 7 is its id in training
    results = [entry for entry in coco_results(evaluation) if entry["category_id"] != 7]
    expected = official_numbers(root / "annotations" / "val.json", results)
    assert metrics_of(evaluation).summary.ap == pytest.approx(expected[0], abs=1e-6)
    rows = {entry.name: entry for entry in metrics_of(evaluation).classes}
    assert sorted(rows) == ["crack", "pit", "scratch"]
    assert (rows["scratch"].ap, rows["scratch"].num_boxes) == (None, 0)
    assert rows["scratch"].note is not None


def test_an_id_that_the_split_gives_to_another_class_is_not_used_twice(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set", categories={"crack": 7, "pit": 3})
    assert run_evaluate(tiny_run, f"data.root={root}", VAL).ground_truth.category_ids == (3, 1, 7)


def test_crowd_regions_are_ignored_by_the_scores(
    tiny_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    root = write_coco(tmp_path / "set")
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    evaluation = run_evaluate(tiny_run, f"data.root={root}", VAL)
    assert metrics_of(evaluation).num_boxes == len(content["annotations"]) - 1
    expected = official_numbers(path, coco_results(evaluation))[0]
    assert metrics_of(evaluation).summary.ap == pytest.approx(expected, abs=1e-6)


def test_thresholds_are_chosen_on_validation_stored_and_used_by_predict(
    copied_run: Path, tmp_path: Path
) -> None:
    assert load_trained(copied_run / "best.pth").operating_points is None
    result = run_report(copied_run, tmp_path / "report.json")
    trained = load_trained(copied_run / "best.pth")
    points = stored_points(trained)
    assert points is not None
    assert (points.goal, points.chosen_on) == ("best F1", "val")
    assert [entry.threshold for entry in points.classes] == [
        entry.threshold for entry in result.operating_points.classes
    ]
    # What predict keeps by default is what the report has counted.
    split = read_split(trained.config.data, "val")
    detector = Predictor(trained)
    paths = [split.image_path(index) for index in range(len(split))]
    kept, raw = detector.predict(paths), detector.predict(paths, score_threshold=0.0)
    total = result.counts
    assert sum(len(item.scores) for item in kept) == total.num_detections > 0
    assert sum(len(item.scores) for item in raw) == sum(
        entry.metrics.num_predictions for entry in result.classes
    )
    for item, other in zip(raw, detector.predict(paths, score_threshold=0.0), strict=True):
        assert torch.equal(item.scores, other.scores)
    # The weights are what they were.
    before, after = read_checkpoint(copied_run / "last.pth"), read_checkpoint(copied_run / "best.pth")
    assert before.operating_points is None
    assert after.operating_points == to_json(points)


@pytest.mark.slow
def test_another_split_is_reported_at_the_stored_thresholds(
    copied_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = run_report(copied_run, tmp_path / "test.json", split="test")
    assert "no thresholds for this goal, input and data, choosing them on val first" in caplog.text
    caplog.clear()
    again = run_report(copied_run, tmp_path / "again.json", split="test")
    assert "choosing" not in caplog.text
    for report in (first, again):
        assert report.provenance.split == "test"
        assert report.operating_points.chosen_on == "val"
    assert first.classes == again.classes
    caplog.clear()
    goal = "evaluation.goal={type: recall, at_least: 0.5}"
    other = run_report(copied_run, tmp_path / "other.json", goal, split="test")
    assert "choosing them on val first" in caplog.text
    assert other.operating_points.goal == "recall at least 0.5"


@pytest.mark.slow
def test_a_checkpoint_that_training_goes_on_from_is_not_changed(
    copied_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (copied_run / "best.pth").write_bytes((copied_run / "last.pth").read_bytes())
    before = (copied_run / "best.pth").read_bytes()
    run_report(copied_run, tmp_path / "report.json")
    assert (copied_run / "best.pth").read_bytes() == before
    assert "thresholds not stored, training can be resumed from it" in caplog.text


def test_without_stored_thresholds_predict_keeps_scores_from_the_draw_threshold(tiny_run: Path) -> None:
    trained = load_trained(tiny_run / "best.pth", overrides=["evaluation.draw_threshold=0.2"])
    assert trained.operating_points is None
    split = read_split(trained.config.data, "val")
    (actual,) = Predictor(trained).predict(split.image_path(1))
    (raw,) = Predictor(trained).predict(split.image_path(1), score_threshold=0.0)
    assert len(actual.scores) == int((raw.scores >= 0.2).sum())


def test_a_normal_class_that_does_not_exist_is_refused_with_the_right_name(tiny_run: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"data\.normal_class: not a class of the detector, got 'scrach'\. Did you mean 'scratch'\?",
    ):
        run_evaluate(tiny_run, "data.normal_class=scrach")


@pytest.mark.slow
def test_images_with_normal_boxes_only_count_as_good(copied_run: Path, tmp_path: Path) -> None:
    for name, more in (("null", 0), ("pit", 1)):
        report = run_report(copied_run, tmp_path / f"{name}.json", f"data.normal_class={name}")
        level = report.image_level.at_operating_points
        assert report.provenance.dataset.normal_class == (None if name == "null" else name)
        assert level.num_good >= 1 + more
        assert level.num_good + level.num_defective == report.num_images


@pytest.mark.slow
def test_thresholds_of_other_data_or_for_another_goal_are_not_predicted_as_ones_own(
    copied_run: Path, tmp_path: Path, write_coco: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_report(copied_run, tmp_path / "report.json")
    root = write_coco(tmp_path / "set", seed=5)
    stored = read_checkpoint(copied_run / "best.pth").operating_points
    goal = "evaluation.goal={type: recall, at_least: 0.5}"
    report = run_report(copied_run, tmp_path / "other.json", f"data.root={root}", VAL, goal)
    assert report.operating_points.annotations_sha256 != stored["annotations_sha256"]
    # A report alone changes nothing of what ships.
    assert read_checkpoint(copied_run / "best.pth").operating_points == stored
    trained = load_trained(copied_run / "best.pth", overrides=["evaluation.nms.mode=none"])
    if trained.operating_points["nms"]["mode"] != "none":
        with pytest.raises(
            ConfigError, match=r"the config now asks for others\. Choose them with deim evaluate"
        ):
            Predictor(trained).predict(tmp_path / "set" / "images" / "val_0.png")


@pytest.mark.slow
def test_the_goal_that_thresholds_were_chosen_for_stays_with_them(copied_run: Path, tmp_path: Path) -> None:
    run_report(copied_run, tmp_path / "report.json", "evaluation.goal={type: recall, at_least: 0.5}")
    trained = load_trained(copied_run / "best.pth")
    assert trained.config.evaluation.goal.type == "recall"
    points = Predictor(trained).operating_points
    assert points is not None
    assert points.goal == "recall at least 0.5"
    test = run_report(copied_run, tmp_path / "test.json", split="test")
    assert test.operating_points.goal == "recall at least 0.5"


def test_thresholds_of_other_inputs_are_not_stored(
    copied_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (copied_run / "best.pth").read_bytes()
    trained = load_trained(copied_run / "best.pth", overrides=["data.mean=[0.1, 0.1, 0.1]"])
    evaluate_split(
        trained, build_evaluator(trained, read_split(trained.config.data, "val")), split_name="val"
    )
    assert "they were chosen with another data.mean than prediction will use" in caplog.text
    assert (copied_run / "best.pth").read_bytes() == before


def test_thresholds_of_other_inputs_are_not_used(copied_run: Path, tiny_set: Path) -> None:
    path, image = copied_run / "best.pth", tiny_set / "images" / "val_0.png"
    trained = load_trained(path)
    evaluate_split(
        trained, build_evaluator(trained, read_split(trained.config.data, "val")), split_name="val"
    )
    with pytest.raises(ConfigError, match=r"chosen with another image_size and data\.tiles and do not hold"):
        Predictor(
            load_trained(path, overrides=["image_size=96", "data.tiles={size: 40, overlap: 0.1}"])
        ).predict(image)
    other = load_trained(path, overrides=["data.tiles={size: 40, overlap: 0.1}"])
    assert len(Predictor(other).predict(image, score_threshold=0.0)) == 1
    inputs = evaluate_split(
        other, build_evaluator(other, read_split(other.config.data, "test")), split_name="test"
    )
    assert inputs.points.chosen_on == "val"
    assert inputs.points != stored_points(load_trained(path))
    Predictor(load_trained(path, overrides=["data.num_workers=1"])).predict(image)


def other_labels(root: Path) -> list[str]:
    """Correct a box of the run's validation split, and return the overrides that name this data."""
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(content))
    return [f"data.root={root}"]


def other_boxes(root: Path) -> list[str]:
    """Name the test images as the validation split."""
    return [f"data.root={root}", "data.val_annotations=annotations/test.json"]


@pytest.mark.parametrize("change", [other_labels, other_boxes])
@pytest.mark.parametrize("has_points", [True, False])
def test_an_evaluation_on_other_data_never_changes_the_checkpoint(
    change: Callable[[Path], list[str]], has_points: bool, copied_run: Path, tmp_path: Path, tiny_set: Path
) -> None:
    if has_points:
        stored = run_report(copied_run, tmp_path / "own.json").operating_points
    before = (copied_run / "best.pth").read_bytes()
    overrides = change(shutil.copytree(tiny_set, tmp_path / "line_7"))
    report = run_report(copied_run, tmp_path / "other.json", *overrides)
    assert (copied_run / "best.pth").read_bytes() == before
    if has_points:  # the report is about the detector as it ships
        assert report.operating_points == stored


def test_the_own_validation_split_is_known_in_any_folder(
    copied_run: Path, tmp_path: Path, tiny_set: Path
) -> None:
    moved = shutil.copytree(tiny_set, tmp_path / "moved")
    run_report(copied_run, tmp_path / "report.json", f"data.root={moved}")
    assert load_trained(copied_run / "best.pth").operating_points is not None


def test_a_validation_split_without_boxes_gives_no_thresholds(
    copied_run: Path, tmp_path: Path, write_coco: Callable[..., Path]
) -> None:
    stored = run_report(copied_run, tmp_path / "own.json").operating_points
    before = (copied_run / "best.pth").read_bytes()
    root = write_coco(tmp_path / "good_parts", empty=["train", "val"])
    report = run_report(copied_run, tmp_path / "report.json", f"data.root={root}", VAL)
    assert report.operating_points == stored
    assert (copied_run / "best.pth").read_bytes() == before


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_report_on_other_data_has_another_name(
    split: str, copied_run: Path, tmp_path: Path, call: Callable, write_coco: Callable[..., Path]
) -> None:
    options = [copied_run, "--split", split, "--set", FEW]
    assert call("evaluate", *options)[0] == 0
    usual = copied_run / f"evaluation_{split}.json"
    before = usual.read_bytes()
    root = write_coco(tmp_path / "line_2", seed=3)
    code, out, _ = call("evaluate", *options, f"data.root={root}", VAL)
    assert (code, usual.read_bytes()) == (0, before)
    assert (copied_run / f"evaluation_{split}_line_2.json").is_file()
    assert f"evaluation_{split}_line_2.html" in out
    assert call("compare", copied_run, copied_run / "best.pth", "--split", split)[0] == 0


@pytest.mark.parametrize(("kept", "used"), [(["best.pth", "last.pth"], "best"), (["last.pth"], "last")])
def test_a_run_folder_stands_for_its_checkpoint(
    kept: list[str], used: str, copied_run: Path, tiny_set: Path, call: Callable
) -> None:
    for name in {"best.pth", "last.pth"} - set(kept):
        (copied_run / name).unlink()
    assert load_trained(copied_run).path == copied_run / f"{used}.pth"
    assert call("predict", copied_run, tiny_set / "images" / "val_0.png", "--output", "seen")[0] == 0
    for name in kept:
        (copied_run / name).unlink()
    code, _, err = call("evaluate", copied_run)
    assert (code, "a folder without best.pth and last.pth" in err) == (2, True)


@pytest.mark.parametrize("number", [21, 30])
def test_a_report_says_that_images_have_more_boxes_than_detections(
    number: int, copied_run: Path, tmp_path: Path, tiny_set: Path, call: Callable
) -> None:
    root = shutil.copytree(tiny_set, tmp_path / "dense")
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    content["annotations"] = [{**first, "id": index} for index in range(1, number + 1)]
    path.write_text(json.dumps(content))
    overrides = [f"data.root={root}", VAL, FEW, "evaluation.max_detections=25"]
    code, out, _ = call("evaluate", copied_run, "--output", "report.json", "--set", *overrides)
    source = read_report(tmp_path / "report.json").provenance
    assert (code, source.counted_detections, source.overfull_images) == (0, 25, 1)
    assert "1 image of the split with more boxes than detections: at most 20 are made for an image" in out
