"""AdamW and its parameter groups."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from deim.config.checks import STEPS, below, check, not_positive, outside
from deim.model.weights import AnyModel


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeOptions:
    """Optimizer: AdamW with one learning rate for the backbone and one for the rest."""

    lr: float = 5e-4
    """Learning rate outside the pretrained part of the backbone, in the flat phase."""
    backbone_lr: float = 2.5e-5
    """Learning rate of the pretrained part of the backbone, in the flat phase."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running moments."""
    clip_grad_norm: float = 0.1
    """Largest global L2 norm of the gradient; larger gradients are scaled down to it."""
    max_skipped_steps: int = 20
    """Steps in a row without a finite loss and gradient, after which the last good state is restored."""
    parameter_groups: Literal["by_type", "reference"] = "by_type"
    """`by_type` decays no norm, bias, scale or token; `reference` decays what DEIMv2 decays."""

    def __post_init__(self) -> None:
        check(
            [
                *not_positive(lr=self.lr, backbone_lr=self.backbone_lr, clip_grad_norm=self.clip_grad_norm),
                *below(0, weight_decay=self.weight_decay),
                *outside(1, STEPS, max_skipped_steps=self.max_skipped_steps),
                (not all(0 <= b < 1 for b in self.betas), f"betas: got {[*self.betas]}, each needs [0, 1)"),
            ]
        )


ParameterGroup = dict[str, Any]
"""A group as `torch.optim` takes it, with its flat learning rate as `flat_lr`."""
DECAYED_MODULES = (nn.Linear, nn.Conv2d, nn.Embedding, nn.MultiheadAttention)
REFERENCE_EXEMPT = re.compile("norm|bn|bias")
REFERENCE_NEW_PARTS = re.compile("sta|encoder|decoder")


def build_optimizer(model: AnyModel, recipe: RecipeOptions) -> torch.optim.AdamW:
    """Build AdamW for the trainable parameters, sorted by learning rate and weight decay.

    Returns:
        Each of its four groups has its flat learning rate as `flat_lr`: pretrained decayed, pretrained not
        decayed, others not decayed, others decayed.
    """
    is_by_type = recipe.parameter_groups == "by_type"
    decayed = _decayed_by_type(model) if is_by_type else _decayed_by_reference(model)
    in_backbone = {id(parameter) for parameter in model.backbone.pretrained.parameters()}
    order = ((True, True), (True, False), (False, False), (False, True))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {key: [] for key in order}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[id(parameter) in in_backbone, name in decayed].append(parameter)
    rates = {True: recipe.backbone_lr, False: recipe.lr}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[is_backbone],
                "flat_lr": rates[is_backbone],
                "weight_decay": recipe.weight_decay if is_decayed else 0.0,
            }
            for (is_backbone, is_decayed), parameters in groups.items()
        ],
        lr=recipe.lr,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=True,  # several times faster than a loop over the tensors, on a CPU too
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, *, epoch: int = 0) -> None:
    """Set every group's learning rate to `factor` times its flat one.

    A group with a later `first_epoch` waits: its rate is 0 and `drop_waiting_gradients` drops its
    gradients.
    """
    for group in optimizer.param_groups:
        group["waits"] = epoch < group.get("first_epoch", 0)
        group["lr"] = 0.0 if group["waits"] else group["flat_lr"] * factor


def drop_waiting_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Drop the gradients of groups that wait, so that neither clipping nor the moments see them."""
    for group in optimizer.param_groups:
        if group.get("waits", False):
            for parameter in group["params"]:
                parameter.grad = None


def _decayed_by_type(model: nn.Module) -> set[str]:
    """Names of the weights of linear, convolution, attention and embedding layers."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, DECAYED_MODULES)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    }


def _decayed_by_reference(model: nn.Module) -> set[str]:
    """Names that the official recipe decays: also tokens, layer scales, and norms that are not named so."""
    return {
        name
        for name, _ in model.named_parameters()
        if not (REFERENCE_EXEMPT.search(name) and ("dinov3" in name or REFERENCE_NEW_PARTS.search(name)))
    }
