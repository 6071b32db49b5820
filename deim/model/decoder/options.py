"""The options of the decoder."""

from dataclasses import dataclass

from deim.config.checks import (
    HEADS,
    LAYERS,
    QUERIES,
    REPEATS,
    WIDTH,
    below,
    check,
    not_fraction,
    not_positive,
    outside,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderOptions:
    """Transformer decoder with iterative refinement of edge distributions."""

    num_layers: int = 4
    """Decoder layers, at least 2."""
    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Twice the hidden width of the gated feed-forward; even."""
    num_queries: int = 300
    """Object queries of an image; also the number of detections kept."""
    num_points: tuple[int, int, int] = (3, 6, 3)
    """Sampling points of each head at strides 8, 16 and 32."""
    reg_max: int = 32
    """Number of bins of an edge distribution minus one; even."""
    reg_scale: float = 4.0
    """Distances are in units of box side / reg_scale."""
    up: float = 0.5
    """Half range of the fine bins, in units of reg_scale."""
    num_denoising: int = 100
    """Approximate number of positive denoising queries of an image; 0 switches denoising off."""
    label_noise_ratio: float = 0.5
    """Twice the probability that a denoising query gets a random label, in [0, 1]."""
    box_noise_scale: float = 1.0
    """Size of the box noise in units of half the box side, at least 0."""

    def __post_init__(self) -> None:
        check(
            [
                *outside(2, LAYERS, num_layers=self.num_layers),
                *outside(2, WIDTH, dim_feedforward=self.dim_feedforward),
                *outside(1, HEADS, num_heads=self.num_heads),
                *outside(1, QUERIES, num_queries=self.num_queries),
                *outside(0, QUERIES, num_denoising=self.num_denoising),
                *outside(1, REPEATS, num_points=self.num_points),
                *outside(8, WIDTH, reg_max=self.reg_max),
                *below(0, box_noise_scale=self.box_noise_scale),
                *not_positive(reg_scale=self.reg_scale, up=self.up),
                *not_fraction(label_noise_ratio=self.label_noise_ratio),
                (self.dim_feedforward % 2 != 0, f"dim_feedforward: got {self.dim_feedforward}, must be even"),
                (self.reg_max % 2 != 0, f"reg_max: got {self.reg_max}, needs an even number of at least 8"),
            ]
        )
