"""Mirroring."""

from dataclasses import dataclass, replace

import numpy as np

from deim.data.augment.transform import Sample, SampleTransform


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip(SampleTransform):
    """Mirrors left and right, and top and bottom."""

    horizontal: float
    """Probability of mirroring left and right."""
    vertical: float
    """Probability of mirroring top and bottom."""

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Mirror by two draws."""
        if rng.random() < self.horizontal:
            sample = flip_horizontal(sample)
        if rng.random() < self.vertical:
            sample = flip_vertical(sample)
        return sample


def flip_horizontal(sample: Sample) -> Sample:
    """Mirror left and right."""
    boxes = sample.boxes_xyxy.clone()
    boxes[:, [0, 2]] = sample.size_hw[1] - boxes[:, [2, 0]]
    return replace(sample, image=sample.image.flip(-1), boxes_xyxy=boxes)


def flip_vertical(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    boxes = sample.boxes_xyxy.clone()
    boxes[:, [1, 3]] = sample.size_hw[0] - boxes[:, [3, 1]]
    return replace(sample, image=sample.image.flip(-2), boxes_xyxy=boxes)
