"""From configuration to detector."""

from deim.config.loader import load_block
from deim.config.catalog import shipped_configs_dir
from deim.errors import ConfigError
from deim.model.backbone.options import DinoV3Options, VitTinyOptions
from deim.model.backbone.spatial_adapter import SpatialAdapterBackbone
from deim.model.backbone.vision_transformer import VisionTransformer
from deim.model.decoder.decoder import Decoder
from deim.model.detector import Detector
from deim.model.encoder.hybrid import HybridEncoder
from deim.model.options import ModelOptions

VARIANTS = ("nano", "s", "m", "l", "x")


def build_model(config: ModelOptions, num_classes: int, *, channels: int = 3) -> Detector:
    """Build the detector with random weights; see `weights.py` for loading some.

    Args:
        config: The `model` block.
        num_classes: Classes to tell apart, at least 1.
        channels: Of the images, at least 1.
    """
    decoder = config.decoder
    return Detector(
        _build_backbone(config.backbone, config.hidden_dim, channels),
        HybridEncoder(
            config.hidden_dim,
            config.encoder.num_heads,
            dim_feedforward=config.encoder.dim_feedforward,
            expansion=config.encoder.expansion,
            depth_mult=config.encoder.depth_mult,
        ),
        decoder=Decoder(
            config.hidden_dim,
            num_classes,
            num_layers=decoder.num_layers,
            num_heads=decoder.num_heads,
            dim_feedforward=decoder.dim_feedforward,
            num_queries=decoder.num_queries,
            num_points=decoder.num_points,
            reg_max=decoder.reg_max,
            reg_scale=decoder.reg_scale,
            up=decoder.up,
            num_denoising=decoder.num_denoising,
            label_noise_ratio=decoder.label_noise_ratio,
            box_noise_scale=decoder.box_noise_scale,
        ),
    )


def build_variant(name: str, *, num_classes: int) -> Detector:
    """Build one of the shipped sizes with random weights.

    Args:
        name: `nano`, `s`, `m`, `l` or `x`.
        num_classes: Classes to tell apart, at least 1.

    Raises:
        ConfigError: If there is no such size.
    """
    if name not in VARIANTS:
        raise ConfigError(f"model variant: got {name!r}. Choose one of {', '.join(VARIANTS)}.")
    path = shipped_configs_dir() / "_base_" / f"model_{name}.yml"
    return build_model(load_block(path, "model", ModelOptions), num_classes)


def _build_backbone(
    config: VitTinyOptions | DinoV3Options, hidden_dim: int, channels: int
) -> SpatialAdapterBackbone:
    dinov3 = isinstance(config, DinoV3Options)
    vit = VisionTransformer(
        config.dim,
        config.depth,
        num_heads=config.num_heads,
        return_blocks=config.return_blocks,
        dinov3=dinov3,
        ffn=config.ffn if isinstance(config, DinoV3Options) else "mlp",
        channels=channels,
    )
    return SpatialAdapterBackbone(
        vit,
        config.dim,
        adapter_width=config.adapter_width,
        hidden_dim=hidden_dim,
        nested=not dinov3,
        channels=channels,
    )
