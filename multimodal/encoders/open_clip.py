"""The text tower of an open_clip model, from files on this machine; nothing here reaches for the network.

Only the tensors of the text tower are kept, and all of them must come from the file: there is no way to a
tower with random weights. `open_clip` is imported when an encoder is loaded and at no other time.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from deim.errors import CheckpointError, ConfigError
from deim.model.weights import UNREADABLE, read_weights_file
from multimodal.encoders.hashed import hash_tensors
from multimodal.encoders.open_clip_files import (
    CONFIG_NAME,
    DEFAULT_MODEL,
    DEFAULT_WEIGHTS,
    ModelFiles,
    find_model_files,
)

logger = logging.getLogger(__name__)

BATCH_SIZE: Final = 32
"""Texts in one pass."""

TEXT_PREFIX: Final = "text."
BARE_TEXT_KEYS: Final = (
    "text_projection",
    "positional_embedding",
    "token_embedding.",
    "transformer.",
    "ln_final.",
)
"""Beginnings of the text tower's keys in files of OpenAI's layout, where they have no prefix."""


class OpenClipTextEncoder:
    """The text tower with the tokenizer from open_clip's package; a `TextEncoder`.

    Args:
        tower: Gives (N, D) for (N, T) tokens.
        tokenizer: open_clip's `SimpleTokenizer`.
        identity: The model and its weights in words.
        weights_hash: Of the tower, from `hash_tensors`.
        dim: Numbers in a vector, D.
    """

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
        for row, text in enumerate(texts):
            num_tokens = len(self.tokenizer.encode(text))
            if num_tokens == 0:
                raise ValueError(f"encode: text {row} holds no word, got {text!r}.")
            limit = self.tokenizer.context_length - 2  # the marks of begin and end
            if num_tokens > limit:
                logger.warning("text of %d tokens is cut to %d: '%s'", num_tokens, limit, text)
        found = [torch.zeros(0, self.dim)]
        with torch.no_grad():
            for start in range(0, len(texts), BATCH_SIZE):
                tokens = self.tokenizer(list(texts[start : start + BATCH_SIZE]))
                found.append(F.normalize(self.tower(tokens), dim=-1))
        return torch.cat(found)


def load_open_clip_encoder(
    weights: str = DEFAULT_WEIGHTS, *, model_name: str | None = None
) -> OpenClipTextEncoder:
    """Load the text tower of an open_clip model from this machine.

    Args:
        weights: A folder with `open_clip_config.json` and the weights; a weights file; or a tag of open_clip,
            such as `laion2b_s34b_b79k`, whose file an earlier download has left on this machine.
        model_name: open_clip's name of the model, such as `ViT-B-32`; None for `ViT-B-32`, or for what the
            folder says. Beside a file it must be right in everything that tensors do not show: weights of
            OpenAI are of `ViT-B-32-quickgelu`.

    Returns:
        The encoder, on the CPU, in float32.

    Raises:
        ConfigError: If open_clip is not installed, or does not know the model or the tag.
        CheckpointError: If the weights are not on this machine, are damaged or do not fit the model.
    """
    try:
        from open_clip.model import CLIPTextCfg, _build_text_tower
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ConfigError(
            f"The encoder open_clip needs the package open_clip_torch, which cannot be imported ({error}). "
            f"Install it with: python -m pip install 'deim-defects[clip]'"
        ) from None
    files = find_model_files(weights, model_name)
    text_config = _text_config(files)
    state = {key: value.float() for key, value in read_text_tower(files.weights).items()}
    bad = [key for key, value in state.items() if not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{files.weights}: '{bad[0]}' holds NaN or infinity. Use another copy.")
    try:
        text_settings = CLIPTextCfg(**text_config)
        # The start values are all replaced, and must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            tower = _build_text_tower(
                files.model_config["embed_dim"], text_settings, files.model_config.get("quick_gelu", False)
            )
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
        tower,
        SimpleTokenizer(
            context_length=text_settings.context_length, **(text_settings.tokenizer_kwargs or {})
        ),
        identity=f"open_clip {files.identity}",
        weights_hash=hash_tensors(state),
        dim=files.model_config["embed_dim"],
    )


def read_text_tower(path: Path) -> dict[str, Tensor]:
    """Read the text tower of a CLIP model; the rest of a `.safetensors` file is not even read.

    Args:
        path: Weights file.

    Returns:
        The tensors by their names in open_clip's text tower, in the file's precision.

    Raises:
        CheckpointError: If the file is missing, damaged or holds no text tower.
    """
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                names = _text_keys(list(file.keys()))
                state = {name: file.get_tensor(key) for name, key in names.items()}
        except UNREADABLE as error:
            raise CheckpointError(
                f"{path}: damaged, truncated or not a weights file ({error}). Use another copy."
            ) from None
    else:
        tree = read_weights_file(path)
        tree = tree["state_dict"] if isinstance(tree.get("state_dict"), dict) else tree
        names = _text_keys([key for key, value in tree.items() if isinstance(value, Tensor)])
        state = {name: tree[key] for name, key in names.items()}
    if not state:
        raise CheckpointError(
            f"{path}: holds no text tower. Use the weights of a whole CLIP model in open_clip's format."
        )
    return state


def _text_keys(keys: Sequence[str]) -> dict[str, str]:
    """Name in the text tower → key in the file."""
    plain = {key.removeprefix("module."): key for key in keys}
    if any(name.startswith(TEXT_PREFIX) for name in plain):
        return {
            name.removeprefix(TEXT_PREFIX): key for name, key in plain.items() if name.startswith(TEXT_PREFIX)
        }
    return {name: key for name, key in plain.items() if name.startswith(BARE_TEXT_KEYS)}


def _text_config(files: ModelFiles) -> dict[str, Any]:
    """The description of the text tower, if it is of open_clip's own kind."""
    found = files.model_config.get("text_cfg")
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{files.identity}: its description has no 'text_cfg'. Take {CONFIG_NAME} from the place where "
            f"the weights come from."
        )
    foreign = any(found.get(key) for key in ("hf_model_name", "hf_tokenizer_name"))
    if foreign or "multimodal_cfg" in files.model_config:
        raise ConfigError(
            f"{files.identity}: its text tower or tokenizer is not part of open_clip itself and is not "
            f"supported. Use a model such as {DEFAULT_MODEL} or ViT-B-16, with English texts."
        )
    return found
