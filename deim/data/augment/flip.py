"""Mirroring."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from deim.data.augment.transform import Sample, SampleTransform, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip(SampleTransform):
    """Mirrors left and right, and top and bottom."""

    stage: ClassVar[Stage] = "sample"
    name: str = "flips"
    horizontal: float
    """Probability of mirroring left and right."""
    vertical: float
    """Probability of mirroring top and bottom."""
    epochs: range

    @property
    def is_on(self) -> bool:
        """Whether either direction has a probability."""
        return max(self.horizontal, self.vertical) > 0

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Mirror by two draws."""
        if rng.random() < self.horizontal:
            sample = flip_horizontal(sample)
        if rng.random() < self.vertical:
            sample = flip_vertical(sample)
        return sample


def flip_horizontal(sample: Sample) -> Sample:
    """Mirror left and right."""
    width = sample.image.shape[-1]
    left, top, right, bottom = sample.boxes_xyxy.unbind(-1)
    boxes = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return replace(sample, image=sample.image.flip(-1), boxes_xyxy=boxes)


def flip_vertical(sample: Sample) -> Sample:
    """Mirror top and bottom."""
    height = sample.image.shape[-2]
    left, top, right, bottom = sample.boxes_xyxy.unbind(-1)
    boxes = torch.stack([left, height - bottom, right, height - top], dim=-1)
    return replace(sample, image=sample.image.flip(-2), boxes_xyxy=boxes)
