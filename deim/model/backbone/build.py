"""The choice of the backbone: a new one is added to the union and to the `match`."""

from deim.model.backbone.dinov3 import DinoV3Options, build_dinov3
from deim.model.backbone.interface import Backbone
from deim.model.backbone.vit_tiny import VitTinyOptions, build_vit_tiny

BackboneOptions = VitTinyOptions | DinoV3Options


def build_backbone(options: BackboneOptions, hidden_dim: int, *, in_channels: int = 3) -> Backbone:
    """Build a backbone with random weights.

    Args:
        options: The `model.backbone` block.
        hidden_dim: Channels of the output maps.
        in_channels: Number of image channels, at least 1.
    """
    match options:
        case VitTinyOptions():
            return build_vit_tiny(options, hidden_dim, in_channels=in_channels)
        case DinoV3Options():
            return build_dinov3(options, hidden_dim, in_channels=in_channels)
