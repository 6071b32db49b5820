"""Variants of the fusion that differ in their text alone: what tells its gain from that of training.

A few fixed vectors enter a learned projection only through the cosines between them. So a head that beats the
frozen detector proves nothing of the text: the same head with other vectors, or with none, must do worse.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.errors import ConfigError
from deim.structures import Target
from multimodal.fusion_head import (
    BACKGROUND_FACTOR,
    GATE_FACTOR,
    SCALES_FACTOR,
    START_SCALE,
    TEXT_LAYERS_FACTOR,
    FusionHead,
    TextEvidence,
    move_logits,
    parameter_group,
    parameter_groups,
)
from multimodal.wrapper import DetectorFindings, FusedOutput, fuse_findings, new_class_head_delta

Variant = Literal["text", "random", "shuffled", "one_hot", "free", "mlp", "class_head"]

VARIANTS: Final[Mapping[Variant, str]] = {
    "text": "the real text",
    "random": "random vectors",
    "shuffled": "shuffled descriptions",
    "one_hot": "one-hot vectors",
    "free": "free prototypes",
    "mlp": "an MLP without text",
    "class_head": "the class head alone",
}
"""What each variant has in place of the text, in words; all but the first are controls."""

CONTROLS: Final[tuple[Variant, ...]] = tuple(name for name in VARIANTS if name != "text")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VariantSource:
    """What all variants are built from."""

    query_dim: int
    """Width of the query features."""
    text: Tensor
    """(C, K, D) float: the real text."""
    background: Tensor
    """(J, D) float: that of faultless surface."""
    hidden_dim: int
    """Hidden width of the projection."""
    adapter_dim: int
    """Hidden width of the adapter."""
    class_head_from_epoch: int | None
    """First epoch (0-based) in which all variants train the last class head too; None for never."""


class ResidualHead(nn.Module):
    """Class logits moved by an MLP on the query features: scale, gates and bias of a fusion head, no text.

    Args:
        query_dim: Width of the query features.
        num_classes: C.
        width: Width of the second hidden layer.
        num_parameters: To come near to, by the width of the first.
    """

    no_text: Tensor

    def __init__(self, query_dim: int, num_classes: int, *, width: int, num_parameters: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.query_dim = query_dim
        fixed = 2 * query_dim + width + (width + 1) * (num_classes + 1) + 2 * num_classes + 1
        hidden = max(1, round((num_parameters - fixed) / (query_dim + 1 + width)))
        self.layers = nn.Sequential(
            nn.LayerNorm(query_dim),
            nn.Linear(query_dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, width),
            nn.GELU(),
            nn.Linear(width, num_classes + 1),
        )
        self.log_scale = nn.Parameter(torch.tensor(START_SCALE).log())
        self.gate = nn.Parameter(torch.zeros(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        # For the anchor of the loss, which is then 0: there is no text to keep near to.
        self.register_buffer("no_text", torch.ones(num_classes, 1), persistent=False)

    def evidence(self, queries: Tensor) -> TextEvidence:
        """Score queries (B, Q, query_dim) in float32; what stands for text is the same for all classes."""
        with torch.autocast(queries.device.type, enabled=False):
            columns = self.log_scale.exp() * self.layers(queries.float())
        return TextEvidence(
            class_logits=columns[..., :-1],
            background_logits=columns[..., -1],
            class_text=self.no_text,
            plain_text=self.no_text,
        )

    def fuse(self, logits: Tensor, evidence: TextEvidence) -> Tensor:
        """Move logits (B, Q, C) by the evidence for the same queries, as a fusion head does."""
        return move_logits(logits, evidence, gate=self.gate, bias=self.bias)


class FindingsFusion(nn.Module):
    """The trained part of phase 2 alone: it fuses what the frozen detector found.

    Args:
        head: Moves the logits.
        class_head_delta: Adds to the detector's logits first; None for no change.
    """

    def __init__(self, head: FusionHead | ResidualHead, class_head_delta: nn.Linear | None) -> None:
        super().__init__()
        self.head = head
        self.class_head_delta = class_head_delta

    def forward(
        self,
        images: DetectorFindings,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
        *,
        max_boxes: int | None = None,  # noqa: ARG002
    ) -> FusedOutput:
        """Fuse the findings that stand for images; `targets` and `max_boxes` are not used."""
        return fuse_findings(images, self.head, self.class_head_delta)


def build_variant(variant: Variant, source: VariantSource, *, seed: int) -> FindingsFusion:
    """Build a variant; before its first step its output is the detector's.

    The layers of all variants with a projection start at the same weights. Vectors are drawn anew for each
    seed.

    Args:
        variant: Which one.
        source: What it is built from.
        seed: Of vectors and weights.

    Raises:
        ConfigError: If the text is too narrow for one-hot vectors.
        ValueError: If descriptions of one class are to be shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    text, background = source.text.cpu(), source.background.cpu()
    match variant:
        case "random" | "free":
            text, background = (
                F.normalize(torch.randn(vectors.shape, generator=generator), dim=-1)
                for vectors in (text, background)
            )
        case "shuffled":
            text = text[derangement(len(text), generator)]
        case "one_hot":
            text, background = _one_hot(text, background)
        case "text" | "mlp" | "class_head":
            pass
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = FusionHead(
            text,
            background,
            query_dim=source.query_dim,
            hidden_dim=source.hidden_dim,
            adapter_dim=source.adapter_dim,
        )
        size = sum(parameter.numel() for parameter in head.parameters())
        change = None
        if variant == "class_head" or source.class_head_from_epoch is not None:
            change = new_class_head_delta(head.query_dim, head.num_classes)
        if variant == "mlp":
            residual = ResidualHead(
                head.query_dim, head.num_classes, width=text.shape[-1], num_parameters=size
            )
            return FindingsFusion(residual, change)
    if variant == "free":
        prototypes = nn.Parameter(head.text)
        del head.text
        head.text = prototypes
    elif variant == "class_head":
        head.requires_grad_(False)
    return FindingsFusion(head, change)


