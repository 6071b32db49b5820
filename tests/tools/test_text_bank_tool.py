"""`deim text-bank`: its output and its error messages."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deim.config.catalog import shipped_configs_dir
from multimodal.text_bank import load_text_bank

INDUSTRIAL = shipped_configs_dir() / "prompts" / "industrial.yml"
TINY = """\
classes:
  - {name: crack, en: an open crack}
  - {name: scratch, en: a fine line}
  - {name: pit, en: %s}
background: [{en: a reflection}]
templates: ["a photo of {}."]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "tiny.yml").write_text(TINY % "a round hole")
    return "tiny.yml"


def test_the_shipped_prompts_make_a_bank(call: Callable, tmp_path: Path) -> None:
    code, out, err = call("build_text_bank", INDUSTRIAL, "--encoder", "hashed")
    assert (code, err) == (0, "")
    assert out.startswith(
        "6 classes with 3 prompts, 4 of the background, 512 numbers each\n"
        "encoder  hashed bag of words, seed 0 (without meaning)\nweights  none\n"
    )
    assert "\ncosines between classes, raw\n" in out
    assert "\ncosines between classes, centered on the mean of the classes as in the fusion head\n" in out
    assert out.count("1.000") == 12
    assert "warning" not in out
    assert out.endswith("\ntext bank  outputs/text_bank.safetensors\n")
    bank = load_text_bank(tmp_path / "outputs" / "text_bank.safetensors")
    assert bank.class_names[2:4] == ("ROTURA_FRACTURA", "RAYONES_ARANAZOS")


def test_a_checkpoint_gives_the_order(call: Callable, tiny: str, tiny_run: Path, tmp_path: Path) -> None:
    best = tiny_run / "best.pth"
    names = torch.load(best, weights_only=True)["class_names"]
    assert names != ["crack", "scratch", "pit"]
    options = ("--encoder", "hashed", "--checkpoint", best, "--output", "bank.safetensors")
    code, _, err = call("build_text_bank", tiny, *options)
    assert (code, err) == (0, "")
    assert load_text_bank(tmp_path / "bank.safetensors").class_names == tuple(names)


def test_names_may_be_given(call: Callable, tiny: str, tmp_path: Path) -> None:
    options = ("--encoder", "hashed", "--output", "bank.safetensors", "--classes")
    code, _, err = call("build_text_bank", tiny, *options, "pit", "crack")
    assert (code, err) == (0, "")
    assert load_text_bank(tmp_path / "bank.safetensors").class_names == ("pit", "crack")
    code, _, err = call("build_text_bank", tiny, *options, "pits")
    assert (code, err) == (2, "tiny.yml: has no prompts for class 'pits'. Did you mean 'pit'?\n")


def test_classes_with_the_same_text_cause_a_warning(call: Callable, tmp_path: Path) -> None:
    (tmp_path / "twins.yml").write_text(TINY % "an open crack")
    code, out, _ = call("build_text_bank", "twins.yml", "--encoder", "hashed")
    assert code == 0
    assert (
        "\nwarning: crack, pit: cosine 1.000 raw, 1.000 centered. Texts above 0.95 are hard to distinguish: "
        "describe what makes the classes different.\n"
    ) in out


def test_negations_cause_a_warning(call: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wrong.yml").write_text(TINY % "not a crack")
    code, _, _ = call("build_text_bank", "wrong.yml", "--encoder", "hashed")
    assert code == 0
    assert "wrong.yml: classes[3].en: CLIP ignores the negation 'not'." in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--encoder", "hashed", "--model", "ViT-B-32"],
            "--model: unknown key 'task.encoder.clip_model'. It belongs to another 'type' of this block.",
        ),
        (["--encoder", "hashed", "--checkpoint", "lost.pth"], "lost.pth: no such weights file"),
        (["--encoder", "hashed", "--output", "bank.pth"], "bank.pth: a text bank is a .safetensors file."),
        (["--encoder", "hashed", "--output", "tiny.yml/bank.safetensors"], "tiny.yml"),
    ],
    ids=["model", "checkpoint", "output", "folder"],
)
def test_bad_options_end_with_a_message(
    options: list[str], message: str, call: Callable, tiny: str, tmp_path: Path
) -> None:
    code, out, err = call("build_text_bank", tiny, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yml"]


def test_open_clip_without_weights_ends_with_one_message(
    call: Callable, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, out, err = call("build_text_bank", tiny)
    assert (code, out) == (2, "")
    assert err.startswith("weights 'laion2b_s34b_b79k' of ViT-B-32 are not on this machine")
    assert len(err.splitlines()) == 1


def test_missing_prompts_are_named(call: Callable) -> None:
    code, out, err = call("build_text_bank", "lost.yml", "--encoder", "hashed")
    assert (code, out) == (2, "")
    assert err.startswith("lost.yml: no such config file (looked in ")
