"""Encoders: the hashed one is pinned to numbers, the CLIP one to open_clip's own on a tiny model."""

import json
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deim.errors import CheckpointError, ConfigError, DeimError
from deim.model.weights import hash_tensors
from multimodal.encoders.build import TextEncoder, build_encoder
from multimodal.encoders.hashed import HashedEncoderOptions, HashedTextEncoder
from multimodal.encoders.open_clip import (
    OpenClipEncoderOptions,
    OpenClipTextEncoder,
    load_open_clip_encoder,
    read_text_tower,
)

TEXTS = ["an open crack in steel", "a stain", "a fine superficial line along the metal"]
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


class TestHashed:
    def test_its_numbers_are_pinned(self) -> None:
        """From the first version, on Linux x86-64: whole numbers over the root of their squares' sum."""
        actual = HashedTextEncoder().encode(["an open crack in steel", "Steel crack"])
        first, second = [-3, 1, -1, 3, 1, 1, -1, 1], [-1, 1, 0, 0, 0, 1, 0, 0]
        assert actual[0, :8].tolist() == pytest.approx([number / 2552**0.5 for number in first], abs=1e-8)
        assert actual[1, :8].tolist() == pytest.approx([number / 251**0.5 for number in second], abs=1e-8)
        digest = hash_tensors({"x": HashedTextEncoder().encode(TEXTS)})
        assert digest == "100d14a08034459d00474547c0736f1a4416e5f2d17685d262156e7be20aa0db"

    def test_vectors_have_length_one_whatever_the_number_of_texts(self) -> None:
        encoder: TextEncoder = HashedTextEncoder()
        actual = encoder.encode(TEXTS)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.norm(dim=1), torch.ones(3))
        assert torch.equal(actual[1:2], encoder.encode(TEXTS[1:2]))

    def test_texts_are_alike_as_far_as_they_share_words(self) -> None:
        crack, same, half, other = HashedTextEncoder().encode(
            ["a deep crack", "CRACK, deep: a", "a deep dent", "oil residue below"]
        )
        assert torch.equal(crack, same)
        assert crack @ half == pytest.approx(2 / 3, abs=0.1)
        assert crack @ other == pytest.approx(0, abs=0.15)

    def test_it_names_itself(self) -> None:
        assert HashedTextEncoder().identity == "hashed bag of words, seed 0 (without meaning)"
        assert HashedTextEncoder().weights_hash is None

    def test_it_is_built_by_its_options(self) -> None:
        assert isinstance(build_encoder(HashedEncoderOptions(type="hashed")), HashedTextEncoder)


@pytest.fixture(scope="module")
def open_clip() -> ModuleType:
    actual: ModuleType = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    return actual


@pytest.fixture(scope="module")
def model(open_clip: ModuleType) -> Any:
    """A whole CLIP model of two small towers, from a fixed seed."""
    torch.manual_seed(0)
    return open_clip.model.CLIP(**TINY).eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in open_clip's folder format."""
    return write_folder(tmp_path_factory.mktemp("clip") / "tiny", state_of(model))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to reach another machine fails the test."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"reached for the network: {arguments}")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def state_of(model: Any) -> dict[str, Tensor]:
    return {key: value.clone().contiguous() for key, value in model.state_dict().items()}


def write_folder(folder: Path, state: dict[str, Tensor], config: object = TINY) -> Path:
    folder.mkdir(parents=True)
    description = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def load(weights: str = OpenClipEncoderOptions().weights, model: str | None = None) -> OpenClipTextEncoder:
    return load_open_clip_encoder(OpenClipEncoderOptions(weights=weights, clip_model=model))


def load_tiny(folder: Path) -> OpenClipTextEncoder:
    return load(str(folder))


