"""The same images in another format of annotations: trained, scored and reported as the COCO set is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.schema import Config
from deim.curation.convert import write_dataset
from deim.data.formats.coco import read_coco
from deim.data.formats.read import Format
from deim.data.splits import read_split
from deim.engine.trained_detector import load_trained
from deim.engine.trainer import Trainer
from deim.inference.evaluator import build_evaluator
from deim.report.evaluate import evaluate_checkpoint
from deim.report.schema import Report


def report_of(run: Path, path: Path) -> Report:
    trained = load_trained(run / "best.pth", overrides=["evaluation.bootstrap_resamples=10"])
    evaluator = build_evaluator(trained, read_split(trained.config.data, "test"))
    return evaluate_checkpoint(trained, evaluator, split_name="test", report_path=path)


@pytest.mark.slow
@pytest.mark.parametrize("data_format", ["yolo", "voc"])
def test_a_run_on_another_format_is_that_on_coco(
    data_format: Format,
    tmp_path: Path,
    tiny_set: Path,
    tiny_config: Callable[..., Config],
    build_tiny: Callable[..., Trainer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / data_format
    splits = {
        name: read_coco(tiny_set / "annotations" / f"{name}.json", tiny_set / "images")
        for name in ("train", "val", "test")
    }
    write_dataset(splits, data_format, root)
    losses = []
    for name, data in (("coco", tiny_set), (data_format, root)):
        config = tiny_config(data, tmp_path / f"run_{name}", "epochs=1", f"data.format={name}")
        build_tiny(config).train()
        lines = (tmp_path / f"run_{name}" / "metrics.jsonl").read_text("utf-8").splitlines()
        losses += [line["loss"] for line in map(json.loads, lines) if line["event"] == "epoch"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

    run = tmp_path / f"run_{data_format}"
    first = report_of(run, tmp_path / "first.json")
    assert (
        report_of(run, tmp_path / "again.json").provenance.dataset.sha256 == first.provenance.dataset.sha256
    )
    assert "other annotations" not in caplog.text
    # Each file of boxes counts, though none of them is the list of images.
    files = sorted(root.rglob("*.txt" if data_format == "yolo" else "*.xml"))
    for part in ("val", "test"):
        path = next(path for path in files if path.stem.startswith(part) and path.parent.name != "Main")
        path.write_text("" if data_format == "yolo" else without_objects(path.read_text("utf-8")), "utf-8")
    second = report_of(run, tmp_path / "second.json")
    assert second.provenance.dataset.sha256 != first.provenance.dataset.sha256
    # Other data: the thresholds of the run's own validation split hold.
    assert second.operating_points == first.operating_points


def without_objects(xml: str) -> str:
    start, end = xml.index("<object>"), xml.rindex("</object>")
    return xml[:start] + xml[end + len("</object>") :]
