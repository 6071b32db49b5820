"""Where an open_clip model lies on this machine: a folder, a file, or what an earlier download has left.

Only the file system is looked at; nothing here reaches for the network.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deim.errors import CheckpointError, ConfigError
from multimodal.prompts import nearest

DEFAULT_MODEL: Final = "ViT-B-32"
DEFAULT_WEIGHTS: Final = "laion2b_s34b_b79k"
"""Trained on LAION-2B; MIT license; 512 numbers in a vector."""

CONFIG_NAME: Final = "open_clip_config.json"
WEIGHTS_NAMES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the weights in an open_clip model folder, the better one first."""
WEIGHTS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")

FOLDER_PREFIX: Final = "local-dir:"
"""How open_clip itself marks a folder; it may be left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """Where a model's text tower is described and where its weights are."""

    model_config: Mapping[str, Any]
    """`embed_dim`, `text_cfg` and perhaps `quick_gelu`, as in open_clip's own files."""
    weights: Path
    """`.safetensors`, or a pickle of torch."""
    identity: str
    """The model and its weights in words."""


def find_model_files(weights: str, model_name: str | None) -> ModelFiles:
    """Find a model's description and weights on this machine; the weights are not opened.

    Args:
        weights: Folder, weights file or tag; see `load_open_clip_encoder`.
        model_name: open_clip's name of the model, or None.

    Raises:
        ConfigError: If open_clip does not know the model or the tag.
        CheckpointError: If the weights are not on this machine.
    """
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
    if place.is_file():
        return ModelFiles(
            model_config=_known_model(model_name), weights=place, identity=f"{model_name}, {place.name}"
        )
    return ModelFiles(
        model_config=_known_model(model_name),
        weights=_find_tagged(model_name, weights),
        identity=f"{model_name}, {weights}",
    )


def _files_of_folder(folder: Path, model_name: str | None) -> ModelFiles:
    path = folder / CONFIG_NAME
    if path.is_file():
        try:
            model_config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read as the description of an open_clip model ({error!r}). It is JSON "
                f"with 'model_cfg'. Use another copy."
            ) from None
        if not isinstance(model_config, dict):
            raise CheckpointError(f"{path}: 'model_cfg' is a {type(model_config).__name__}, needs a block.")
        if model_name is not None and model_config != _known_model(model_name):
            raise ConfigError(
                f"{path}: describes another model than {model_name}. Leave the model's name out: the folder "
                f"says what it is."
            )
    elif model_name is not None:
        model_config = _known_model(model_name)
    else:
        raise CheckpointError(
            f"{folder}: has no {CONFIG_NAME}. Put it there from the place where the weights come from, or "
            f"give the model's name, such as {DEFAULT_MODEL}."
        )
    weights = _weights_of_folder(folder)
    label = model_name or folder.resolve().name
    return ModelFiles(model_config=model_config, weights=weights, identity=f"{label}, {weights.name}")


def _weights_of_folder(folder: Path) -> Path:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    holds = f"several weights files: {', '.join(path.name for path in found)}" if found else "no weights"
    raise CheckpointError(
        f"{folder}: holds {holds}. Put {WEIGHTS_NAMES[0]} there, or name one weights file and its model."
    )


def _known_model(model_name: str) -> dict[str, Any]:
    import open_clip

    known = open_clip.list_models()
    if model_name not in known:
        raise ConfigError(
            f"model '{model_name}': open_clip knows no such model. {nearest(model_name, known)}"
        )
    found: dict[str, Any] = open_clip.get_model_config(model_name)
    return found


def _find_tagged(model_name: str, tag: str) -> Path:
    """The file that a download of open_clip has left on this machine."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    entry = open_clip.get_pretrained_cfg(model_name, tag)
    if not entry:
        raise ConfigError(
            f"weights '{tag}': neither a file or folder here (looked in {Path.cwd()}) nor a tag of "
            f"{model_name}. {nearest(tag, tags) if tags else 'It has no tags: name a folder.'}"
        )
    if bool(entry.get("quick_gelu")) != bool(_known_model(model_name).get("quick_gelu")):
        other = (
            f"{model_name}-quickgelu" if entry.get("quick_gelu") else model_name.removesuffix("-quickgelu")
        )
        raise ConfigError(
            f"weights '{tag}' were trained with another activation than {model_name} has. Use {other}."
        )
    for path in _left_by_downloads(entry):
        if path.is_file():
            return path
    repository = entry.get("hf_hub", "").rpartition("/")[0]
    source = f"huggingface.co/{repository}" if repository else entry.get("url", "its author")
    raise CheckpointError(
        f"weights '{tag}' of {model_name} are not on this machine, and nothing is downloaded here. Get "
        f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]} (or {WEIGHTS_NAMES[1]}) from {source}, put them into a folder "
        f"such as weights/{model_name}, and give that folder in place of the tag. For a trial without "
        f"meaning there is the encoder 'hashed'."
    )


def _left_by_downloads(entry: Mapping[str, Any]) -> Iterator[Path]:
    """Where open_clip keeps what it has downloaded: Hugging Face's cache, and its own."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, name = entry.get("hf_hub", "").rpartition("/")
    if repository:
        for file_name in [name] if name else WEIGHTS_NAMES:
            found = try_to_load_from_cache(repository, file_name)  # looks into a folder, nothing more
            if isinstance(found, str):
                yield Path(found)
    if entry.get("url"):
        yield Path("~/.cache/clip").expanduser() / entry["url"].rpartition("/")[2]
