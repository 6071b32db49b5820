"""The choice of the backbone: a new one is added to the union and to the `match`."""

from torch import nn

from deim.model.backbone.dinov3 import DinoV3, DinoV3Options
from deim.model.backbone.interface import Backbone
from deim.model.backbone.spatial_adapter import SpatialAdapterBackbone
from deim.model.backbone.vit_tiny import VitTiny, VitTinyOptions

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
            vit: nn.Module = VitTiny(options, in_channels=in_channels)
        case DinoV3Options():
            vit = DinoV3(options, in_channels=in_channels)
    return SpatialAdapterBackbone(
        vit,
        hidden_dim,
        vit_dim=options.dim,
        adapter_width=options.adapter_width,
        in_channels=in_channels,
        is_nested=isinstance(vit, VitTiny),
    )
