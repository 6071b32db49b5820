"""Copy-blend: objects blended into other images of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.data.augment.mix_up import BLEND_RATIOS, join_targets
from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import BlendTransform, Donors
from deim.structures import Target

MIN_AREA = 100.0
"""Minimum area of an object to be copied, in square pixels of the network input."""
MARGINS = (0.1, 0.25)
"""Range of the surroundings copied with an object at each side, as a share of that side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyBlend(BlendTransform):
    """Blends objects of the batch, or of the whole split, into all images of the batch."""

    options: AugmentOptions
    excluded_label: int | None
    """Class index of objects that are never copied, such as good surfaces; None for none."""

    def max_boxes(self, num_boxes: int) -> int:
        """Return the boxes with the copies, if there is anything to copy."""
        return num_boxes + self.options.copy_blend_objects if num_boxes else 0

    def draw_donors(
        self, images_of_classes: Mapping[int, Sequence[int]], *, rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Draw for each copy a class and an image that shows it; empty unless copies are balanced."""
        labels = sorted(images_of_classes.keys() - {self.excluded_label})
        if not self.options.copy_blend_balanced or not labels:
            return []
        drawn = rng.choice(labels, size=self.options.copy_blend_objects).tolist()
        return [(label, int(rng.choice(images_of_classes[label]))) for label in drawn]

    def blend(
        self, images: Tensor, targets: Sequence[Target], *, donors: Donors | None, rng: np.random.Generator
    ) -> tuple[Tensor, list[Target]]:
        """Blend objects into a batch at a random ratio; see `BlendTransform.blend`."""
        return copy_blend(
            images,
            targets,
            max_objects=self.options.copy_blend_objects,
            ratio=rng.uniform(*BLEND_RATIOS),
            rng=rng,
            excluded_label=self.excluded_label,
            donors=donors,
        )


def copy_blend(
    images: Tensor,
    targets: Sequence[Target],
    *,
    max_objects: int,
    ratio: float,
    rng: np.random.Generator,
    excluded_label: int | None = None,
    donors: Donors | None = None,
) -> tuple[Tensor, list[Target]]:
    """Blend objects of the batch, each with some of its surroundings, into all images at random places.

    Every image gets up to `max_objects` different objects, possibly its own; their pixels are those of the
    unchanged images. Copies keep size and label and lie inside the image; no box is dropped.

    Args:
        images: (B, C, H, W) float32; not changed.
        targets: Ground truth of each image, with `area`.
        max_objects: Maximum number of objects per image, at least 1.
        ratio: Share of the original pixels where an object is blended in, in [0, 1].
        rng: Source of all random draws.
        excluded_label: Class index of objects that are never copied; None for none.
        donors: Other images (D, C, H, W) with the objects that may be taken, instead of those of the batch.
            Each image is equally likely for every copy, so an object may come twice.

    Returns:
        The batch as it is if no object has an area of 100 (`MIN_AREA`).

    Source:
        Copy-blend of DEIMv2 (arXiv:2509.20787); donors are an addition.
    """
    source_images, source_targets = (images, targets) if donors is None else donors
    pool = _find_objects(source_targets, (images.shape[-2], images.shape[-1]), excluded_label)
    if not pool:
        return images, list(targets)
    shares = None if donors is None else _equal_shares([source.image for source in pool])
    number = max_objects if donors is not None else min(max_objects, len(pool))
    blended = images.clone()
    joined: list[Target] = []
    for canvas, target in zip(blended, targets, strict=True):
        chosen = rng.choice(len(pool), size=number, replace=donors is not None, p=shares)
        sources = [pool[index] for index in chosen]
        corners = torch.tensor([_blend_in(source_images, canvas, source, ratio, rng) for source in sources])
        copies: Target = {
            "boxes": xyxy_to_cxcywh(corners / torch.tensor([images.shape[-1], images.shape[-2]] * 2)),
            "labels": torch.tensor([source.label for source in sources]),
            "area": torch.tensor([float(source.width * source.height) for source in sources]),
        }
        joined.append(join_targets(target, copies))
    return blended, joined


@dataclass(frozen=True, slots=True)
class _Object:
    """An object to copy, in whole pixels of an image, given by its position in the batch or the donors."""

    image: int
    label: int
    left: int
    top: int
    width: int
    height: int


def _equal_shares(images: Sequence[int]) -> NDArray[np.float64]:
    """Return (N,) probabilities of N objects, with an equal sum for each of their images."""
    _, image_of, counts = np.unique(images, return_inverse=True, return_counts=True)
    shares: NDArray[np.float64] = 1 / counts[image_of]
    return shares / shares.sum()


def _find_objects(
    targets: Sequence[Target], size_hw: tuple[int, int], excluded_label: int | None
) -> list[_Object]:
    limits = torch.tensor([size_hw[1], size_hw[0]] * 2)
    objects = []
    for number, target in enumerate(targets):
        corners = (cxcywh_to_xyxy(target["boxes"]) * limits).round(decimals=3).long()
        corners = torch.minimum(corners.clamp(min=0), limits)
        for box, label, area in zip(corners.tolist(), target["labels"].tolist(), target["area"], strict=True):
            left, top, right, bottom = box
            if label != excluded_label and area >= MIN_AREA and right > left and bottom > top:
                objects.append(_Object(number, label, left, top, right - left, bottom - top))
    return objects


def _blend_in(
    images: Tensor, canvas: Tensor, source: _Object, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Blend an object into (C, H, W) `canvas` in place; returns the corners of its copy in pixels."""
    height, width = images.shape[-2:]
    left = int(rng.integers(width - source.width + 1))
    top = int(rng.integers(height - source.height + 1))
    margin = rng.uniform(*MARGINS)
    margin_x, margin_y = int(source.width * margin), int(source.height * margin)
    # The surroundings of the object must lie inside both images.
    west = min(margin_x, left, source.left)
    north = min(margin_y, top, source.top)
    east = source.width + min(margin_x, width - source.width - max(left, source.left))
    south = source.height + min(margin_y, height - source.height - max(top, source.top))
    part = images[
        source.image, :, source.top - north : source.top + south, source.left - west : source.left + east
    ]
    covered = canvas[:, top - north : top + south, left - west : left + east]
    covered.copy_(covered * ratio + part * (1 - ratio))
    return left, top, left + source.width, top + source.height
