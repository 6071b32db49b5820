"""The embedded texts of all classes, in one file: what the fusion head needs of language.

Building a bank needs a text encoder; reading one needs neither CLIP nor the prompts file.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from deim.errors import CheckpointError, ConfigError
from deim.model.weights import UNREADABLE
from multimodal.encoders.hashed import TextEncoder, hash_tensors
from multimodal.prompts import PLACE, ClassPrompt, Prompts, nearest

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Raised whenever what a bank holds changes its meaning."""

SLOTS: Final = ("description", "keywords", "contrast")
"""What the K prompts of a class are."""

CLOSE_COSINE: Final = 0.95
"""Two classes whose cosine is above this are hardly told apart by their texts."""

LENGTH_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextBank:
    """Embedded texts; all vectors have length 1."""

    class_names: tuple[str, ...]
    """C names, in the order of the detector's class indices."""
    prompts: Tensor
    """(C, K, D) float32; K as in `SLOTS`."""
    background: Tensor
    """(Kb, D) float32."""
    encoder: str
    """The encoder in words; see `TextEncoder.identity`."""
    weights_hash: str | None
    """SHA-256 of the encoder's weights; None if it has none."""
    prompt_texts: tuple[tuple[str, ...], ...]
    """C rows of K texts: what `prompts` was made from."""
    background_texts: tuple[str, ...]
    """Kb texts: what `background` was made from."""
    templates: tuple[str, ...]
    """The sentences that each text was put into."""

    def __post_init__(self) -> None:
        num_classes, num_background = len(self.class_names), len(self.background_texts)
        if self.prompts.ndim != 3 or self.prompts.shape[:2] != (num_classes, len(SLOTS)):
            raise ValueError(
                f"prompts: got {tuple(self.prompts.shape)}, needs ({num_classes}, {len(SLOTS)}, D)."
            )
        if self.background.shape != (num_background, self.prompts.shape[2]):
            raise ValueError(
                f"background: got {tuple(self.background.shape)}, needs "
                f"({num_background}, {self.prompts.shape[2]})."
            )
        if [len(row) for row in self.prompt_texts] != [len(SLOTS)] * num_classes:
            raise ValueError(f"prompt_texts: needs {num_classes} rows of {len(SLOTS)} texts.")
        for name, vectors in (("prompts", self.prompts), ("background", self.background)):
            if vectors.dtype != torch.float32:
                raise ValueError(f"{name}: got {vectors.dtype}, needs float32.")
            if not bool(((vectors.norm(dim=-1) - 1).abs() <= LENGTH_TOLERANCE).all()):
                raise ValueError(f"{name}: holds vectors whose length is not 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosePair:
    """Two classes that the texts hardly tell apart."""

    first: str
    """Name of the class with the lower index."""
    second: str
    """Name of the other."""
    raw: float
    """Cosine of the two classes' mean vectors."""
    centered: float
    """The same after the mean over all classes is taken away."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassCosines:
    """How alike the classes are in words."""

    raw: Tensor
    """(C, C) float32: cosines of the classes' mean vectors."""
    centered: Tensor
    """(C, C) float32: the same after the mean over classes is taken away, as the fusion head starts."""
    close_pairs: tuple[ClosePair, ...]
    """Pairs with a cosine above `CLOSE_COSINE`: the centered one, or with two classes the raw one."""


def build_text_bank(
    prompts: Prompts, encoder: TextEncoder, class_names: Sequence[str] | None = None
) -> TextBank:
    """Embed the texts of each class: in every template, to length 1, the mean, to length 1 again.

    Where a class has no keywords or no contrast, its description stands in their place.

    Args:
        prompts: From `load_prompts`.
        encoder: Gives D numbers for a text.
        class_names: C names in the detector's order; None for the order of the file. Other classes of the
            file are left out.

    Returns:
        The bank, on the CPU.

    Raises:
        ConfigError: If a class has no prompts, or a name stands twice; one line for each problem.

    Source:
        Templates and their mean: Radford et al., ICML 2021 (arXiv:2103.00020), section 3.1.4.
    """
    by_name = {row.name: row for row in prompts.classes}
    names = tuple(by_name) if class_names is None else tuple(class_names)
    problems = [
        f"{prompts.path}: has no prompts for class '{name}'. {nearest(name, list(by_name))}"
        for name in dict.fromkeys(names)
        if name not in by_name
    ]
    twice = dict.fromkeys(name for name in names if names.count(name) > 1)
    problems += [f"class '{name}': is named {names.count(name)} times. Name each once." for name in twice]
    if problems or not names:
        raise ConfigError("\n".join(problems or ["classes: got none, needs at least one."]))
    left_out = [name for name in by_name if name not in names]
    if left_out:
        logger.info("%s: not among the detector's classes, left out: %s", prompts.path, ", ".join(left_out))
    texts = tuple(_slot_texts(by_name[name]) for name in names)
    background_texts = tuple(entry.en for entry in prompts.background)
    all_texts = [text for row in texts for text in row] + list(background_texts)
    vectors = _embed(all_texts, prompts.templates, encoder)
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
    """(N, D): each text in every template, and the mean."""
    sentences = [template.replace(PLACE, text) for text in texts for template in templates]
    vectors = F.normalize(encoder.encode(sentences), dim=-1)
    return F.normalize(vectors.unflatten(0, (len(texts), len(templates))).mean(dim=1), dim=-1)


def class_cosines(bank: TextBank) -> ClassCosines:
    """Compare the classes' texts.

    All texts about metal surfaces share a direction, which lifts the raw cosines and which the head takes
    away: what counts is the centered one. Two classes alone are opposite once centered, whatever their texts,
    so that with C = 2 the raw one counts.

    Args:
        bank: C classes.

    Returns:
        Raw and centered cosines, and the pairs that are too close.
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
    """The bank as tensors and plain types, for a checkpoint; `text_bank_from_dict` gives it back."""
    return {
        "format": FORMAT,
        "class_names": list(bank.class_names),
        "prompts": bank.prompts,
        "background": bank.background,
        "encoder": bank.encoder,
        "weights_hash": bank.weights_hash,
        "prompt_texts": [list(row) for row in bank.prompt_texts],
        "background_texts": list(bank.background_texts),
        "templates": list(bank.templates),
    }


def text_bank_from_dict(tree: Mapping[str, Any], *, where: str) -> TextBank:
    """Rebuild a bank.

    Args:
        tree: What `text_bank_to_dict` gave.
        where: The place that messages name.

    Raises:
        CheckpointError: If it is of another version, or anything in it is missing or does not fit.
    """
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{where}: has text bank format {tree.get('format')}, this version reads {FORMAT}. Build it "
            f"again with tools/build_text_bank.py."
        )
    try:
        return TextBank(
            class_names=tuple(tree["class_names"]),
            prompts=tree["prompts"],
            background=tree["background"],
            encoder=tree["encoder"],
            weights_hash=tree["weights_hash"],
            prompt_texts=tuple(tuple(row) for row in tree["prompt_texts"]),
            background_texts=tuple(tree["background_texts"]),
            templates=tuple(tree["templates"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: not a whole text bank ({error!r}). Build it again with tools/build_text_bank.py."
        ) from None


def save_text_bank(bank: TextBank, path: Path) -> None:
    """Write a bank; a reader sees the old file or the whole new one. Equal banks give equal bytes.

    Args:
        bank: What to write.
        path: `.safetensors` file; its folder is made if it does not exist.

    Raises:
        ConfigError: If the name ends in something else.
        OSError: If it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a text bank is a .safetensors file. Give it such a name.")
    tree = text_bank_to_dict(bank)
    tensors = {name: tree.pop(name).contiguous() for name in ("prompts", "background")}
    described = json.dumps(tree | {"tensors_hash": hash_tensors(tensors)}, ensure_ascii=False)
    content = save(tensors, metadata={"text_bank": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_text_bank(path: Path, *, class_names: Sequence[str] | None = None) -> TextBank:
    """Read a bank.

    Args:
        path: From `save_text_bank`.
        class_names: C names in the detector's order, which must be the bank's; None to take any.

    Raises:
        CheckpointError: If it is missing, damaged, of another version or made for other classes.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such text bank (looked in {Path.cwd()}). Make it with tools/build_text_bank.py."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        described = json.loads(metadata.get("text_bank", "null"))
    except UNREADABLE as error:
        raise CheckpointError(
            f"{path}: damaged or not a text bank ({error}). Build it again with tools/build_text_bank.py."
        ) from None
    if not isinstance(described, dict):
        raise CheckpointError(
            f"{path}: a weights file, but not a text bank. Make one with tools/build_text_bank.py."
        )
    bank = text_bank_from_dict(described | tensors, where=str(path))
    if described.get("tensors_hash") != hash_tensors(tensors):
        raise CheckpointError(
            f"{path}: damaged: its numbers are not those that were written. Build it again with "
            f"tools/build_text_bank.py."
        )
    if class_names is not None:
        check_classes(bank, class_names, where=str(path))
    return bank


def check_classes(bank: TextBank, class_names: Sequence[str], *, where: str) -> None:
    """Refuse a bank that was made for other classes, or for another order of the same.

    Args:
        bank: Of any classes.
        class_names: C names in the detector's order.
        where: The place that messages name.

    Raises:
        CheckpointError: If they differ; every class that differs is named.
    """
    advice = "Build the bank again with tools/build_text_bank.py and --checkpoint."
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
