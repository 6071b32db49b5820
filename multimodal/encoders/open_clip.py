"""The text tower of an open_clip model, from files on this machine; nothing is downloaded.

All weights come from the file: no part of the tower can stay random. `open_clip` is imported only when an
encoder is loaded.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deim.errors import CheckpointError, ConfigError
from deim.files import suggest
from deim.model.weights import hash_tensors
from deim.model.weights_file import read_weights_file

logger = logging.getLogger(__name__)

DEFAULT_MODEL: Final = "ViT-B-32"
DEFAULT_WEIGHTS: Final = "laion2b_s34b_b79k"
"""Trained on LAION-2B; MIT license; vectors of 512 numbers."""
CONFIG_NAME: Final = "open_clip_config.json"
WEIGHTS_NAMES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the weights in an open_clip model folder, in order of preference."""
WEIGHTS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
FOLDER_PREFIX: Final = "local-dir:"
"""open_clip's mark of a folder, which is optional here."""
BATCH_SIZE: Final = 32
TEXT_PREFIX: Final = "text."
TOWER_KEYS: Final = (
    "text_projection",
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
)
"""Beginnings of the text tower's keys in files of OpenAI's layout, where they have no prefix."""
SMALL_VISION: Final = {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
"""An image tower that costs nothing: open_clip builds text towers only inside a whole model."""

ClipConfig = Mapping[str, Any]
"""Description of a model, or of a part of it, as in the files of open_clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenClipEncoderOptions:
    """Texts are embedded by the text tower of a CLIP model."""

    type: Literal["open_clip"] = "open_clip"
    weights: str = DEFAULT_WEIGHTS
    """Folder with `open_clip_config.json` and weights, weights file, or tag of weights that an earlier
    download left on this machine."""
    clip_model: str | None = None
    """Name of the model in open_clip; null: ViT-B-32 for a tag or a file, or the model of the folder. Weights
    of OpenAI need `ViT-B-32-quickgelu`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The description of a model and its weights."""

    model_config: ClipConfig
    weights: Path
    """`.safetensors`, or a pickle of torch."""
    identity: str
    """Name of the model and of its weights."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenClipTextEncoder:
    """The text tower, (N, T) tokens to (N, D), with open_clip's tokenizer; a `TextEncoder`."""

    tower: nn.Module
    tokenizer: Any
    identity: str
    weights_hash: str

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; one that is too long is cut, with a warning. See `TextEncoder.encode`."""
        limit = self.tokenizer.context_length - 2  # without the marks of begin and end
        for text in texts:
            num_tokens = len(self.tokenizer.encode(text))
            if num_tokens > limit:
                logger.warning("text of %d tokens is cut to %d: '%s'", num_tokens, limit, text)
        with torch.no_grad():
            parts = self.tokenizer(list(texts)).split(BATCH_SIZE)
            return torch.cat([F.normalize(self.tower(tokens), dim=-1) for tokens in parts])


def load_open_clip_encoder(options: OpenClipEncoderOptions) -> OpenClipTextEncoder:
    """Load the text tower of an open_clip model from this machine, on the CPU and in float32.

    Raises:
        ConfigError: If open_clip is not installed, or does not know the model or the tag.
        CheckpointError: If the weights are missing or damaged, or do not fit the model.
    """
    try:
        from open_clip import CustomTextCLIP
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ConfigError(
            f"The encoder open_clip needs the package open_clip_torch, which cannot be imported ({error}). "
            f"Install it with: python -m pip install 'deim-defects[clip]'"
        ) from None
    files = _find_model_files(options.weights, options.clip_model)
    text_config = _text_config(files)
    state = {key: value.float() for key, value in read_text_tower(files.weights).items()}
    non_finite = [key for key, value in state.items() if not value.isfinite().all()]
    if non_finite:
        raise CheckpointError(f"{files.weights}: '{non_finite[0]}' holds NaN or infinity. Use another copy.")
    dim, quick_gelu = (files.model_config.get(key) for key in ("embed_dim", "quick_gelu"))
    try:
        # All random weights are replaced, and the caller's random numbers must not move.
        with torch.random.fork_rng(devices=[]):
            tower = CustomTextCLIP(dim, SMALL_VISION, text_config, quick_gelu=bool(quick_gelu)).text
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise CheckpointError(
            f"{files.identity}: its description is not one of an open_clip model ({error!r}). Take "
            f"{CONFIG_NAME} from the place where the weights come from."
        ) from None
    try:
        tower.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{files.weights}: does not fit the text tower of {files.identity}. Name the model that the "
            f"weights belong to. {error}"
        ) from None
    return OpenClipTextEncoder(
        tower=tower.eval().requires_grad_(False),
        tokenizer=SimpleTokenizer(
            context_length=tower.context_length, **text_config.get("tokenizer_kwargs") or {}
        ),
        identity=f"open_clip {files.identity}",
        weights_hash=hash_tensors(state),
    )


def read_text_tower(path: Path) -> dict[str, Tensor]:
    """Read the text tower of a CLIP model, by open_clip's names and in the file's precision.

    Raises:
        CheckpointError: If the file is missing, damaged or holds no text tower.
    """
    content = read_weights_file(path)
    content = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    tensors = {key.removeprefix("module."): v for key, v in content.items() if isinstance(v, Tensor)}
    tower = {key.removeprefix(TEXT_PREFIX): v for key, v in tensors.items() if key.startswith(TEXT_PREFIX)}
    tower = tower or {key: v for key, v in tensors.items() if key.startswith(TOWER_KEYS)}
    if not tower:
        raise CheckpointError(
            f"{path}: holds no text tower. Use the weights of a whole CLIP model in open_clip's format."
        )
    return tower


def _text_config(files: ModelFiles) -> ClipConfig:
    """Return the description of the text tower, if open_clip can build it without other packages."""
    text_config = files.model_config.get("text_cfg")
    if not isinstance(text_config, dict):
        raise CheckpointError(
            f"{files.identity}: its description has no 'text_cfg'. Take {CONFIG_NAME} from the place where "
            f"the weights come from."
        )
    is_foreign = any(text_config.get(key) for key in ("hf_model_name", "hf_tokenizer_name"))
    if is_foreign or "multimodal_cfg" in files.model_config:
        raise ConfigError(
            f"{files.identity}: its text tower or tokenizer is not part of open_clip itself and is not "
            f"supported. Use a model such as {DEFAULT_MODEL} or ViT-B-16, with English texts."
        )
    return text_config


def _find_model_files(weights: str, model_name: str | None) -> ModelFiles:
    """Find a model's description and weights on this machine; the weights are not opened."""
    place = Path(weights.removeprefix(FOLDER_PREFIX)).expanduser()
    if place.is_dir():
        return _files_of_folder(place, model_name)
    model_name = model_name or DEFAULT_MODEL
    is_path = place.suffix in WEIGHTS_SUFFIXES or len(place.parts) > 1 or weights.startswith(FOLDER_PREFIX)
    if is_path and not place.is_file():
        raise CheckpointError(
            f"{place}: no such file or folder (looked in {Path.cwd()}). Name a folder with {CONFIG_NAME} and "
            f"{WEIGHTS_NAMES[0]}, a weights file, or a tag such as {DEFAULT_WEIGHTS}."
        )
    is_tag = not place.is_file()
    return ModelFiles(
        model_config=_known_model(model_name),
        weights=_find_tagged(model_name, weights) if is_tag else place,
        identity=f"{model_name}, {weights if is_tag else place.name}",
    )


def _files_of_folder(folder: Path, model_name: str | None) -> ModelFiles:
    path = folder / CONFIG_NAME
    if path.is_file():
        try:
            model_config: ClipConfig = dict(json.loads(path.read_text(encoding="utf-8"))["model_cfg"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read as the description of an open_clip model ({error!r}). It is JSON "
                f"with 'model_cfg'. Use another copy."
            ) from None
        if model_name is not None and model_config != _known_model(model_name):
            raise ConfigError(
                f"{path}: describes another model than {model_name}. Leave out the name of the model: the "
                f"folder names it."
            )
    elif model_name is not None:
        model_config = _known_model(model_name)
    else:
        raise CheckpointError(
            f"{folder}: has no {CONFIG_NAME}. Put it there from the place where the weights come from, or "
            f"give the model's name, such as {DEFAULT_MODEL}."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    named = [folder / name for name in WEIGHTS_NAMES if (folder / name) in files]
    if not named and len(files) != 1:
        holds = f"several weights files: {', '.join(path.name for path in files)}" if files else "no weights"
        raise CheckpointError(
            f"{folder}: holds {holds}. Put {WEIGHTS_NAMES[0]} there, or name one weights file and its model."
        )
    weights = [*named, *files][0]
    label = model_name or folder.resolve().name
    return ModelFiles(model_config=model_config, weights=weights, identity=f"{label}, {weights.name}")


def _known_model(model_name: str) -> ClipConfig:
    import open_clip

    known = open_clip.list_models()
    if model_name not in known:
        raise ConfigError(
            f"model '{model_name}': open_clip knows no such model. {suggest(model_name, known)}"
        )
    return open_clip.get_model_config(model_name)


def _find_tagged(model_name: str, tag: str) -> Path:
    """Return the file that a download of open_clip left on this machine."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    entry = open_clip.get_pretrained_cfg(model_name, tag)
    if not entry:
        raise ConfigError(
            f"weights '{tag}': neither a file or folder here (looked in {Path.cwd()}) nor a tag of "
            f"{model_name}. {suggest(tag, tags) if tags else 'It has no tags: name a folder.'}"
        )
    needs_quick = bool(entry.get("quick_gelu"))
    if needs_quick != bool(_known_model(model_name).get("quick_gelu")):
        other = f"{model_name}-quickgelu" if needs_quick else model_name.removesuffix("-quickgelu")
        raise ConfigError(
            f"weights '{tag}' were trained with another activation than {model_name} has. Use {other}."
        )
    repository, _, name = entry.get("hf_hub", "").rpartition("/")
    if repository:
        for file_name in [name] if name else WEIGHTS_NAMES:
            cached = try_to_load_from_cache(repository, file_name)  # searches a folder only
            if isinstance(cached, str):
                return Path(cached)
    url = entry.get("url", "")
    path = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if url and path.is_file():
        return path
    source = f"huggingface.co/{repository}" if repository else url or "its author"
    raise CheckpointError(
        f"weights '{tag}' of {model_name} are not on this machine, and nothing is downloaded here. Get "
        f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]} (or {WEIGHTS_NAMES[1]}) from {source}, put them into a folder "
        f"such as weights/{model_name}, and name that folder instead of the tag. The encoder 'hashed' needs "
        f"no weights, but its vectors have no meaning."
    )
