"""The text tower of an open_clip model, from files on this machine; nothing is downloaded.

All weights come from the file: no part of the tower can stay random. `open_clip` is imported only when an
encoder is loaded.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deim.errors import CheckpointError, ConfigError
from deim.model.weights import hash_tensors, read_weights_file
from multimodal.encoders.open_clip_files import (
    CONFIG_NAME,
    DEFAULT_MODEL,
    DEFAULT_WEIGHTS,
    ModelFiles,
    find_model_files,
)

logger = logging.getLogger(__name__)

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


class OpenClipTextEncoder:
    """The text tower, (N, T) tokens to (N, D), with open_clip's tokenizer; a `TextEncoder`."""

    def __init__(
        self, tower: nn.Module, tokenizer: Any, *, identity: str, weights_hash: str, dim: int
    ) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.identity = identity
        self.weights_hash = weights_hash
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; one that is too long is cut, with a warning. See `TextEncoder.encode`."""
        limit = self.tokenizer.context_length - 2  # without the marks of begin and end
        for row, text in enumerate(texts):
            num_tokens = len(self.tokenizer.encode(text))
            if num_tokens == 0:
                raise ValueError(f"encode: text {row} holds no word, got {text!r}.")
            if num_tokens > limit:
                logger.warning("text of %d tokens is cut to %d: '%s'", num_tokens, limit, text)
        vectors = [torch.zeros(0, self.dim)]
        with torch.no_grad():
            for start in range(0, len(texts), BATCH_SIZE):
                tokens = self.tokenizer(list(texts[start : start + BATCH_SIZE]))
                vectors.append(F.normalize(self.tower(tokens), dim=-1))
        return torch.cat(vectors)


def load_open_clip_encoder(options: OpenClipEncoderOptions) -> OpenClipTextEncoder:
    """Load the text tower of an open_clip model from this machine.

    Args:
        options: The weights and the model.

    Returns:
        The encoder, on the CPU, in float32.

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
    files = find_model_files(options.weights, options.clip_model)
    text_config = _text_config(files)
    state = {key: value.float() for key, value in read_text_tower(files.weights).items()}
    non_finite = [key for key, value in state.items() if not value.isfinite().all()]
    if non_finite:
        raise CheckpointError(f"{files.weights}: '{non_finite[0]}' holds NaN or infinity. Use another copy.")
    dim, quick_gelu = files.model_config.get("embed_dim"), bool(files.model_config.get("quick_gelu"))
    try:
        # All random weights are replaced, and the caller's random numbers must not move.
        with torch.random.fork_rng(devices=[]):
            tower = CustomTextCLIP(dim, SMALL_VISION, text_config, quick_gelu=quick_gelu).text
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
    assert dim is not None
    tokenizer_options = text_config.get("tokenizer_kwargs") or {}
    return OpenClipTextEncoder(
        tower,
        SimpleTokenizer(context_length=tower.context_length, **tokenizer_options),
        identity=f"open_clip {files.identity}",
        weights_hash=hash_tensors(state),
        dim=dim,
    )


def read_text_tower(path: Path) -> dict[str, Tensor]:
    """Read the text tower of a CLIP model.

    Args:
        path: Weights file.

    Returns:
        The tensors by their names in open_clip's text tower, in the file's precision.

    Raises:
        CheckpointError: If the file is missing, damaged or holds no text tower.
    """
    content = read_weights_file(path)
    content = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    keys = [key for key, value in content.items() if isinstance(value, Tensor)]
    state = {name: content[key] for name, key in _text_keys(keys).items()}
    if not state:
        raise CheckpointError(
            f"{path}: holds no text tower. Use the weights of a whole CLIP model in open_clip's format."
        )
    return state


def _text_keys(keys: Sequence[str]) -> dict[str, str]:
    """Map names in the text tower to keys of the file."""
    plain = {key.removeprefix("module."): key for key in keys}
    prefixed = {name: key for name, key in plain.items() if name.startswith(TEXT_PREFIX)}
    if prefixed:
        return {name.removeprefix(TEXT_PREFIX): key for name, key in prefixed.items()}
    return {name: key for name, key in plain.items() if name.startswith(TOWER_KEYS)}


def _text_config(files: ModelFiles) -> dict[str, Any]:
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
