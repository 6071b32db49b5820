"""Several input sizes, one drawn for each batch."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from deim.structures import Target


def compute_sizes(size_hw: tuple[int, int], max_change: float, *, repeat: int) -> tuple[tuple[int, int], ...]:
    """Compute the sizes from which the size of a batch is drawn.

    Args:
        size_hw: Usual size in pixels, multiples of 32.
        max_change: Maximum change as a share of the height, in [0, 0.5].
        repeat: How often the usual size is listed.

    Returns:
        Heights in steps of 32 within the maximum change, as many above as below, with widths of the same
        share in multiples of 32; at least 64 both. Empty if there is no size but the usual one.

    Source:
        The list of DEIMv2's loader.
    """
    if max_change == 0:
        return ()
    height, width = size_hw
    # Rounded: 0.7 · 320 is a little less than 224 in binary fractions.
    lowest = max(64, int(round((1 - max_change) * height, 6) // 32) * 32)
    highest = int(round((1 + max_change) * height, 6) // 32) * 32
    below = list(range(lowest, height, 32))
    above = [highest - 32 * number for number in range(len(below)) if highest - 32 * number > height]
    if not below and not above:
        return ()
    heights = [*below, *[height] * repeat, *above]
    return tuple((side, max(64, round(side * width / height / 32) * 32)) for side in heights)


def resize_batch(
    images: Tensor, targets: Sequence[Target], size_hw: tuple[int, int]
) -> tuple[Tensor, list[Target]]:
    """Resize images (B, C, H, W), bilinear with antialiasing; areas are scaled, fractions stay."""
    height, width = images.shape[-2:]
    factor = size_hw[0] * size_hw[1] / (height * width)
    scaled: list[Target] = [{**target, "area": target["area"] * factor} for target in targets]
    return TF.resize(images, list(size_hw), antialias=True), scaled
