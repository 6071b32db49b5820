"""Mix-up and copy-blend: images of a batch blended with one another.

Images are (B, C, H, W) float32 in [0, 1], not yet normalized. Both functions return new images and targets
and leave those that they are given as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.structures import Target

BLEND_RATIOS = (0.45, 0.55)
"""Share of an image's own pixels where it is blended with another."""
LEAST_AREA = 100.0
"""Smaller objects are not copied; in square pixels of the network input."""
MARGINS = (0.1, 0.25)
"""Surroundings that are copied with an object, at each side, as a share of its side."""


def draw_ratio(rng: np.random.Generator) -> float:
    """Draw the share of the own pixels."""
    return float(rng.uniform(*BLEND_RATIOS))


def mix_up(images: Tensor, targets: Sequence[Target], *, ratio: float) -> tuple[Tensor, list[Target]]:
    """Blend each image with the one before it in the batch, the first with the last; both keep their boxes.

    Args:
        images: (B, C, H, W) float32.
        targets: An image each, with `area`.
        ratio: Share of the own pixels, in [0, 1].

    Returns:
        Blended images, and targets with the own boxes first. No box is clipped or dropped. A single image has
        no other to be blended with, and stays as it is.

    Source:
        Mix-up (arXiv:1710.09412) as in DEIM (arXiv:2412.04234): boxes have no weights.
    """
    if len(images) == 1:
        return images, list(targets)
    mixed = images * ratio + images.roll(1, dims=0) * (1 - ratio)
    return mixed, [_joined(own, targets[number - 1]) for number, own in enumerate(targets)]


def copy_blend(
    images: Tensor,
    targets: Sequence[Target],
    *,
    max_objects: int,
    ratio: float,
    rng: np.random.Generator,
    left_out: int | None = None,
    donors: tuple[Tensor, Sequence[Target]] | None = None,
) -> tuple[Tensor, list[Target]]:
    """Blend objects of the batch, each with some of its surroundings, into all images at random places.

    Every image gets up to `max_objects` different objects, its own among those to draw from; their pixels are
    those of the images as given. Copies keep size and label and lie inside the image; no box is dropped.

    Args:
        images: (B, C, H, W) float32.
        targets: An image each, with `area`.
        max_objects: Objects an image, at least 1.
        ratio: Share of the own pixels where an object is blended in, in [0, 1].
        rng: Source of all draws.
        left_out: Class index of objects that are never copied; None for none.
        donors: Other images, (D, C, H, W), to take all objects from, with the objects that may be taken. Each
            image is as likely as any other for every copy, so that an object may come twice. None takes
            objects from the batch, each as likely.

    Returns:
        The batch as it is if no object has an area of 100 (`LEAST_AREA`).

    Source:
        Copy-blend of DEIMv2 (arXiv:2509.20787); the donors are ours.
    """
    source_images, source_targets = (images, targets) if donors is None else donors
    found_objects = _objects(source_targets, (images.shape[-2], images.shape[-1]))
    pool = [source for source in found_objects if source.label != left_out]
    if not pool:
        return images, list(targets)
    blended = images.clone()
    found: list[Target] = []
    for number, target in enumerate(targets):
        if donors is None:
            chosen = rng.choice(len(pool), size=min(max_objects, len(pool)), replace=False)
        else:
            chances = _chances([source.image for source in pool])
            chosen = rng.choice(len(pool), size=max_objects, p=chances)
        copies = [_blend_in(source_images, blended, number, pool[index], ratio, rng) for index in chosen]
        found.append(_joined(target, _as_target(copies, [pool[index] for index in chosen], images)))
    return blended, found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Object:
    """An object to copy; its corners are whole pixels."""

    image: int
    """Position of its image in the batch, or among the donors."""
    left: int
    top: int
    width: int
    height: int
    label: int


def _chances(images: Sequence[int]) -> NDArray[np.float64]:
    """(N,) chances of the objects of (N,) images, of sum 1, of which each image has the same part."""
    _, image_of, counts = np.unique(images, return_inverse=True, return_counts=True)
    chances: NDArray[np.float64] = 1 / counts[image_of]
    return chances / chances.sum()


def _objects(targets: Sequence[Target], size_hw: tuple[int, int]) -> list[_Object]:
    height, width = size_hw
    limits = torch.tensor([width, height] * 2)
    found = []
    for number, target in enumerate(targets):
        corners = (cxcywh_to_xyxy(target["boxes"]) * limits).round(decimals=3).long()
        corners = torch.minimum(corners.clamp(min=0), limits)
        for box, label, area in zip(corners.tolist(), target["labels"].tolist(), target["area"], strict=True):
            left, top, right, bottom = box
            if area >= LEAST_AREA and right > left and bottom > top:
                place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
                found.append(_Object(image=number, label=label, **place))
    return found


def _blend_in(
    images: Tensor, blended: Tensor, number: int, source: _Object, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Blend an object into image `number` of `blended`; returns the corners of its copy, in pixels."""
    height, width = images.shape[-2:]
    left = int(rng.integers(width - source.width + 1))
    top = int(rng.integers(height - source.height + 1))
    margin = rng.uniform(*MARGINS)
    margin_x, margin_y = int(source.width * margin), int(source.height * margin)
    # What surrounds the object must lie inside both images.
    west = min(margin_x, left, source.left)
    north = min(margin_y, top, source.top)
    east = min(margin_x, width - left - source.width, width - source.left - source.width)
    south = min(margin_y, height - top - source.height, height - source.top - source.height)
    rows = slice(top - north, top + source.height + south)
    columns = slice(left - west, left + source.width + east)
    from_rows = slice(source.top - north, source.top + source.height + south)
    from_columns = slice(source.left - west, source.left + source.width + east)
    part = images[source.image, :, from_rows, from_columns]
    blended[number, :, rows, columns] = blended[number, :, rows, columns] * ratio + part * (1 - ratio)
    return left, top, left + source.width, top + source.height


def _as_target(
    copies: Sequence[tuple[int, int, int, int]], sources: Sequence[_Object], images: Tensor
) -> Target:
    height, width = images.shape[-2:]
    corners = torch.tensor(copies, dtype=torch.float32)
    return {
        "boxes": xyxy_to_cxcywh(corners / torch.tensor([width, height] * 2)),
        "labels": torch.tensor([source.label for source in sources], dtype=torch.int64),
        "area": torch.tensor([float(source.width * source.height) for source in sources]),
    }


def _joined(own: Target, other: Target) -> Target:
    """The own target with the boxes of another behind its own."""
    return {
        **own,
        "boxes": torch.cat([own["boxes"], other["boxes"]]),
        "labels": torch.cat([own["labels"], other["labels"]]),
        "area": torch.cat([own["area"], other["area"]]),
    }
