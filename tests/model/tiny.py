"""Small detectors, images and targets, for the tests of model and loss."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from deim.model.backbone.dinov3 import DinoV3Options
from deim.model.backbone.vit_tiny import VitTinyOptions
from deim.model.decoder.options import DecoderOptions
from deim.model.detector import Detector, ModelOptions
from deim.model.encoder.hybrid import HybridEncoderOptions
from deim.structures import Target

Kind = Literal["vit_tiny", "dinov3", "dinov3_swiglu"]


def tiny_detector(
    kind: Kind = "vit_tiny",
    *,
    num_classes: int = 3,
    num_layers: int = 3,
    num_queries: int = 20,
    num_denoising: int = 6,
    dim: int = 32,
    hidden_dim: int = 32,
    seed: int = 0,
    shake: float = 0.0,
    channels: int = 3,
) -> Detector:
    """Build a detector of about 0.1 million parameters.

    Args:
        kind: Backbone family.
        num_classes: C.
        num_layers: Decoder layers.
        num_queries: Q.
        num_denoising: Denoising positives an image, about.
        dim: Width of the transformer.
        hidden_dim: Width of encoder and decoder.
        seed: Of the weights.
        shake: Standard deviation of noise on all trainable weights. Several heads start at zero, and would
            hide errors behind them.
        channels: Of the images.
    """
    return_blocks = (0, 1, 2)
    backbone: VitTinyOptions | DinoV3Options
    if kind == "vit_tiny":
        backbone = VitTinyOptions(
            type="vit_tiny", dim=dim, depth=3, num_heads=2, return_blocks=return_blocks, adapter_width=4
        )
    else:
        backbone = DinoV3Options(
            type="dinov3",
            dim=dim,
            depth=3,
            num_heads=2,
            return_blocks=return_blocks,
            adapter_width=4,
            ffn="swiglu" if kind == "dinov3_swiglu" else "mlp",
        )
    config = ModelOptions(
        hidden_dim=hidden_dim,
        backbone=backbone,
        encoder=HybridEncoderOptions(num_heads=4, dim_feedforward=32, expansion=0.5, depth_mult=0.34),
        decoder=DecoderOptions(
            num_layers=num_layers,
            num_heads=4,
            dim_feedforward=32,
            num_queries=num_queries,
            num_points=(2, 3, 2),
            num_denoising=num_denoising,
        ),
    )
    torch.manual_seed(seed)
    model = Detector(config, num_classes, channels=channels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and shake:
                parameter += shake * torch.randn_like(parameter)
    return model


def random_images(batch: int, height: int = 64, width: int = 64, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def random_targets(counts: Sequence[int], *, num_classes: int = 3, seed: int = 0) -> list[Target]:
    """Boxes with centers in [0.2, 0.8] and sides in [0.05, 0.35]: all inside the image."""
    generator = torch.Generator().manual_seed(2000 + seed)
    targets: list[Target] = []
    for count in counts:
        center = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
        sides = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, num_classes, (count,), generator=generator)
        targets.append({"boxes": torch.cat([center, sides], dim=1), "labels": labels})
    return targets
