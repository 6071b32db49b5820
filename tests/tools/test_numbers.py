"""The numbers of runs as a user gets them: console, CSV, LaTeX, TensorBoard, and options that differ."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deim.cli.main import main
from tests.conftest import TINY

Call = Callable[..., tuple[int, str, str]]
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]\d+)?")
MIN_AP50 = "deim.metrics.choose_thresholds.MIN_AP50"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_coco: Callable[..., Path]) -> Path:
    """The runs `first`, with TensorBoard, and `=second`; their class names are hard on other programs."""
    folder = tmp_path_factory.mktemp("numbers")
    root = write_coco(folder / "set", categories={"=cmd|1": 1, "oil_spot 50%": 2, "+裂纹": 3})
    config = folder / "tiny.yml"
    config.write_text(yaml.safe_dump(TINY))
    common = [f"data.root={root}", "evaluation.bootstrap_resamples=20", "epochs=2"]
    runs = {
        "first": ["recipe.lr=4e-4", "runtime.tensorboard=true"],
        "=second": ["recipe.lr=2e-3", "runtime.tensorboard=false", "seed=3"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MIN_AP50, 0.0)  # so that little training is enough to choose thresholds
        for name, options in runs.items():
            places = [*common, *options, f"output_dir={folder / name}"]
            assert main(["train", "-c", str(config), "--set", *places]) == 0
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def significant_digits(text: str) -> int:
    return len(text.lower().split("e")[0].lstrip("-").replace(".", "").lstrip("0").rstrip("0"))


def test_a_detector_that_has_learned_nothing_says_so_everywhere(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "first", "run")
    monkeypatch.setattr(MIN_AP50, 1.01)
    code, out, _ = call("evaluate", "run/best.pth", "--output", "run/report.json")
    assert code == 0
    sentence = "The detector has learned nothing: mAP50 on val is "
    assert "Train for more epochs, or start from trained weights with model.init_from" in out
    report = json.loads(Path("run/report.json").read_text())
    points = report["operating_points"]
    assert points["default_reason"].startswith(sentence)
    assert {entry["threshold"] for entry in points["classes"]} == {0.4}
    page = Path("run/report.html").read_text()
    test = call("evaluate", "run/best.pth", "--split", "test")[1]
    predicted = call("predict", "run/best.pth", folder / "set" / "images", "--output", "predicted")[1]
    for text in (out, page, test, predicted):
        assert sentence in text
        assert "best F1, chosen" not in text
    account = "4 images (1 without boxes), 4 boxes read, 0 crowd regions, 4 trainable"
    assert f"Data of val: {account}." in out
    assert account in page
    assert report["provenance"]["dataset"]["box_counts"]["read"] == 4


def test_runs_are_compared_with_their_options_in_tables_for_other_programs(call: Call, folder: Path) -> None:
    first, second = folder / "first", folder / "=second"
    code, out, err = call("compare", first, second, "--output", "c/both.json", "--latex")
    assert (code, err) == (0, "")
    assert "Options that differ, except output_dir, evaluation.language: 3." in out
    assert ["recipe.lr", "0.0004", "0.002"] in [line.split() for line in out.splitlines()]
    comparison = json.loads(Path("c/both.json").read_text())
    assert {entry["name"]: entry["values"] for entry in comparison["options"]} == {
        "recipe.lr": [0.0004, 0.002],
        "runtime.tensorboard": [True, False],
        "seed": [0, 3],
    }
    assert "recipe.lr" in Path("c/both.html").read_text()
    runs, classes = read_rows(Path("c/both/runs.csv")), read_rows(Path("c/both/classes.csv"))
    assert [row["run"] for row in runs] == ["first", "'=second"]
    assert [row["option.recipe.lr"] for row in runs] == ["0.0004", "0.002"]
    assert {row["name"] for row in classes} == {"'=cmd|1", "oil_spot 50%", "'+裂纹"}
    assert len(classes) == 6
    for row in [*runs, *classes, *read_rows(first / "report" / "classes.csv")]:
        assert row["ap_basis"] != row["counts_basis"]
        for key, text in row.items():
            if NUMBER.fullmatch(text) and key != "parameters":
                assert significant_digits(text) <= 4, (key, text)
    tex = Path("c/both/tables.tex").read_text(encoding="utf-8")
    assert r"=cmd\textbar{}1" in tex
    assert r"oil\_spot 50\%" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 5


def test_tables_of_an_earlier_report_do_not_stay(call: Call, folder: Path) -> None:
    shutil.copytree(folder / "first", "run")
    code, out, err = call("evaluate", "run/report.json", "--latex")
    assert (code, err) == (0, "")
    assert "latex   run/report/tables.tex" in out
    tables = Path("run/report/tables.tex")
    rows = [line for line in tables.read_text(encoding="utf-8").splitlines() if line.startswith("all & ")]
    assert [line.count(" & ") for line in rows] == [9, 8]
    assert call("evaluate", "run/report.json")[0] == 0
    assert not tables.exists()


def test_tensorboard_shows_terms_classes_escapes_options_and_a_batch(folder: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = [json.loads(line) for line in (folder / "first" / "metrics.jsonl").read_text().splitlines()]
    events = reader.EventAccumulator(str(folder / "first" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/loss_mal", "loss/loss_bbox", "val_ap/+裂纹", "val_ap50/=cmd|1"} <= set(tags["scalars"])
    assert {"train/batch", "val/predictions"} <= set(tags["images"])
    for name in ("escape_rate", "overkill_rate"):
        values = [point.value for point in events.Scalars(f"val/{name}")]
        assert values == pytest.approx([line[name] for line in lines])
    assert [point.step for point in events.Scalars("loss/loss_mal")] == [line["step"] for line in lines]
    hparams = set(events.PluginTagToContent("hparams"))
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= hparams
    assert not (folder / "=second" / "tensorboard").exists()


@pytest.mark.slow
def test_tensorboard_changes_nothing_about_the_training(call: Call, folder: Path) -> None:
    places = [f"data.root={folder / 'set'}", "epochs=2", "recipe.lr=4e-4", "output_dir=plain"]
    assert call("train", "-c", folder / "tiny.yml", "--set", *places)[0] == 0
    terms = [
        [json.loads(line)["terms"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (folder / "first", Path("plain"))
    ]
    assert terms[0] == terms[1]
