"""Mix-up: each image of a batch blended with another, with the boxes of both."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deim.data.augment.transform import BlendTransform, Donors
from deim.structures import Target

BLEND_RATIOS = (0.45, 0.55)
"""Range of the share of an image's original pixels where it is blended with another."""


class MixUp(BlendTransform):
    """Blends each image of a batch with the one before it.

    Source:
        Mix-up (arXiv:1710.09412) as in DEIM (arXiv:2412.04234): boxes have no weights.
    """

    def max_boxes(self, num_boxes: int) -> int:
        """Return twice the boxes."""
        return 2 * num_boxes

    def blend(
        self,
        images: Tensor,
        targets: Sequence[Target],
        *,
        donors: Donors | None,  # noqa: ARG002
        rng: np.random.Generator,
    ) -> tuple[Tensor, list[Target]]:
        """Blend a batch at a random ratio; see `BlendTransform.blend`."""
        return mix_up(images, targets, ratio=rng.uniform(*BLEND_RATIOS))


def mix_up(images: Tensor, targets: Sequence[Target], *, ratio: float) -> tuple[Tensor, list[Target]]:
    """Blend each image (C, H, W) with the one before it in the batch, the first with the last.

    `ratio` is the share of the original pixels. Boxes of both images stay, the original ones first. A single
    image stays as it is.
    """
    if len(images) == 1:
        return images, list(targets)
    mixed = images * ratio + images.roll(1, dims=0) * (1 - ratio)
    return mixed, [join_targets(target, targets[number - 1]) for number, target in enumerate(targets)]


def join_targets(target: Target, other: Target) -> Target:
    """Return a target with the boxes of another after its own."""
    return {
        **target,
        "boxes": torch.cat([target["boxes"], other["boxes"]]),
        "labels": torch.cat([target["labels"], other["labels"]]),
        "area": torch.cat([target["area"], other["area"]]),
    }