@pytest.mark.usefixtures("no_network")
class TestOpenClip:
    def test_it_equals_the_text_side_of_the_whole_model(
        self, open_clip: ModuleType, model: Any, folder: Path
    ) -> None:
        encoder: TextEncoder = load_tiny(folder)
        # Frozen as well: torch takes another way through attention layers that may be trained.
        whole = open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        with torch.no_grad():
            assert torch.equal(encoder.encode(TEXTS), whole.encode_text(tokens, normalize=True))
            torch.testing.assert_close(encoder.encode(TEXTS), model.encode_text(tokens, normalize=True))
        assert encoder.identity == "open_clip tiny, open_clip_model.safetensors"

    def test_many_texts_in_several_passes_are_as_one_by_one(self, folder: Path) -> None:
        encoder = load_tiny(folder)
        texts = [f"crack number {number}" for number in range(70)]
        actual = encoder.encode(texts)
        assert actual.dtype == torch.float32
        assert not actual.requires_grad
        torch.testing.assert_close(actual.norm(dim=1), torch.ones(70))
        torch.testing.assert_close(actual[[0, 40, 69]], encoder.encode([texts[0], texts[40], texts[69]]))

    @pytest.mark.parametrize("layout", ["pickle", "wrapped", "text tower apart", "half precision"])
    def test_other_layouts_of_the_weights_give_the_same_vectors(
        self, layout: str, model: Any, folder: Path, tmp_path: Path, open_clip: ModuleType
    ) -> None:
        state = state_of(model)
        if layout == "text tower apart":
            state = open_clip.model.convert_to_custom_text_state_dict(state)
            assert "text.token_embedding.weight" in state
        if layout == "half precision":
            state = {key: value.half() for key, value in state.items()}
        other = write_folder(tmp_path / "other", state)
        if layout in ("pickle", "wrapped"):
            (other / "open_clip_model.safetensors").unlink()
            content: dict[str, Any] = dict(state)
            if layout == "wrapped":
                content = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
            torch.save(content, other / "open_clip_pytorch_model.bin")
        actual, expected = load_tiny(other), load_tiny(folder)
        if layout == "half precision":
            torch.testing.assert_close(actual.encode(TEXTS), expected.encode(TEXTS), atol=1e-2, rtol=0)
        else:
            assert torch.equal(actual.encode(TEXTS), expected.encode(TEXTS))
            assert actual.weights_hash == expected.weights_hash

    def test_only_the_text_tower_is_read_and_hashed(self, model: Any, folder: Path, tmp_path: Path) -> None:
        read = read_text_tower(folder / "open_clip_model.safetensors")
        assert not any("visual" in key or "logit" in key for key in read)
        hashes = []
        for key in ("visual.proj", "ln_final.weight"):
            state = state_of(model)
            state[key] += 1
            hashes.append(load_tiny(write_folder(tmp_path / key, state)).weights_hash)
        assert hashes[0] == load_tiny(folder).weights_hash
        assert hashes[1] != hashes[0]

    def test_loading_leaves_random_numbers_alone(self, folder: Path) -> None:
        before = torch.random.get_rng_state()
        load_tiny(folder)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_long_text_is_cut_with_a_warning(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        encoder = load_tiny(folder)
        with caplog.at_level(logging.WARNING, logger="multimodal"):
            actual = encoder.encode(["crack " * 20, "crack " * 14])
        assert "text of 20 tokens is cut to 14" in caplog.text
        assert len(caplog.records) == 1
        torch.testing.assert_close(actual[0], actual[1])

    def test_a_download_of_before_is_found(
        self, open_clip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        repository = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
        snapshot = repository / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        (snapshot / "open_clip_model.safetensors").write_bytes(b"left here")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError, match=r"snapshots/abc/open_clip_model\.safetensors: damaged"):
            load("laion2b_s34b_b79k", "ViT-B-32")

    def test_without_weights_it_says_where_to_put_them(
        self, open_clip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError) as caught:
            load()
        assert str(caught.value) == (
            "weights 'laion2b_s34b_b79k' of ViT-B-32 are not on this machine, and nothing is downloaded "
            "here. Get open_clip_config.json and open_clip_model.safetensors (or "
            "open_clip_pytorch_model.bin) from huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K, put "
            "them into a folder such as weights/ViT-B-32, and name that folder instead of the tag. The "
            "encoder 'hashed' needs no weights, but its vectors have no meaning."
        )

    @pytest.mark.parametrize(
        ("weights", "model_name", "message"),
        [
            ("laion2b_s34b_b79k", "ViT-B32", "knows no such model. Did you mean 'ViT-B-32'?"),
            ("laion2b_s34b_b97k", "ViT-B-32", "nor a tag of ViT-B-32. Did you mean 'laion2b_s34b_b79k'?"),
            ("openai", "ViT-B-32", "another activation than ViT-B-32 has. Use ViT-B-32-quickgelu."),
            ("lost/folder", None, "lost/folder: no such file or folder (looked in "),
            ("local-dir:lost", None, "lost: no such file or folder (looked in "),
            ("lost.safetensors", None, "lost.safetensors: no such file or folder (looked in "),
        ],
    )
    def test_names_that_lead_nowhere(
        self,
        weights: str,
        model_name: str | None,
        message: str,
        open_clip: ModuleType,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DeimError) as caught:
            load(weights, model_name)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda folder: (folder / "open_clip_config.json").unlink(),
                "tiny: has no open_clip_config.json.",
            ),
            (
                lambda folder: (folder / "open_clip_config.json").write_text("{"),
                "open_clip_config.json: cannot be read as the description of an open_clip model",
            ),
            (
                lambda folder: (folder / "open_clip_config.json").write_text('{"model_cfg": {}}'),
                "its description has no 'text_cfg'.",
            ),
            (
                lambda folder: (folder / "open_clip_config.json").write_text(
                    '{"model_cfg": {"embed_dim": 24, "text_cfg": {"wide": 3}}}'
                ),
                "its description is not one of an open_clip model",
            ),
            (
                lambda folder: (folder / "open_clip_config.json").write_text(
                    '{"model_cfg": {"embed_dim": 24, "text_cfg": {"hf_model_name": "xlm-roberta-base"}}}'
                ),
                "its text tower or tokenizer is not part of open_clip itself",
            ),
            (
                lambda folder: (folder / "open_clip_model.safetensors").unlink(),
                "tiny: holds no weights. Put open_clip_model.safetensors there",
            ),
            (
                lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"0" * 40),
                "open_clip_model.safetensors: damaged, truncated or not a weights file",
            ),
        ],
        ids=["no config", "not JSON", "empty", "unknown", "foreign tower", "no weights", "damaged"],
    )
    def test_a_folder_that_is_not_whole(
        self, spoil: Callable[[Path], object], message: str, model: Any, tmp_path: Path
    ) -> None:
        folder = write_folder(tmp_path / "tiny", state_of(model))
        spoil(folder)
        with pytest.raises(DeimError) as caught:
            load_tiny(folder)
        assert message in str(caught.value)

    @pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
    def test_one_weights_file_of_any_name_will_do_but_not_two(
        self, name: str, model: Any, folder: Path, tmp_path: Path
    ) -> None:
        other = write_folder(tmp_path / "tiny", state_of(model))
        (other / "open_clip_model.safetensors").rename(other / "model.safetensors")
        assert load_tiny(other).weights_hash == load_tiny(folder).weights_hash
        (other / name).write_bytes(b"")
        with pytest.raises(CheckpointError, match=f"holds several weights files: {name}, model.safetensors"):
            load_tiny(other)

    def test_a_folder_of_another_model_is_refused(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="describes another model than ViT-B-32"):
            load(str(folder), "ViT-B-32")

    def test_weights_that_do_not_fill_the_tower_are_refused(self, model: Any, tmp_path: Path) -> None:
        lacking, foreign, spoiled = (state_of(model) for _ in range(3))
        del lacking["ln_final.weight"]
        spoiled["ln_final.weight"][0] = float("nan")
        images = {key: value for key, value in foreign.items() if key.startswith("visual.")}
        for name, state, message in (
            ("lacking", lacking, r'does not fit the text tower .*(\n.*)*Missing key.*"ln_final.weight"'),
            ("pictures", images, "holds no text tower"),
            ("spoiled", spoiled, "'ln_final.weight' holds NaN or infinity"),
        ):
            with pytest.raises(CheckpointError, match=message):
                load_tiny(write_folder(tmp_path / name, state))


def test_without_open_clip_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open_clip", "open_clip.model", "open_clip.tokenizer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"python -m pip install 'deim-defects\[clip\]'"):
        load("laion2b_s34b_b79k")
