"""tools/ablate_text.py on the tiny run: what it prints, writes and refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deim.config.loader import shipped_configs_dir
from deim.report.schema import read_report

PROMPTS = """\
classes:
  - {name: crack, en: an open crack}
  - {name: scratch, en: a fine line on the surface}
  - {name: pit, en: a round hole in the surface}
background: [{en: a reflection}]
templates: ["a photo of {}."]
"""
EXPERIMENT = """\
output_dir: run
epochs: 2
multimodal:
  detector: %s
  prompts: prompts.yml
  encoder: {type: hashed}
  hidden_dim: 16
  adapter_dim: 8
  cache_dir: cache
augment: {horizontal_flip: 0.0, photometric: 0.0}
runtime: {device: cpu, tensorboard: false}
"""


@pytest.fixture
def experiment(tmp_path: Path, tiny_run: Path) -> str:
    (tmp_path / "prompts.yml").write_text(PROMPTS)
    (tmp_path / "fused.yml").write_text(EXPERIMENT % (tiny_run / "best.pth"))
    return "fused.yml"


@pytest.mark.slow
def test_trials_end_in_a_verdict_in_words_files_and_the_report(
    call: Callable, experiment: str, tiny_run: Path, tmp_path: Path
) -> None:
    assert call("evaluate", tiny_run / "best.pth", "--output", "run/report.json")[0] == 0
    before = read_report(tmp_path / "run" / "report.json")
    code, out, err = call("ablate_text", "-c", experiment, "--seeds", 1, "--pair", "pit", "crack")
    assert (code, err) == (0, "")
    folder = tmp_path / "run" / "ablate_text"
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    names = ["frozen", "text", "random", "shuffled", "one_hot", "free", "mlp", "class_head", "swapped"]
    assert [model["name"] for model in evidence["models"]] == names
    assert evidence["pair"] == {"first": "pit", "second": "crack", "origin": "named by hand"}
    assert evidence["models"][0]["ap50"] == pytest.approx(before.summary.ap50, abs=1e-9)
    assert "\n".join(evidence["in_words"]) in out
    assert "the class head alone" in out
    assert (folder / "evidence.html").is_file()
    assert (folder / "evidence" / "models.png").is_file()
    report = read_report(tmp_path / "run" / "report.json")
    assert report.task_section is not None
    ablation = report.task_section.data["ablation"]
    assert ablation["in_words"] == evidence["in_words"] == list(report.task_section.summary)
    assert "models" not in ablation
    assert report == replace(before, task_section=report.task_section)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert evidence["in_words"][0] in page
    assert out.endswith("report   run/report.html\n")


@pytest.mark.slow
def test_some_controls_give_a_hasty_verdict_and_no_report_is_made_up(
    call: Callable, experiment: str, tmp_path: Path
) -> None:
    options = ("--seeds", 1, "--controls", "mlp", "random", "--output", "hasty", "--set", "epochs=1")
    code, out, _ = call("ablate_text", "-c", experiment, *options)
    assert code == 0
    evidence = json.loads((tmp_path / "hasty" / "evidence.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in evidence["models"]] == ["frozen", "text", "random", "mlp", "swapped"]
    assert evidence["verdict"] != "text helps"
    assert "Not tried: shuffled descriptions, one-hot vectors, free prototypes, the class head alone." in out
    assert not (tmp_path / "run").exists()
    # A report that cannot be read costs no more than the verdict in it.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    code, out, err = call("ablate_text", "-c", experiment, *options)
    assert code == 2
    assert err.startswith("run/report.json: not a report of this version, got version None")
    assert out.endswith("\npage     hasty/evidence.html\nnumbers  hasty/evidence.json\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 0), "--seeds: got 0. Each variant is trained with at least 1.\n"),
        (
            ("--pair", "pit", "hole"),
            "--pair: got pit, hole. Name two different classes of pit, scratch, crack.\n",
        ),
        (
            ("--pair", "pit", "pit"),
            "--pair: got pit, pit. Name two different classes of pit, scratch, crack.\n",
        ),
        (
            ("--set", "multimodal.cache=false"),
            "multimodal.cache: got false. The trials train many heads on what the detector finds once: set "
            "multimodal.cache=true, and cached_views as many as augmentation needs.\n",
        ),
    ],
)
def test_what_cannot_be_tried_is_refused(
    call: Callable, experiment: str, options: tuple[object, ...], message: str
) -> None:
    code, _, err = call("ablate_text", "-c", experiment, *options)
    assert (code, err) == (2, message)


def test_a_detector_has_no_text_to_be_judged(call: Callable, tmp_path: Path) -> None:
    code, _, err = call("ablate_text", "-c", shipped_configs_dir() / "quickstart.yml")
    assert (code, err) == (
        2,
        "multimodal: the experiment has no such block. Only phase 2 has a text that may help: name a config "
        "like configs/quickstart_multimodal.yml.\n",
    )
    assert not any(tmp_path.iterdir())  # no data set was made


def test_one_class_alone_is_refused(
    call: Callable, experiment: str, write_coco: Callable, tmp_path: Path
) -> None:
    write_coco(tmp_path / "one", categories={"pit": 1})
    code, _, err = call("ablate_text", "-c", experiment, "--set", "data.root=one")
    assert (code, err) == (
        2,
        "train.json: has the one class pit. The text of a class can only be judged beside that of another.\n",
    )
