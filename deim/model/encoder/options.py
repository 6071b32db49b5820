"""TODO."""

from dataclasses import dataclass

from deim.config.checks import below, check


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridEncoderOptions:
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
