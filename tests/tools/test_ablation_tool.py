"""`deim ablate-text` on the tiny run: its output, its file and its error messages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.catalog import shipped_configs_dir
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
task:
  type: text_fusion
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
def test_an_ablation_ends_in_a_verdict_and_a_file(
    call: Callable, experiment: str, tiny_run: Path, tmp_path: Path
) -> None:
    assert call("evaluate", tiny_run / "best.pth", "--output", "run/report.json")[0] == 0
    before = read_report(tmp_path / "run" / "report.json")
    code, out, err = call("ablate_text", "-c", experiment, "--seeds", 1, "--pair", "pit", "crack")
    assert (code, err) == (0, "")
    ablation = json.loads((tmp_path / "run" / "text_ablation.json").read_text(encoding="utf-8"))
    names = ["frozen", "text", "random", "shuffled", "one_hot", "free", "mlp", "class_head", "swapped"]
    assert [model["name"] for model in ablation["models"]] == names
    assert ablation["pair"] == {"first": "pit", "second": "crack", "origin": "named by the user"}
    frozen = ablation["models"][0]
    assert frozen["ap50"]["value"] == pytest.approx(before.summary.ap50, abs=1e-9)
    assert "\n".join(ablation["summary"]) in out
    assert "the class head alone" in out


@pytest.mark.slow
def test_some_variants_give_a_weaker_verdict(call: Callable, experiment: str, tmp_path: Path) -> None:
    options = ("--seeds", 1, "--variants", "mlp", "random", "--output", "hasty.json", "--set", "epochs=1")
    code, out, _ = call("ablate_text", "-c", experiment, *options)
    assert code == 0
    ablation = json.loads((tmp_path / "hasty.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in ablation["models"]] == ["frozen", "text", "random", "mlp", "swapped"]
    assert ablation["verdict"] != "text helps"
    missing = "shuffled descriptions, one-hot vectors, free prototypes, the class head alone"
    assert f"Not trained: {missing}." in out
    assert not (tmp_path / "run").exists()


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
            ("--set", "task.cache=false"),
            "task.cache: got false. All variants train on the same detector outputs: set "
            "task.cache=true, and cached_views as many as augmentation needs.\n",
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
        "task.type: got detection, needs text_fusion. Name a config like "
        "configs/quickstart_multimodal.yml.\n",
    )
    assert not any(tmp_path.iterdir())  # no data set was made


def test_one_class_alone_is_refused(
    call: Callable, experiment: str, write_coco: Callable, tmp_path: Path
) -> None:
    write_coco(tmp_path / "one", categories={"pit": 1})
    code, _, err = call("ablate_text", "-c", experiment, "--set", "data.root=one")
    assert (code, err) == (
        2,
        "train.json: has only the class pit. The text of a class can only be judged beside the text of "
        "another.\n",
    )
