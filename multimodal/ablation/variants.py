"""Variants of the fusion that differ only in their text.

A few fixed vectors enter a learned projection only through the cosines between them. A head that beats the
frozen detector therefore proves nothing about its text: the same head with other vectors, or with none, must
do worse.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.engine.optimizer import ParameterGroup, RecipeOptions
from deim.errors import ConfigError
from deim.structures import Target
from multimodal.fusion_head import (
    LAYERS_FACTOR,
    START_SCALE,
    FusionHead,
    TextScores,
    parameter_group,
    parameter_groups,
    zero_linear,
)
from multimodal.options import TextFusionOptions
from multimodal.wrapper import DetectorOutputs, FusedOutput, fuse_outputs

Variant = Literal["text", "random", "shuffled", "one_hot", "free", "mlp", "class_head"]

VARIANTS: Final[Mapping[str, str]] = {
    "text": "the real text",
    "random": "random vectors",
    "shuffled": "shuffled descriptions",
    "one_hot": "one-hot vectors",
    "free": "free prototypes",
    "mlp": "an MLP without text",
    "class_head": "the class head alone",
}
"""The source of the class vectors of each variant."""
ABLATED_VARIANTS: Final[tuple[Variant, ...]] = get_args(Variant)[1:]


class ResidualHead(nn.Module):
    """An MLP on the query features moves the class logits: scale, gates and bias of a fusion head, no text.

    It has about as many parameters as the fusion head that it replaces.
    """

    no_text: Tensor

    def __init__(self, replaced: FusionHead) -> None:
        super().__init__()
        query_dim, num_classes, width = replaced.query_dim, replaced.num_classes, replaced.text.shape[-1]
        fixed = 2 * query_dim + width + (width + 1) * (num_classes + 1) + 2 * num_classes + 1
        num_parameters = sum(parameter.numel() for parameter in replaced.parameters())
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
        # The anchor term of the loss compares the text with itself and is 0.
        self.register_buffer("no_text", torch.ones(num_classes, 1), persistent=False)

    def compare(self, queries: Tensor) -> TextScores:
        """Score queries (B, Q, query_dim) in float32; all classes have the same vector for their text."""
        with torch.autocast(queries.device.type, enabled=False):
            columns = self.log_scale.exp() * self.layers(queries.float())
        return TextScores(
            class_logits=columns[..., :-1],
            background_logits=columns[..., -1],
            class_text=self.no_text,
            plain_text=self.no_text,
        )


class FusionModel(nn.Module):
    """The trained part of a text fusion alone, on outputs of the frozen detector; see `fuse_outputs`."""

    def __init__(self, head: FusionHead | ResidualHead, class_head_delta: nn.Linear | None) -> None:
        super().__init__()
        self.head = head
        self.class_head_delta = class_head_delta

    def forward(
        self,
        images: DetectorOutputs,
        targets: Sequence[Target] | None = None,  # noqa: ARG002
        *,
        max_boxes: int | None = None,  # noqa: ARG002
    ) -> FusedOutput:
        """Fuse the outputs that stand for images; `targets` and `max_boxes` are not used."""
        return fuse_outputs(images, self.head, self.class_head_delta)


def build_variant(
    variant: Variant, real: FusionHead, options: TextFusionOptions, *, seed: int
) -> FusionModel:
    """Build a variant of the real head; before its first step its output is the detector's.

    The seed is that of vectors and weights. The layers of all variants with a projection start alike.

    Raises:
        ConfigError: If the text is too narrow for one-hot vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    text, background = real.text.cpu(), real.background.detach().cpu()
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
            query_dim=real.query_dim,
            hidden_dim=options.hidden_dim,
            adapter_dim=options.adapter_dim,
        )
        delta = None
        if variant == "class_head" or options.class_head_from_epoch is not None:
            delta = zero_linear(head.query_dim, head.num_classes)
        if variant == "mlp":
            return FusionModel(ResidualHead(head), delta)
    if variant == "free":
        prototypes = nn.Parameter(head.text)
        del head.text
        head.text = prototypes
    elif variant == "class_head":
        head.requires_grad_(False)
    return FusionModel(head, delta)


def variant_groups(
    variant: Variant, model: FusionModel, recipe: RecipeOptions, *, class_head_from_epoch: int | None
) -> list[ParameterGroup]:
    """Sort a variant's parameters for the optimizer, at the rates of `fusion_head.parameter_groups`.

    The variant `class_head` trains the class head from the first epoch, at the rate of the fusion layers: at
    its usual rate it would hardly move within a run.
    """
    delta = model.class_head_delta
    if variant == "class_head":
        assert delta is not None
        return [parameter_group("class_head", delta.parameters(), recipe.lr * LAYERS_FACTOR)]
    return parameter_groups(model.head, delta, recipe, class_head_from_epoch=class_head_from_epoch)


def swap_text(model: FusionModel, pair: tuple[int, int]) -> FusionModel:
    """Copy a model with a fusion head and exchange the text of two classes, with their prompt weights."""
    swapped = copy.deepcopy(model)
    head = swapped.head
    assert isinstance(head, FusionHead)
    first, second = pair
    with torch.no_grad():
        for rows in (head.text, head.prompt_logits):
            rows[[first, second]] = rows[[second, first]]
    return swapped


def derangement(number: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation (number,) int64 without fixed points; all are equally likely."""
    assert number >= 2
    places = torch.arange(number)
    while True:
        order = torch.randperm(number, generator=generator)
        if not (order == places).any():
            return order


def _one_hot(text: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Return a basis vector for each class, the same for all its prompts, and for each background prompt."""
    (num_classes, num_prompts, width), num_background = text.shape, len(background)
    if num_classes + num_background > width:
        raise ConfigError(
            f"text: got width {width} for {num_classes} classes and {num_background} background prompts. "
            f"One-hot vectors need one number each. Leave one_hot out of --variants."
        )
    basis = torch.eye(width)
    classes = basis[:num_classes, None].expand(-1, num_prompts, -1)
    return classes.contiguous(), basis[num_classes : num_classes + num_background]
