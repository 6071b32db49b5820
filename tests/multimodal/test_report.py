"""Reports of phase 2: the detector alone beside the fused one, classes that lose, pictures, the tools."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import deim
from deim.data.splits import read_split
from deim.engine.checkpoints import read_checkpoint, save_checkpoint
from deim.engine.trained_detector import load_trained
from deim.files import sha256_of_file
from deim.inference.evaluator import build_evaluator
from deim.metrics.coco import compute_coco_metrics
from deim.report.schema import read_report
from multimodal.report import FusionComparison, evaluate_checkpoint
from multimodal.task import detector_alone

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(phase2_config: Callable, build_phase2: Callable) -> Path:
    """A fused detector whose text speaks so loudly for one class that it does harm."""
    trainer = build_phase2(phase2_config("epochs=1"))
    trainer.train()
    last = read_checkpoint(trainer.checkpoints.last_path)
    for state in (last.model, last.ema.model):
        state["head.gate"] = torch.tensor([0.0, 0.0, -3.0])
        state["head.bias"] = torch.tensor([0.0, 0.0, -9.0])
    path = trainer.checkpoints.best_path
    save_checkpoint(replace(last, resume=None), path)
    return path


def test_a_class_that_loses_is_named_and_both_models_are_reported(checkpoint, tiny_run, tmp_path):
    before = checkpoint.read_bytes()
    trained = load_trained(checkpoint)
    evaluator = build_evaluator(trained, read_split(trained.config.data, "val"))
    evaluate_checkpoint(trained, evaluator, split_name="val", report_path=tmp_path / "report.json")
    report, alone = read_report(tmp_path / "report.json"), read_report(tmp_path / "report_detector.json")
    assert report.task_section is not None
    fusion = report.task_section.data
    assert set(fusion) == {option.name for option in fields(FusionComparison)}
    assert alone.task_section is None
    assert alone.convergence is None
    checkpoint_info = alone.provenance.checkpoint
    assert checkpoint_info.path == str(tiny_run / "best.pth")
    assert checkpoint_info.sha256 == sha256_of_file(tiny_run / "best.pth")
    assert checkpoint_info.epoch == read_checkpoint(tiny_run / "best.pth").epoch
    assert fusion["detector"]["ap"] == alone.summary.ap
    assert fusion["detector"]["path"] == str(tiny_run / "best.pth")
    assert report.provenance.model.name == "custom with text fusion"
    head = sum(parameter.numel() for parameter in trained.model.head.parameters())
    assert report.provenance.model.parameters == alone.provenance.model.parameters + head
    # The numbers of the detector alone are those of its own evaluation.
    new = load_trained(tiny_run / "best.pth", overrides=[f"data.root={trained.config.data.root}"])
    result = build_evaluator(new, evaluator.split).evaluate(new.model)
    metrics = compute_coco_metrics(result.ground_truth, result.detections)
    assert tuple(row.metrics for row in alone.classes) == metrics.classes
    loss = alone.classes[2].metrics.ap - report.classes[2].metrics.ap
    assert loss > 0.01
    assert fusion["losing_classes"] == [
        row.metrics.name
        for row, other in zip(alone.classes, report.classes, strict=True)
        if row.metrics.ap - other.metrics.ap > 0.01
    ]
    assert "crack" in fusion["losing_classes"]
    words = "\n".join(report.task_section.summary)
    assert f"crack loses {100 * loss:.1f} points of AP by the text" in words
    assert f"the detector alone is better: {tiny_run / 'best.pth'}." in words
    page = (tmp_path / "report.html").read_text()
    assert "the detector alone is better" in page
    assert "Text fusion" in page
    assert all((tmp_path / "report" / name).is_file() for name in report.task_section.images)
    comparison = json.loads((tmp_path / "report_comparison.json").read_text())
    assert [run["name"] for run in comparison["runs"]] == ["report_detector", "report"]
    assert comparison["differences"][0]["class_ap"][2]["value"] == pytest.approx(-loss)
    # The fused detector's thresholds are stored, the detector's within stay as they were.
    content = read_checkpoint(checkpoint)
    assert checkpoint.read_bytes() != before
    assert content.operating_points["chosen_on"] == "val"
    assert content.task_state["detector"] == trained.task_state["detector"]


def test_a_tolerance_that_is_not_exceeded_is_said_too(checkpoint, tmp_path):
    trained = load_trained(checkpoint, overrides=["task.class_tolerance=1.0"])
    evaluator = build_evaluator(trained, read_split(trained.config.data, "val"))
    fused = evaluate_checkpoint(trained, evaluator, split_name="val", report_path=tmp_path / "report.json")
    assert fused.task_section.data["losing_classes"] == []
    assert "No class loses more than 100 points of AP by the text." in fused.task_section.summary


def test_evaluate_and_predict_take_checkpoints_of_phase_2(checkpoint, call, tiny_run):
    trained = load_trained(checkpoint)
    root = Path(trained.config.data.root)
    code, out, err = call("evaluate", checkpoint, "--split", "test")
    assert (code, err) == (0, "")
    assert "the detector alone is better" in out or "class loses more than" in out
    report = checkpoint.parent / "evaluation_test.json"
    first = read_report(report)
    assert call("evaluate", report, "--output", report.with_name("again.json"))[0] == 0
    again = read_report(report.with_name("again.json"))
    assert first.task_section == again.task_section
    assert first.task_section.images
    assert all((checkpoint.parent / "again" / name).is_file() for name in again.task_section.images)
    assert first.classes == again.classes
    code, out, err = call("predict", checkpoint, root / "images", "--output", "found", "--score-threshold", 0)
    assert (code, err) == (0, "")
    predictor = deim.load_detector(checkpoint)
    path = root / "images" / "test_0.png"
    (expected,) = predictor.predict(path, score_threshold=0)
    entries = [
        entry
        for entry in json.loads(Path("found/predictions.json").read_text())
        if entry["file_name"] == path.name
    ]
    assert [entry["score"] for entry in entries] == expected.scores.tolist()
    (alone,) = deim.load_detector(tiny_run / "best.pth").predict(path, score_threshold=0)
    assert len(alone.scores) == len(expected.scores)
    assert alone.scores.tolist() != expected.scores.tolist()
    assert detector_alone(trained).class_names == predictor.class_names


def test_a_run_that_never_beats_its_detector_says_so(phase2_file, call, tmp_path, monkeypatch, tiny_run):
    monkeypatch.setattr("deim.engine.validation.Validation.score", 0.5)
    code, out, _ = call("train", "-c", phase2_file, "--set", "epochs=1")
    assert code == 0
    assert (
        f"No epoch reached a higher mAP than {tiny_run / 'best.pth'}, 0.500, so that there is no best.pth"
        in out
    )
    assert not (tmp_path / "run" / "best.pth").exists()
    assert (tmp_path / "run" / "report.json").is_file()
