"""Which random changes an image gets in which epoch: the one place that knows the stages of a run."""

from dataclasses import dataclass

import numpy as np

from deim.data.transforms import Sample, distort_colours, flip_horizontal, flip_vertical


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes with their stages.

    Flips are on for the whole run. Colours are distorted from `start_epoch` until the final epochs without
    augmentation begin at `stop_epoch`.
    """

    horizontal_flip: float
    """Probability, in [0, 1]."""
    vertical_flip: float
    """Probability, in [0, 1]."""
    photometric: float
    """Probability of each change of colour, in [0, 1]."""
    start_epoch: int
    """First epoch (0-based) with changes of colour."""
    stop_epoch: int
    """First epoch (0-based) of the final stage."""

    def __call__(self, sample: Sample, *, epoch: int, rng: np.random.Generator) -> Sample:
        """Change a sample.

        Args:
            sample: The image at the size of the network input.
            epoch: 0-based.
            rng: Source of all draws.
        """
        if self.start_epoch <= epoch < self.stop_epoch:
            sample = distort_colours(sample, self.photometric, rng=rng)
        if rng.random() < self.horizontal_flip:
            sample = flip_horizontal(sample)
        if rng.random() < self.vertical_flip:
            sample = flip_vertical(sample)
        return sample
