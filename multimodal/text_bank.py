"""The embedded texts of all classes, in one file.

Building a bank needs a text encoder; reading one needs neither CLIP nor the prompts file.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from deim.data.tensor_file import pack_tensors, read_metadata
from deim.errors import CheckpointError, ConfigError
from deim.files import CHANGED, is_unchanged, looked_in, raise_listed, suggest, write_bytes
from deim.model.weights import hash_tensors
from deim.model.weights_file import UNREADABLE
from deim.parse import parse_json
from deim.records import from_json, to_json
from deim.report.tables import format_number, format_table
from multimodal.encoders.build import TextEncoder
from multimodal.prompts import PLACEHOLDER, ClassPrompt, Prompts

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Raised whenever the content of a bank changes its meaning."""
METADATA_KEY: Final = "text_bank"
SLOTS: Final = ("description", "keywords", "contrast")
"""The K prompts of a class."""
CLOSE_COSINE: Final = 0.95
"""Texts of two classes with a higher cosine are hard to distinguish."""
NORM_TOLERANCE: Final = 1e-3
ADVICE: Final = "Build it again with deim text-bank."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextBank:
    """Embedded texts; all vectors have norm 1."""

    format: int = FORMAT
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
        if self.format != FORMAT:
            raise ValueError(f"text bank format {self.format}; this version reads {FORMAT}")
        num_classes, dim = len(self.class_names), self.prompts.size(-1) if self.prompts.ndim else 0
        shapes = {"prompts": (num_classes, len(SLOTS), dim), "background": (len(self.background_texts), dim)}
        for name, shape in shapes.items():
            vectors: Tensor = getattr(self, name)
            if vectors.shape != shape or not len(vectors):
                raise ValueError(f"{name}: got {tuple(vectors.shape)}, needs {shape}.")
            if vectors.dtype != torch.float32:
                raise ValueError(f"{name}: got {vectors.dtype}, needs float32.")
            if not bool(((vectors.norm(dim=-1) - 1).abs() <= NORM_TOLERANCE).all()):
                raise ValueError(f"{name}: holds vectors whose norm is not 1.")
        if [len(row) for row in self.prompt_texts] != [len(SLOTS)] * num_classes:
            raise ValueError(f"prompt_texts: needs {num_classes} rows of {len(SLOTS)} texts.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassCosines:
    """Similarity of the texts of the classes."""

    raw: Tensor
    """(C, C) float32: cosines of the classes' mean vectors."""
    centered: Tensor
    """(C, C) float32: the same after subtraction of the mean over classes, as in the fusion head."""

    @property
    def close_pairs(self) -> list[tuple[int, int]]:
        """Class indices of the pairs with a cosine above `CLOSE_COSINE`.

        All texts of one subject share a direction, which raises the raw cosines and which the fusion head
        subtracts, so the centered cosines decide. Two classes alone are always opposite once centered, so
        with C = 2 the raw cosine decides.
        """
        deciding = self.raw if len(self.raw) == 2 else self.centered
        return [pair for pair in combinations(range(len(self.raw)), 2) if deciding[pair] > CLOSE_COSINE]


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

    `class_names` are those of a detector, in its order; None takes all classes of the file, in its order.
    `where` is the name of the file, for messages.

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
    """Compare the mean vectors of the classes' texts."""
    means = bank.prompts.mean(dim=1)
    raw, centered = (F.normalize(vectors, dim=-1) for vectors in (means, means - means.mean(dim=0)))
    return ClassCosines(raw=raw @ raw.T, centered=centered @ centered.T)


def describe_text_bank(bank: TextBank) -> str:
    """Describe sizes, encoder, both matrices of cosines, and the pairs of classes with similar texts."""
    num_classes, num_prompts, dim = bank.prompts.shape
    names, cosines = bank.class_names, class_cosines(bank)
    lines = [
        f"{num_classes} classes with {num_prompts} prompts, {len(bank.background)} of the background, "
        f"{dim} numbers each",
        f"encoder  {bank.encoder}",
        f"weights  {bank.weights_hash or 'none'}",
        "\ncosines between classes, raw",
        _format_matrix(names, cosines.raw),
        "\ncosines between classes, centered on the mean of the classes as in the fusion head",
        _format_matrix(names, cosines.centered),
    ]
    lines += [
        f"\nwarning: {names[pair[0]]}, {names[pair[1]]}: cosine {cosines.raw[pair]:.3f} raw, "
        f"{cosines.centered[pair]:.3f} centered. Texts above {CLOSE_COSINE} are hard to distinguish: "
        f"describe what makes the classes different."
        for pair in cosines.close_pairs
    ]
    return "\n".join(lines)


def _format_matrix(names: Sequence[str], cosines: Tensor) -> str:
    rows = [[name, *map(format_number, row)] for name, row in zip(names, cosines.tolist(), strict=True)]
    return format_table(["", *map(str, range(len(names)))], rows)


def save_text_bank(bank: TextBank, path: Path) -> None:
    """Write a bank to a `.safetensors` file, atomically. Equal banks give equal bytes.

    Raises:
        ConfigError: If the name ends in something else.
        OSError: If it cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a text bank is a .safetensors file. Give it such a name.")
    content = to_json(bank)
    tensors = {name: content.pop(name) for name in ("prompts", "background")}
    path.parent.mkdir(parents=True, exist_ok=True)
    described = content | {"tensors_hash": hash_tensors(tensors)}
    write_bytes(path, pack_tensors(tensors, name=METADATA_KEY, **described))


def load_text_bank(path: Path, *, class_names: Sequence[str] | None = None) -> TextBank:
    """Read a bank; `class_names` are those of a detector, in the same order as the bank's.

    Raises:
        CheckpointError: If it is missing, damaged, of another version or made for other classes.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such text bank{looked_in(path)}. Build it with deim text-bank.")
    try:
        content = path.read_bytes()
        tensors = load(content)
        text = read_metadata(content).get(METADATA_KEY, "null")
        described = parse_json(text, str(path), error=CheckpointError)
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: damaged or not a text bank ({error}). {ADVICE}") from None
    if not isinstance(described, dict):
        raise CheckpointError(f"{path}: a weights file, but not a text bank. {ADVICE}")
    where = f"{path}: not a complete text bank"
    bank = from_json(TextBank, described | tensors, where=where, error=CheckpointError, advice=ADVICE)
    if described.get("tensors_hash") != hash_tensors(tensors):
        raise CheckpointError(f"{path}: damaged, its numbers have changed since it was written. {ADVICE}")
    if not is_unchanged(content):
        raise CheckpointError(f"{path}: {CHANGED}. {ADVICE}")
    if class_names is not None:
        _check_classes(bank, class_names, path)
    return bank


def _check_classes(bank: TextBank, class_names: Sequence[str], path: Path) -> None:
    advice = "Build the bank again with deim text-bank --checkpoint."
    if len(bank.class_names) != len(class_names):
        raise CheckpointError(
            f"{path}: the text bank has {len(bank.class_names)} classes ({', '.join(bank.class_names)}), "
            f"the detector {len(class_names)} ({', '.join(class_names)}). {advice}"
        )
    differing = [
        f"{path}: class {label} is '{ours}' in the text bank, '{theirs}' in the detector."
        for label, (ours, theirs) in enumerate(zip(bank.class_names, class_names, strict=True))
        if ours != theirs
    ]
    if differing:
        raise CheckpointError("\n".join([*differing, advice]))
