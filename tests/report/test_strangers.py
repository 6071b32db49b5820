"""Reports and checkpoints of others: what they name is neither copied nor written to."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deim.engine.checkpoints import read_checkpoint, save_checkpoint
from deim.engine.trained_detector import load_trained
from deim.report.files import ReportFiles, write_report_files
from tests.report.random_reports import make_inputs


def write_report(folder: Path, images: list[str]) -> Path:
    path = folder / "theirs" / "report.json"
    path.parent.mkdir()
    (folder / "images").mkdir()
    write_report_files(make_inputs(folder / "images"), path)
    content = json.loads(path.read_text())
    del content["seal"]  # as in a report of an earlier version
    content["task_section"] = {"task": "x", "title": "x", "summary": [], "data": {}, "images": images}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["../../secret.png", "predictions.json", "/{}/secret.png", "..\\secret.png"])
def test_a_report_names_no_file_elsewhere(name: str, call: Callable, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("secret")
    path = write_report(tmp_path, [name.format(tmp_path)])
    code, _, err = call("evaluate", path, "--output", "mine.json")
    assert (code, "report.json" in err) == (2, True)
    assert not (tmp_path / "mine").exists()


def test_images_of_a_report_never_replace_its_files(call: Callable, tmp_path: Path) -> None:
    path = write_report(tmp_path, ["predictions.png"])
    (ReportFiles(path).folder / "predictions.png").write_bytes(b"no image")
    code, _, err = call("evaluate", path, "--output", "mine.json")
    assert (code, "damaged or not an image" in err) == (2, True)


@pytest.mark.parametrize("output", ["theirs/report/new.json", "theirs/other/../report/x/new.json"])
def test_a_report_is_not_written_into_the_files_it_is_made_from(
    output: str, call: Callable, tmp_path: Path
) -> None:
    path = write_report(tmp_path, [])
    before = sorted(path.parent.rglob("*"))
    code, _, err = call("evaluate", path, "--output", output)
    assert (code, "which is read" in err) == (2, True)
    assert sorted(path.parent.rglob("*")) == before
    assert call("evaluate", path)[0] == 0  # in its place


def test_a_checkpoint_does_not_choose_where_to_write(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny_run / "best.pth")
    config = dict(checkpoint.config)
    config["data"] = {**config["data"], "disk_cache_mb": 1, "disk_cache_dir": str(tmp_path / "theirs")}
    save_checkpoint(replace(checkpoint, config=config), tmp_path / "best.pth")
    assert load_trained(tmp_path / "best.pth").config.data.disk_cache_dir == "outputs/image_cache"
    mine = load_trained(tmp_path / "best.pth", overrides=["data.disk_cache_dir=mine"])
    assert mine.config.data.disk_cache_dir == "mine"
