"""TODO."""

from dataclasses import dataclass
from typing import Literal

from deim.config.checks import below, check


@dataclass(frozen=True, kw_only=True, slots=True)
class VitTinyOptions:
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
class DinoV3Options:
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
