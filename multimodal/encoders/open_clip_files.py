"""Finding an open_clip model on this machine: in a folder, in a file, or in the cache of a download.

Only the file system is searched; nothing is downloaded.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deim.errors import CheckpointError, ConfigError
from deim.files import looked_in, suggest

DEFAULT_MODEL: Final = "ViT-B-32"
DEFAULT_WEIGHTS: Final = "laion2b_s34b_b79k"
"""Trained on LAION-2B; MIT license; vectors of 512 numbers."""

CONFIG_NAME: Final = "open_clip_config.json"
WEIGHTS_NAMES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the weights in an open_clip model folder, in order of preference."""
WEIGHTS_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")

FOLDER_PREFIX: Final = "local-dir:"
"""open_clip's mark of a folder, which is optional here."""


ClipConfig = Mapping[str, Any]
"""`embed_dim`, `text_cfg` and perhaps `quick_gelu` of a model, as in the files of open_clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The description of a model and its weights."""

    model_config: ClipConfig
    weights: Path
    """`.safetensors`, or a pickle of torch."""
    identity: str
    """Name of the model and of its weights."""


def find_model_files(weights: str, model_name: str | None) -> ModelFiles:
    """Find a model's description and weights on this machine; the weights are not opened.

    Args:
        weights: Folder, weights file or tag; see `OpenClipEncoderOptions`.
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
            f"{place}: no such file or folder{looked_in(place)}. Name a folder with {CONFIG_NAME} and "
            f"{WEIGHTS_NAMES[0]}, a weights file, or a tag such as {DEFAULT_WEIGHTS}."
        )
    model_config = _known_model(model_name)
    if place.is_file():
        return ModelFiles(model_config=model_config, weights=place, identity=f"{model_name}, {place.name}")
    path = _find_tagged(model_name, weights)
    return ModelFiles(model_config=model_config, weights=path, identity=f"{model_name}, {weights}")


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
    weights = _weights_of_folder(folder)
    label = model_name or folder.resolve().name
    return ModelFiles(model_config=model_config, weights=weights, identity=f"{label}, {weights.name}")


def _weights_of_folder(folder: Path) -> Path:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES and path.is_file())
    if len(files) == 1:
        return files[0]
    holds = f"several weights files: {', '.join(path.name for path in files)}" if files else "no weights"
    raise CheckpointError(
        f"{folder}: holds {holds}. Put {WEIGHTS_NAMES[0]} there, or name one weights file and its model."
    )


def _known_model(model_name: str) -> ClipConfig:
    import open_clip

    known = open_clip.list_models()
    if model_name not in known:
        raise ConfigError(
            f"model '{model_name}': open_clip knows no such model. {suggest(model_name, known)}"
        )
    model_config: ClipConfig = open_clip.get_model_config(model_name)
    return model_config


def _find_tagged(model_name: str, tag: str) -> Path:
    """Return the file that a download of open_clip left on this machine."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model_name)
    entry = open_clip.get_pretrained_cfg(model_name, tag)
    if not entry:
        raise ConfigError(
            f"weights '{tag}': neither a file or folder here (looked in {Path.cwd()}) nor a tag of "
            f"{model_name}. {suggest(tag, tags) if tags else 'It has no tags: name a folder.'}"
        )
    if bool(entry.get("quick_gelu")) != bool(_known_model(model_name).get("quick_gelu")):
        other = (
            f"{model_name}-quickgelu" if entry.get("quick_gelu") else model_name.removesuffix("-quickgelu")
        )
        raise ConfigError(
            f"weights '{tag}' were trained with another activation than {model_name} has. Use {other}."
        )
    for path in _download_paths(entry):
        if path.is_file():
            return path
    repository = entry.get("hf_hub", "").rpartition("/")[0]
    source = f"huggingface.co/{repository}" if repository else entry.get("url", "its author")
    raise CheckpointError(
        f"weights '{tag}' of {model_name} are not on this machine, and nothing is downloaded here. Get "
        f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]} (or {WEIGHTS_NAMES[1]}) from {source}, put them into a folder "
        f"such as weights/{model_name}, and name that folder instead of the tag. The encoder 'hashed' needs "
        f"no weights, but its vectors have no meaning."
    )


def _download_paths(entry: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the places where open_clip keeps downloads: the cache of Hugging Face, and `~/.cache/clip`."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, name = entry.get("hf_hub", "").rpartition("/")
    if repository:
        for file_name in [name] if name else WEIGHTS_NAMES:
            path = try_to_load_from_cache(repository, file_name)  # searches a folder only
            if isinstance(path, str):
                yield Path(path)
    if entry.get("url"):
        yield Path("~/.cache/clip").expanduser() / entry["url"].rpartition("/")[2]