def variant_groups(
    variant: Variant,
    model: FindingsFusion,
    base_lr: float,
    *,
    weight_decay: float,
    class_head_from_epoch: int | None,
) -> list[dict[str, Any]]:
    """Sort a variant's parameters for the optimizer, at the rates of the fusion head's.

    The class head alone is trained from the first epoch on, at the rate of the fusion head's layers: at that
    which it has beside them it would hardly move within a run, and be no rival.

    Args:
        variant: Which one.
        model: From `build_variant`.
        base_lr: Learning rate of a class head that is trained beside a fusion head.
        weight_decay: Of the weights of the layers.
        class_head_from_epoch: First epoch (0-based) in which that is trained; None for never.
    """
    head, change = model.head, model.class_head_delta
    layers_lr = base_lr * TEXT_LAYERS_FACTOR
    if variant == "class_head":
        assert change is not None
        return [parameter_group("class_head", list(change.parameters()), layers_lr)]
    first_epoch = class_head_from_epoch or 0
    if isinstance(head, FusionHead):
        groups = parameter_groups(
            head,
            base_lr,
            weight_decay=weight_decay,
            class_head_delta=change,
            class_head_from_epoch=first_epoch,
        )
        if isinstance(head.text, nn.Parameter):
            groups.append(parameter_group("text", [head.text], base_lr * BACKGROUND_FACTOR))
        return groups
    layers = list(head.layers.parameters())
    groups = [
        parameter_group("layers", [p for p in layers if p.ndim > 1], layers_lr, weight_decay=weight_decay),
        parameter_group("layers_undecayed", [p for p in layers if p.ndim == 1], layers_lr),
        parameter_group("scales", [head.log_scale, head.bias], base_lr * SCALES_FACTOR),
        parameter_group("gate", [head.gate], base_lr * GATE_FACTOR),
    ]
    if change is not None:
        groups.append(
            parameter_group("class_head", list(change.parameters()), base_lr, first_epoch=first_epoch)
        )
    return groups


def swap_text(model: FindingsFusion, pair: tuple[int, int]) -> FindingsFusion:
    """A copy in which two classes have each other's text, with what was learned of its prompts.

    Args:
        model: With a fusion head.
        pair: Two class indices.
    """
    swapped = copy.deepcopy(model)
    head = swapped.head
    assert isinstance(head, FusionHead)
    one, other = pair
    with torch.no_grad():
        for rows in (head.text, head.prompt_logits):
            rows[[one, other]] = rows[[other, one]]
    return swapped


def derangement(number: int, generator: torch.Generator) -> Tensor:
    """A random order in which nothing stays where it was, each as likely as any other.

    Args:
        number: Of things.
        generator: Of the draw.

    Returns:
        (number,) int64, positions from 0.

    Raises:
        ValueError: If there are fewer than two.
    """
    if number < 2:
        raise ValueError(f"derangement: got {number} to put in another order. It takes at least 2.")
    places = torch.arange(number)
    while True:
        order = torch.randperm(number, generator=generator)
        if not (order == places).any():
            return order


def _one_hot(text: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """A basis vector for each class, the same for all its prompts, and one for each background prompt."""
    (num_classes, num_prompts, width), num_background = text.shape, len(background)
    if num_classes + num_background > width:
        raise ConfigError(
            f"text: got width {width} for {num_classes} classes and {num_background} background prompts. "
            f"One-hot vectors need one number each. Name all --controls but one_hot."
        )
    basis = torch.eye(width)
    classes = basis[:num_classes, None].expand(-1, num_prompts, -1)
    return classes.contiguous(), basis[num_classes : num_classes + num_background]
