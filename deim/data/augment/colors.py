"""Random changes of brightness, contrast, saturation, hue and the order of the channels."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from deim.data.augment.color_math import ColorChanges, change_colors
from deim.data.augment.transform import Sample, SampleTransform

BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
"""Ranges of the factors, and of the hue as a share of the circle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Colors(SampleTransform):
    """Changes brightness, contrast, saturation, hue and channel order.

    Images of other than three channels have no colors: only brightness and contrast change.

    Source:
        The ranges of SSD's photometric distortion (arXiv:1512.02325), as in torchvision.
    """

    probability: float
    """Probability of each change."""

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Change the colors, unless a compose transform has changed them already."""
        if sample.has_new_colors:
            return sample
        has_colors = sample.image.shape[0] == 3

        def draw(limits: tuple[float, float]) -> float | None:
            return rng.uniform(*limits) if rng.random() < self.probability else None

        contrast_first = rng.random() < 0.5
        changes = ColorChanges(
            contrast_first=contrast_first,
            brightness=draw(BRIGHTNESS),
            contrast=draw(CONTRAST) if contrast_first else None,
            saturation=draw(SATURATION) if has_colors else None,
            hue=draw(HUE) if has_colors else None,
        )
        if not contrast_first:
            changes = replace(changes, contrast=draw(CONTRAST))
        image = change_colors(sample.image, changes)
        if has_colors and rng.random() < self.probability:
            image = image.index_select(0, torch.from_numpy(rng.permutation(3)))
        return replace(sample, image=image, has_new_colors=True)
