"""What the detector needs of a backbone, and the choice of one."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from deim.model.backbone.dinov3 import DinoV3, DinoV3Options
from deim.model.backbone.spatial_adapter import SpatialAdapterBackbone
from deim.model.backbone.timm import TimmBackbone, TimmOptions
from deim.model.backbone.vit_tiny import VitTiny, VitTinyOptions

BackboneOptions = VitTinyOptions | DinoV3Options | TimmOptions


class Backbone(Protocol):
    """A module that turns images into a feature pyramid. An implementation is also an `nn.Module`."""

    @property
    def pixel_filter_keys(self) -> tuple[str, ...]:
        """Endings of the names of the convolution weights that see the image, (out, in_channels, h, w)."""

    @property
    def in_channels(self) -> int:
        """Number of image channels."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each map in pixels, finest first. Image sides must be multiples of the last one."""

    @property
    def pretrained(self) -> nn.Module:
        """The part that backbone weight files fill. It learns at `recipe.backbone_lr`."""

    def checkpointable_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks whose activations may be recomputed in the backward pass."""

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the forward pass in place; inherited from `nn.Module`."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a map (B, hidden_dim, H/s, W/s) for each stride s of images (B, in_channels, H, W)."""


def build_backbone(options: BackboneOptions, hidden_dim: int, *, in_channels: int = 3) -> Backbone:
    """Build a backbone with random weights, whose maps have `hidden_dim` channels.

    Raises:
        ConfigError: If timm is not installed or has no such network.
    """
    transformer: nn.Module
    match options:
        case VitTinyOptions():
            # Official weights hold this family one level deeper.
            transformer = nn.ModuleDict({"_model": VitTiny(options, in_channels=in_channels)})
        case DinoV3Options():
            transformer = DinoV3(options, in_channels=in_channels)
        case TimmOptions():
            return TimmBackbone(options, hidden_dim=hidden_dim, in_channels=in_channels)
    return SpatialAdapterBackbone(
        transformer,
        dim=options.dim,
        width=options.adapter_width,
        hidden_dim=hidden_dim,
        in_channels=in_channels,
    )
