"""The options of the model: backbone, encoder, decoder."""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import below, check, not_fraction, not_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class VitTinyConfig:
    """Plain vision transformer with rotary positions: the distilled ViT-Tiny family of the S and M models."""

    type: Literal["vit_tiny"]
    dim: int
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (3, 7, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 16
    """Channels of the first convolution of the spatial adapter."""

    def __post_init__(self) -> None:
        _check_vit(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoV3Config:
    """DINOv3 vision transformer: register tokens, layer scale, masked key bias; the backbone of L and X."""

    type: Literal["dinov3"]
    dim: int = 384
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (5, 8, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 32
    """Channels of the first convolution of the spatial adapter."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward of each block: ViT-S has `mlp`, ViT-S+ has `swiglu`."""

    def __post_init__(self) -> None:
        _check_vit(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


def _check_vit(
    dim: int, depth: int, num_heads: int, return_blocks: tuple[int, int, int], adapter_width: int
) -> None:
    check(
        [
            *below(1, dim=dim, depth=depth, num_heads=num_heads, adapter_width=adapter_width),
            (
                dim % (max(num_heads, 1) * 4) != 0,
                f"dim: {dim} is not a multiple of num_heads · 4 = {num_heads * 4}",
            ),
            (
                list(return_blocks) != sorted(set(return_blocks))
                or not all(0 <= block < depth for block in return_blocks),
                f"return_blocks: got {list(return_blocks)}, needs three ascending blocks in [0, {depth})",
            ),
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Hybrid encoder: attention at stride 32, then fusion up and down the pyramid."""

    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Hidden width of the attention layer's feed-forward."""
    expansion: float = 1.0
    """Width of the fusion blocks relative to half of `model.hidden_dim`, in (0, 4]."""
    depth_mult: float = 1.0
    """Fusion blocks have round(3 · depth_mult) convolutions in sequence."""

    def __post_init__(self) -> None:
        check(
            [
                *below(1, num_heads=self.num_heads, dim_feedforward=self.dim_feedforward),
                (not 0 < self.expansion <= 4, f"expansion: got {self.expansion}, needs (0, 4]"),
                (round(3 * self.depth_mult) < 1, f"depth_mult: got {self.depth_mult}, gives no block at all"),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Transformer decoder with iterative refinement of edge distributions."""

    num_layers: int = 4
    """Decoder layers, at least 2."""
    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Twice the hidden width of the gated feed-forward; even."""
    num_queries: int = 300
    """Object queries an image, and detections kept an image."""
    num_points: tuple[int, int, int] = (3, 6, 3)
    """Sampling points of each head at strides 8, 16 and 32."""
    reg_max: int = 32
    """Bins of an edge's distance distribution, less one; even."""
    reg_scale: float = 4.0
    """Distances are in units of box side / reg_scale."""
    up: float = 0.5
    """Half range of the fine bins, in units of reg_scale."""
    num_denoising: int = 100
    """Denoising queries an image and polarity, about; 0 switches denoising off."""
    label_noise_ratio: float = 0.5
    """Twice the probability that a denoising query gets a random label, in [0, 1]."""
    box_noise_scale: float = 1.0
    """Size of the box noise in units of half the box side, at least 0."""

    def __post_init__(self) -> None:
        check(
            [
                *below(2, num_layers=self.num_layers, dim_feedforward=self.dim_feedforward),
                *below(1, num_heads=self.num_heads, num_queries=self.num_queries),
                *below(0, num_denoising=self.num_denoising, box_noise_scale=self.box_noise_scale),
                *not_positive(reg_scale=self.reg_scale, up=self.up),
                *not_fraction(label_noise_ratio=self.label_noise_ratio),
                (self.dim_feedforward % 2 != 0, f"dim_feedforward: got {self.dim_feedforward}, must be even"),
                (min(self.num_points) < 1, f"num_points: got {list(self.num_points)}, each at least 1"),
                (
                    self.reg_max < 8 or self.reg_max % 2 != 0,
                    f"reg_max: got {self.reg_max}, needs an even number of at least 8",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The detector's architecture and the weights it starts from."""

    name: str
    """Name in logs and reports, such as `deimv2-m`."""
    hidden_dim: int
    """Width of encoder and decoder; a multiple of 4 and of the numbers of heads."""
    backbone: VitTinyConfig | DinoV3Config
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    init_from: str | None = None
    """Weights to start from: a checkpoint of this project, an official DEIMv2 file, or a backbone file."""

    def __post_init__(self) -> None:
        heads = {max(self.encoder.num_heads, 1), max(self.decoder.num_heads, 1), 4}
        check(
            [
                *below(4, hidden_dim=self.hidden_dim),
                (
                    any(self.hidden_dim % number != 0 for number in heads),
                    f"hidden_dim: {self.hidden_dim} is not a multiple of 4 and of the numbers of heads",
                ),
            ]
        )
