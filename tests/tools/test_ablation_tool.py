"""`deim ablate-text` on the tiny run: its output, its files and its error messages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.catalog import shipped_configs_dir
from deim.report.build import read_report

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
def test_an_ablation_ends_in_a_verdict_in_files_and_in_the_report(
    call: Callable, experiment: str, tiny_run: Path, tmp_path: Path
) -> None:
    assert call("evaluate", tiny_run / "best.pth", "--output", "run/report.json")[0] == 0
    before = read_report(tmp_path / "run" / "report.json")
    code, out, err = call("ablate_text", "-c", experiment, "--seeds", 1, "--pair", "pit", "crack")
    assert (code, err) == (0, "")
    folder = tmp_path / "run" / "text_ablation"
    ablation = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    names = ["frozen", "text", "random", "shuffled", "one_hot", "free", "mlp", "class_head", "swapped"]
    assert [model["name"] for model in ablation["models"]] == names
    assert ablation["pair"] == {"first": "pit", "second": "crack", "origin": "named by hand"}
    assert ablation["models"][0]["ap50"] == pytest.approx(before["summary"]["ap50"], abs=1e-9)
    assert "\n".join(ablation["in_words"]) in out
    assert "the class head alone" in out
    assert (folder / "evidence.html").is_file()
    assert (folder / "evidence" / "models.png").is_file()
    report = read_report(tmp_path / "run" / "report.json")
    entry = report["text_evidence"]
    assert entry["in_words"] == ablation["in_words"]
    assert "models" not in entry
    assert report == before | {"text_evidence": entry}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ablation["in_words"][0] in page
    assert out.endswith("report   run/report.html\n")


@pytest.mark.slow
def test_some_variants_give_a_weaker_verdict_and_no_report_is_made_up(
    call: Callable, experiment: str, tmp_path: Path
) -> None:
    options = ("--seeds", 1, "--variants", "mlp", "random", "--output", "hasty", "--set", "epochs=1")
    code, out, _ = call("ablate_text", "-c", experiment, *options)
    assert code == 0
    ablation = json.loads((tmp_path / "hasty" / "evidence.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in ablation["models"]] == ["frozen", "text", "random", "mlp", "swapped"]
    assert ablation["verdict"] != "text helps"
    assert "Not tried: shuffled descriptions, one-hot vectors, free prototypes, the class head alone." in out
    assert not (tmp_path / "run").exists()
    # A report that cannot be read costs no more than the verdict in it.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("{}")
    code, out, err = call("ablate_text", "-c", experiment, *options)
    assert code == 2
    assert err.startswith("run/report.json: has report version None")
    assert out.endswith("\npage     hasty/evidence.html\nnumbers  hasty/evidence.json\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
def test_bad_options_are_refused(
    call: Callable, experiment: str, options: tuple[object, ...], message: str
) -> None:
    code, _, err = call("ablate_text", "-c", experiment, *options)
    assert (code, err) == (2, message)


def test_a_config_without_text_is_refused(call: Callable, tmp_path: Path) -> None:
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
