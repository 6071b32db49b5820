"""The embedded texts of all classes, in one file.

Building a bank needs a text encoder; reading one needs neither CLIP nor the prompts file.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from deim.errors import CheckpointError, ConfigError
from deim.files import looked_in, raise_listed, suggest, write_atomically
from deim.model.weights import UNREADABLE, hash_tensors
from deim.records import from_json, to_json
from multimodal.encoders.interface import TextEncoder
from multimodal.prompts import PLACEHOLDER, ClassPrompt, Prompts

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Raised whenever the content of a bank changes its meaning."""

SLOTS: Final = ("description", "keywords", "contrast")
"""The K prompts of a class."""

CLOSE_COSINE: Final = 0.95
"""Texts of two classes with a higher cosine are hard to distinguish."""

NORM_TOLERANCE: Final = 1e-3
ADVICE: Final = "Build it again with deim text-bank."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextBank:
    """Embedded texts; all vectors have norm 1."""

    class_names: tuple[str, ...]
    """C names, in the order of the detector's class indices."""
    prompts: Tensor
    """(C, K, D) float32; K as in `SLOTS`."""
    background: Tensor
    """(Kb, D) float32."""
    encoder: str
    """Name of the encoder; see `TextEncoder.identity`."""
    weights_hash: str | None
    """SHA-256 of the encoder's weights; None if it has none."""
    prompt_texts: tuple[tuple[str, ...], ...]
    """C rows of the K texts that were embedded in `prompts`."""
    background_texts: tuple[str, ...]
    """The Kb texts that were embedded in `background`."""
    templates: tuple[str, ...]
    """The sentences that each text was put into, with `{}` in its place."""

    def __post_init__(self) -> None:
        num_classes, dim = len(self.class_names), self.prompts.shape[-1]
        shapes = {"prompts": (num_classes, len(SLOTS), dim), "background": (len(self.background_texts), dim)}
        for name, shape in shapes.items():
            vectors: Tensor = getattr(self, name)
            if vectors.shape != shape:
                raise ValueError(f"{name}: got {tuple(vectors.shape)}, needs {shape}.")
            if vectors.dtype != torch.float32:
                raise ValueError(f"{name}: got {vectors.dtype}, needs float32.")
            if not bool(((vectors.norm(dim=-1) - 1).abs() <= NORM_TOLERANCE).all()):
                raise ValueError(f"{name}: holds vectors whose norm is not 1.")
        if [len(row) for row in self.prompt_texts] != [len(SLOTS)] * num_classes:
            raise ValueError(f"prompt_texts: needs {num_classes} rows of {len(SLOTS)} texts.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosePair:
    """Two classes whose texts are hard to distinguish, with the cosines of their mean vectors."""

    first: str
    second: str
    raw: float
    centered: float
    """The cosine after subtraction of the mean over all classes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassCosines:
    """Similarity of the texts of the classes."""

    raw: Tensor
    """(C, C) float32: cosines of the classes' mean vectors."""
    centered: Tensor
    """(C, C) float32: the same after subtraction of the mean over classes, as in the fusion head."""
    close_pairs: tuple[ClosePair, ...]
    """Pairs with a cosine above `CLOSE_COSINE`: the centered one, or with two classes the raw one."""


def build_text_bank(
    prompts: Prompts,
    encoder: TextEncoder,
    class_names: Sequence[str] | None = None,
    *,
    where: str = "prompts",
) -> TextBank:
    """Embed the texts of each class.

    Each text is embedded in every template to norm 1, and the mean is scaled to norm 1 again. The description
    stands in for missing keywords or a missing contrast.

    Args:
        prompts: From `load_prompts`.
        encoder: Embeds the sentences.
        class_names: C names in the detector's order; None for all classes of the file, in its order.
        where: Name of the prompts file, for messages.

    Returns:
        The bank, on the CPU.

    Raises:
        ConfigError: If a class has no prompts, or a name stands twice; one line for each problem.

    Source:
        Templates and their mean: Radford et al., ICML 2021 (arXiv:2103.00020), section 3.1.4.
    """
    by_name = {row.name: row for row in prompts.classes}
    names = tuple(by_name) if class_names is None else tuple(class_names)
    problems = [] if names else ["classes: got none, needs at least one."]
    for name, count in Counter(names).items():
        if name not in by_name:
            problems.append(f"{where}: has no prompts for class '{name}'. {suggest(name, by_name)}")
        if count > 1:
            problems.append(f"class '{name}': is named {count} times. Name each once.")
    raise_listed(problems, ConfigError)
    unused = [name for name in by_name if name not in names]
    if unused:
        logger.info("%s: not used, because the detector lacks the classes: %s", where, ", ".join(unused))
    texts = tuple(_slot_texts(by_name[name]) for name in names)
    background_texts = tuple(entry.en for entry in prompts.background)
    vectors = _embed([*chain(*texts), *background_texts], prompts.templates, encoder)
    num_prompts = len(names) * len(SLOTS)
    return TextBank(
        class_names=names,
        prompts=vectors[:num_prompts].unflatten(0, (len(names), len(SLOTS))).clone(),
        background=vectors[num_prompts:].clone(),
        encoder=encoder.identity,
        weights_hash=encoder.weights_hash,
        prompt_texts=texts,
        background_texts=background_texts,
        templates=prompts.templates,
    )


def _slot_texts(row: ClassPrompt) -> tuple[str, ...]:
    keywords = ", ".join(row.keywords) or row.en
    return row.en, keywords, row.en if row.contrast is None else row.contrast.en


def _embed(texts: Sequence[str], templates: Sequence[str], encoder: TextEncoder) -> Tensor:
    """Return (N, D): the mean of each text over the templates."""
    sentences = [template.replace(PLACEHOLDER, text) for text in texts for template in templates]
    vectors = F.normalize(encoder.encode(sentences), dim=-1)
    return F.normalize(vectors.unflatten(0, (len(texts), len(templates))).mean(dim=1), dim=-1)


def class_cosines(bank: TextBank) -> ClassCosines:
    """Compare the classes' texts.

    All texts of one subject share a direction, which raises the raw cosines and which the fusion head
    subtracts, so the centered cosines decide. Two classes alone are always opposite once centered, so with
    C = 2 the raw cosine decides.
    """
    means = bank.prompts.mean(dim=1)
    raw, centered = (_cosines(vectors) for vectors in (means, means - means.mean(dim=0)))
    deciding = raw if len(means) == 2 else centered
    pairs = tuple(
        ClosePair(
            first=bank.class_names[first],
            second=bank.class_names[second],
            raw=float(raw[first, second]),
            centered=float(centered[first, second]),
        )
        for first, second in combinations(range(len(means)), 2)
        if deciding[first, second] > CLOSE_COSINE
    )
    return ClassCosines(raw=raw, centered=centered, close_pairs=pairs)


def _cosines(vectors: Tensor) -> Tensor:
    units = F.normalize(vectors, dim=-1)
    return units @ units.T


def text_bank_to_dict(bank: TextBank) -> dict[str, Any]:
    """Return the bank as tensors and plain types, for a checkpoint."""
    return {"format": FORMAT, **to_json(bank)}


def text_bank_from_dict(content: Mapping[str, Any], *, where: str) -> TextBank:
    """Rebuild a bank.

    Args:
        content: From `text_bank_to_dict`.
        where: Name of the file, for messages.

    Raises:
        CheckpointError: If it is of another version, or anything in it is missing or wrong.
    """
    if content.get("format") != FORMAT:
        version = content.get("format")
        raise CheckpointError(f"{where}: text bank format {version}; this version reads {FORMAT}. {ADVICE}")
    try:
        return from_json(TextBank, content)
    except ValueError as error:
        raise CheckpointError(f"{where}: not a complete text bank ({error}). {ADVICE}") from None


def save_text_bank(bank: TextBank, path: Path) -> None:
    """Write a bank atomically. Equal banks give equal bytes.

    Args:
        bank: The bank.
        path: `.safetensors` file; its folder is made if it does not exist.

    Raises:
        ConfigError: If the name ends in something else.
        OSError: If it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a text bank is a .safetensors file. Give it such a name.")
    content = text_bank_to_dict(bank)
    tensors = {name: content.pop(name).contiguous() for name in ("prompts", "background")}
    described = json.dumps(content | {"tensors_hash": hash_tensors(tensors)}, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(save(tensors, metadata={"text_bank": described})))


def load_text_bank(path: Path, *, class_names: Sequence[str] | None = None) -> TextBank:
    """Read a bank.

    Args:
        path: From `save_text_bank`.
        class_names: C names in the detector's order, which must be the bank's; None to take any.

    Raises:
        CheckpointError: If it is missing, damaged, of another version or made for other classes.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such text bank{looked_in(path)}. Build it with deim text-bank.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        described = json.loads(metadata.get("text_bank", "null"))
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: damaged or not a text bank ({error}). {ADVICE}") from None
    if not isinstance(described, dict):
        raise CheckpointError(f"{path}: a weights file, but not a text bank. {ADVICE}")
    bank = text_bank_from_dict(described | tensors, where=str(path))
    if described.get("tensors_hash") != hash_tensors(tensors):
        raise CheckpointError(f"{path}: damaged, its numbers have changed since it was written. {ADVICE}")
    if class_names is not None:
        check_classes(bank, class_names, where=str(path))
    return bank


def check_classes(bank: TextBank, class_names: Sequence[str], *, where: str) -> None:
    """Check that a bank was built for the classes of a detector, in their order.

    Raises:
        CheckpointError: If not; every class that differs is named.
    """
    advice = "Build the bank again with deim text-bank --checkpoint."
    if len(bank.class_names) != len(class_names):
        raise CheckpointError(
            f"{where}: the text bank has {len(bank.class_names)} classes ({', '.join(bank.class_names)}), "
            f"the detector {len(class_names)} ({', '.join(class_names)}). {advice}"
        )
    differing = [
        f"{where}: class {label} is '{ours}' in the text bank, '{theirs}' in the detector."
        for label, (ours, theirs) in enumerate(zip(bank.class_names, class_names, strict=True))
        if ours != theirs
    ]
    if differing:
        raise CheckpointError("\n".join([*differing, advice]))
