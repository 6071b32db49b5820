"""Text banks: what is in them, and that nobody takes a wrong one."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from deim.config.catalog import shipped_configs_dir
from deim.errors import CheckpointError, ConfigError
from deim.records import from_json, to_json
from multimodal.encoders.hashed import HashedTextEncoder
from multimodal.prompts import BackgroundPrompt, ClassPrompt, Contrast, Prompts, load_prompts
from multimodal.text_bank import (
    TextBank,
    build_text_bank,
    class_cosines,
    load_text_bank,
    save_text_bank,
)

PROMPTS = Prompts(
    classes=(
        ClassPrompt(
            name="crack",
            en="an open crack",
            keywords=("fracture", "gap"),
            contrast=Contrast(class_name="scratch", en="a deep dark line"),
        ),
        ClassPrompt(name="scratch", en="a fine bright line"),
        ClassPrompt(name="pit", en="a round hole", keywords=("puncture",)),
    ),
    background=(BackgroundPrompt(en="a reflection"), BackgroundPrompt(en="grooves of machining")),
    templates=("a photo of {}.", "{} on steel"),
)
NAMES = ("crack", "scratch", "pit")


class LongVectors:
    """An encoder whose vectors have other lengths than 1."""

    dim = 512
    identity = "long"
    weights_hash = "ab" * 32

    def encode(self, texts: Sequence[str]) -> Tensor:
        lengths = torch.arange(1, len(texts) + 1, dtype=torch.float32)
        return HashedTextEncoder().encode(texts) * lengths[:, None]


@pytest.fixture
def bank() -> TextBank:
    return build_text_bank(PROMPTS, HashedTextEncoder())


def assert_same(actual: TextBank, expected: TextBank) -> None:
    actual_content, expected_content = to_json(actual), to_json(expected)
    for name in ("prompts", "background"):
        assert torch.equal(actual_content.pop(name), expected_content.pop(name))
    assert actual_content == expected_content


def test_shapes_names_and_texts(bank: TextBank) -> None:
    assert bank.class_names == NAMES
    assert bank.prompts.shape == (3, 3, 512)
    assert bank.background.shape == (2, 512)
    torch.testing.assert_close(bank.prompts.norm(dim=-1), torch.ones(3, 3))
    torch.testing.assert_close(bank.background.norm(dim=-1), torch.ones(2))
    assert bank.encoder == HashedTextEncoder().identity
    assert bank.prompt_texts == (
        ("an open crack", "fracture, gap", "a deep dark line"),
        ("a fine bright line", "a fine bright line", "a fine bright line"),
        ("a round hole", "puncture", "a round hole"),
    )
    assert bank.background_texts == ("a reflection", "grooves of machining")


@pytest.mark.parametrize("encoder", [HashedTextEncoder(), LongVectors()], ids=["unit", "long"])
def test_a_prompt_is_the_mean_over_templates_of_unit_vectors(encoder: HashedTextEncoder) -> None:
    actual = build_text_bank(PROMPTS, encoder)
    units = HashedTextEncoder().encode(["a photo of fracture, gap.", "fracture, gap on steel"])
    torch.testing.assert_close(actual.prompts[0, 1], F.normalize(units.mean(dim=0), dim=0))
    units = HashedTextEncoder().encode(["a photo of grooves of machining.", "grooves of machining on steel"])
    torch.testing.assert_close(actual.background[1], F.normalize(units.mean(dim=0), dim=0))
    assert actual.weights_hash == encoder.weights_hash


def test_the_detector_decides_on_classes_and_order(bank: TextBank, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="multimodal"):
        actual = build_text_bank(PROMPTS, HashedTextEncoder(), ["pit", "crack"], where="p.yml")
    assert actual.class_names == ("pit", "crack")
    assert torch.equal(actual.prompts, bank.prompts[[2, 0]])
    assert caplog.messages == ["p.yml: not used, because the detector lacks the classes: scratch"]


def test_classes_without_prompts_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build_text_bank(PROMPTS, HashedTextEncoder(), ["cracks", "pit", "pit", "ROTURA"], where="p.yml")
    assert str(caught.value).splitlines() == [
        "p.yml: has no prompts for class 'cracks'. Did you mean 'crack'?",
        "class 'pit': is named 2 times. Name each once.",
        "p.yml: has no prompts for class 'ROTURA'. Valid are crack, scratch, pit.",
    ]
    with pytest.raises(ConfigError, match="got none"):
        build_text_bank(PROMPTS, HashedTextEncoder(), [])


def test_the_shipped_prompts_keep_all_classes_apart() -> None:
    prompts = load_prompts(shipped_configs_dir() / "prompts" / "industrial.yml")
    actual = build_text_bank(prompts, HashedTextEncoder())
    assert actual.prompts.shape == (6, 3, 512)
    assert class_cosines(actual).close_pairs == []


def test_cosines_are_symmetric_and_centered_on_the_mean(bank: TextBank) -> None:
    actual = class_cosines(bank)
    for matrix in (actual.raw, actual.centered):
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(3))
    means = bank.prompts.mean(dim=1)
    centered = F.normalize(means - bank.prompts.mean(dim=(0, 1)), dim=-1)
    torch.testing.assert_close(actual.centered, centered @ centered.T)
    assert actual.centered[0, 1] < actual.raw[0, 1]
    assert actual.close_pairs == []


@pytest.mark.parametrize("others", [1, 0])
def test_two_classes_of_one_text_are_a_close_pair(others: int) -> None:
    twins = (ClassPrompt(name="a", en="a line"), ClassPrompt(name="b", en="a line"))
    rest = (ClassPrompt(name="c", en="a round hole"),) * others
    prompts = replace(PROMPTS, classes=twins + rest)
    actual = class_cosines(build_text_bank(prompts, HashedTextEncoder()))
    assert actual.close_pairs == [(0, 1)]
    assert actual.raw[0, 1] == pytest.approx(1)
    assert actual.centered[0, 1] == pytest.approx(1 if others else 0, abs=1e-5)


def test_a_direction_that_all_texts_share_makes_no_close_pair(bank: TextBank) -> None:
    shared = replace(bank, prompts=F.normalize(bank.prompts + 10 * bank.background[0], dim=-1))
    actual = class_cosines(shared)
    assert actual.raw.min() > 0.95
    assert actual.close_pairs == []


def test_a_bank_comes_back_as_it_was(bank: TextBank, tmp_path: Path) -> None:
    for name, weights_hash in (("a", None), ("b", "ab" * 32)):
        saved = replace(bank, weights_hash=weights_hash)
        path = tmp_path / "new" / f"{name}.safetensors"
        save_text_bank(saved, path)
        assert_same(load_text_bank(path, class_names=NAMES), saved)
    document = to_json(bank)
    torch.save(document, tmp_path / "bank.pth")
    loaded = torch.load(tmp_path / "bank.pth", weights_only=True)
    assert_same(from_json(TextBank, loaded), bank)


def test_equal_banks_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_text_bank(build_text_bank(PROMPTS, HashedTextEncoder()), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_failed_save_leaves_the_old_file(
    bank: TextBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank.safetensors"
    save_text_bank(bank, path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_text_bank(replace(bank, encoder="other"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_another_ending_is_refused(bank: TextBank, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bank\.pth: a text bank is a \.safetensors file"):
        save_text_bank(bank, tmp_path / "bank.pth")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("scratch", "crack", "pit"),
            "class 0 is 'crack' in the text bank, 'scratch' in the detector.\n"
            "{path}: class 1 is 'scratch' in the text bank, 'crack' in the detector.\n"
            "Build the bank again with deim text-bank --checkpoint.",
        ),
        (
            ("crack", "pit"),
            "the text bank has 3 classes (crack, scratch, pit), the detector 2 (crack, pit). "
            "Build the bank again with deim text-bank --checkpoint.",
        ),
    ],
    ids=["order", "number"],
)
def test_another_order_of_classes_is_refused(
    names: Sequence[str], message: str, bank: TextBank, tmp_path: Path
) -> None:
    path = tmp_path / "bank.safetensors"
    save_text_bank(bank, path)
    with pytest.raises(CheckpointError) as caught:
        load_text_bank(path, class_names=names)
    assert str(caught.value) == f"{path}: {message.format(path=path)}"


def test_missing_and_damaged_files_are_refused(bank: TextBank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with pytest.raises(CheckpointError, match=r"no such text bank\. Build it with deim text-bank"):
        load_text_bank(path)
    save_text_bank(bank, path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-4], b"0" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or not a text bank"):
            load_text_bank(path)
    path.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    with pytest.raises(CheckpointError, match="damaged, its numbers have changed"):
        load_text_bank(path)


def test_other_weights_files_and_versions_are_refused(bank: TextBank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="a weights file, but not a text bank"):
        load_text_bank(path)
    save_text_bank(bank, path)
    tensors = load_file(path)
    described = {key: value for key, value in to_json(bank).items() if key not in tensors}
    for change, message in (
        ({"format": 2}, "text bank format 2; this version reads 1"),
        ({"class_names": ["crack"]}, r"not a complete text bank: prompts: got \(3, 3, 512\)"),
        ({"templates": None}, "not a complete text bank"),
    ):
        save_file(tensors, path, metadata={"text_bank": json.dumps(described | change)})
        with pytest.raises(CheckpointError, match=message):
            load_text_bank(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": torch.ones(3, 512)}, "prompts: got"),
        ({"background": torch.ones(1, 512)}, "background: got"),
        ({"background": torch.ones(2, 512)}, "norm is not 1"),
        ({"background": torch.full((2, 512), torch.nan)}, "norm is not 1"),
        ({"background": torch.ones(0, 512), "background_texts": ()}, "background: got"),
        ({"prompt_texts": (("a",),)}, "needs 3 rows of 3 texts"),
        ({"prompts": F.normalize(torch.ones(3, 3, 512), dim=-1).double()}, "needs float32"),
    ],
)
def test_a_bank_checks_itself(changes: dict, message: str, bank: TextBank) -> None:
    with pytest.raises(ValueError, match=message):
        replace(bank, **changes)
