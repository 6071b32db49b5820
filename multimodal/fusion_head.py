"""The fusion head: it moves class logits by the cosine of a query with the text of each class.

The text of class c consists of the embeddings text_ck of its prompts, minus the mean of all classes. With q
the features of a query, z_c the logits of the detector, and all compared vectors of norm 1:

    v    = unit(projection(q))
    u_c  = unit(Σ_k softmax(prompt_logits_c)_k · text_ck - center)
    t_c  = unit(u_c + adapter(u_c))
    f_c  = scale · ⟨v, t_c⟩,                  scale = exp(log_scale) ≤ 100
    z_bg = log mean_j exp(scale · ⟨v, unit(background_j - center)⟩)
    z'_c = z_c + tanh(gate_c) · (f_c - z_bg + bias_c)

The gates start at 0, so that z' = z exactly. Features reach the logits only through their products with text.

Source:
    This project; the learned scale as in CLIP (arXiv:2103.00020), the residual text adapter after
    CLIP-Adapter (arXiv:2110.04544).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.engine.optimizer import ParameterGroup, RecipeOptions

START_SCALE = 1 / 0.07
MAX_SCALE = 100.0
LAYERS_FACTOR, SCALES_FACTOR, GATE_FACTOR = 10.0, 20.0, 200.0
"""Multiples of the learning rate of a class head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScores:
    """Scores of queries by the text, and the text vectors."""

    class_logits: Tensor
    """(B, Q, C) float32 in [-100, 100]: f, the scaled cosines with the text of each class."""
    background_logits: Tensor
    """(B, Q) float32 in [-100, 100]: z_bg."""
    class_text: Tensor
    """(C, D) float32 of norm 1: t."""
    plain_text: Tensor
    """(C, D) float32 of norm 1: u, the text before the adapter."""


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer that starts at 0."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FusionHead(nn.Module):
    """Fuse class logits with text, always in float32.

    Args:
        text: (C, K, D) float, embeddings of K prompts for each class, as in a text bank; none is 0.
        background: (J, D) float, embeddings of prompts for background, the start of learned vectors.
        query_dim: Width of the query features.
        hidden_dim: Hidden width of the projection.
        adapter_dim: Hidden width of the adapter.
    """

    text: Tensor
    center: Tensor

    def __init__(
        self,
        text: Tensor,
        background: Tensor,
        *,
        query_dim: int,
        hidden_dim: int = 1024,
        adapter_dim: int = 256,
    ) -> None:
        super().__init__()
        num_classes, num_prompts, text_dim = text.shape
        self.num_classes, self.query_dim = num_classes, query_dim
        text = F.normalize(text.detach().float(), dim=-1)
        # A single class keeps its direction: minus its mean, nothing would be left of it.
        center = text.mean(dim=(0, 1)) if num_classes > 1 else torch.zeros_like(text[0, 0])
        self.register_buffer("text", text)
        self.register_buffer("center", center)
        self.projection = nn.Sequential(
            nn.LayerNorm(query_dim),
            nn.Linear(query_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, text_dim),
        )
        last = zero_linear(adapter_dim, text_dim)
        self.adapter = nn.Sequential(nn.Linear(text_dim, adapter_dim), nn.GELU(), last)
        # With one prompt the weight is always 1, and no gradient would arrive.
        prompt_logits = torch.zeros(num_classes, num_prompts)
        self.prompt_logits = nn.Parameter(prompt_logits, requires_grad=num_prompts > 1)
        self.background = nn.Parameter(F.normalize(background.detach().float(), dim=-1))
        self.log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
        self.gate = nn.Parameter(torch.zeros(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def compare(self, queries: Tensor) -> TextScores:
        """Compare queries (B, Q, query_dim) with the text of the classes and of the background."""
        with torch.autocast(queries.device.type, enabled=False):
            directions = self._directions(queries)
            plain = self.plain_text()
            adapted = self._adapt(plain)
            scale = self.scale()
            background = F.normalize(self.background - self.center, dim=-1)
            background_logits = torch.logsumexp(scale * (directions @ background.T), dim=-1)
            return TextScores(
                class_logits=scale * (directions @ adapted.T),
                background_logits=background_logits - math.log(len(background)),
                class_text=adapted,
                plain_text=plain,
            )

    def cosines(self, features: Tensor) -> Tensor:
        """Return the cosines (..., C) float32 of features (..., query_dim) with the text of the classes."""
        with torch.autocast(features.device.type, enabled=False):
            return self._directions(features) @ self._adapt(self.plain_text()).T

    def plain_text(self) -> Tensor:
        """(C, D) float32 of norm 1: u, the mean of each class's prompts minus the mean of all classes."""
        weights = self.prompt_logits.softmax(dim=-1)
        return F.normalize((weights[..., None] * self.text).sum(dim=1) - self.center, dim=-1)

    def scale(self) -> Tensor:
        """() float32 in (0, 100]: the factor of all cosines."""
        value = self.log_scale.detach().exp().clamp(max=MAX_SCALE)
        # The gradient ignores the limit, so that a scale that has reached it can decrease again.
        return value * (self.log_scale - self.log_scale.detach()).exp()

    def _directions(self, queries: Tensor) -> Tensor:
        return F.normalize(self.projection(queries.float()), dim=-1)

    def _adapt(self, plain: Tensor) -> Tensor:
        return F.normalize(plain + self.adapter(plain), dim=-1)


def parameter_groups(
    head: nn.Module,
    class_head_delta: nn.Linear | None,
    recipe: RecipeOptions,
    *,
    class_head_from_epoch: int | None = None,
) -> list[ParameterGroup]:
    """Sort the parameters for the optimizer; each group has its flat learning rate as `flat_lr`.

    Gates start at 0 and move by about the learning rate in a step: at the rate of the layers they would not
    open within a run.

    Args:
        head: A fusion head, or a variant of it that names its parameters alike.
        class_head_delta: The trained difference of the class head; None if it is not trained.
        recipe: `lr` is that of the class head; only the weights of the layers decay.
        class_head_from_epoch: First epoch (0-based) that trains the class head.
    """
    named = list(head.named_parameters())

    def of(*attributes: str) -> list[nn.Parameter]:
        return [p for attribute in attributes for name, p in named if name.split(".")[0] == attribute]

    layers = of("projection", "adapter", "layers")
    weights, others = [p for p in layers if p.ndim > 1], [p for p in layers if p.ndim == 1]
    layers_lr = recipe.lr * LAYERS_FACTOR
    groups = [
        parameter_group("text_layers", weights, layers_lr, weight_decay=recipe.weight_decay),
        parameter_group("text_layers_undecayed", others, layers_lr),
        parameter_group("background", of("background"), layers_lr),
        parameter_group("text", of("text"), layers_lr),
        parameter_group("scales", of("log_scale", "bias", "prompt_logits"), recipe.lr * SCALES_FACTOR),
        parameter_group("gate", of("gate"), recipe.lr * GATE_FACTOR),
    ]
    if class_head_delta is not None:
        delta = class_head_delta.parameters()
        first_epoch = class_head_from_epoch or 0
        groups.append(parameter_group("class_head", delta, recipe.lr, first_epoch=first_epoch))
    return [group for group in groups if group["params"]]


def parameter_group(
    name: str,
    parameters: Iterable[nn.Parameter],
    lr: float,
    *,
    weight_decay: float = 0.0,
    first_epoch: int = 0,
) -> ParameterGroup:
    """Return one group for the optimizer; `first_epoch` (0-based) is the first that trains it."""
    return {
        "name": name,
        "params": list(parameters),
        "lr": lr,
        "flat_lr": lr,
        "first_epoch": first_epoch,
        "weight_decay": weight_decay,
    }
