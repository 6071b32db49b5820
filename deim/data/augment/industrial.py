"""Variation of cameras, lamps and fixtures: light, lens, sensor, compression and position.

The transforms are those of albumentations, an optional package: `pip install 'deim-defects[augment]'`.
"""

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from deim.config.checks import check, not_fraction
from deim.data.augment.transform import Sample, SampleTransform
from deim.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class IndustrialOptions:
    """Variation of cameras, lamps and fixtures; needs the extra `augment`. Probabilities are in [0, 1]."""

    rotation: float = 0.3
    """Probability of a small rotation about the center."""
    max_degrees: float = 5.0
    """Maximum rotation in either direction, in degrees, up to 45."""
    perspective: float = 0.2
    """Probability of a tilted camera."""
    max_corner_shift: float = 0.05
    """Maximum standard deviation of the corners' shift, as a share of the side, in (0, 0.25]."""
    lighting: float = 0.4
    """Probability of light that falls off to one side, to a corner or around a spot."""
    exposure: float = 0.3
    """Probability of a change of brightness and contrast of the whole image."""
    blur: float = 0.2
    """Probability of defocus or motion blur."""
    noise: float = 0.3
    """Probability of sensor noise."""
    jpeg: float = 0.2
    """Probability of JPEG compression at a quality of 40 to 90; only for 8-bit gray and RGB images."""

    def __post_init__(self) -> None:
        check(
            [
                *not_fraction(
                    rotation=self.rotation,
                    perspective=self.perspective,
                    lighting=self.lighting,
                    exposure=self.exposure,
                    blur=self.blur,
                    noise=self.noise,
                    jpeg=self.jpeg,
                ),
                (not 0 <= self.max_degrees <= 45, f"max_degrees: got {self.max_degrees}, needs [0, 45]"),
                (
                    not 0 < self.max_corner_shift <= 0.25,
                    f"max_corner_shift: got {self.max_corner_shift}, needs (0, 0.25]",
                ),
            ]
        )


MIN_SHARE = 0.1
"""Share of a rotated or tilted box that must lie in the image; other boxes are dropped."""
LIGHT_MODES = ("linear", "corner", "gaussian")


@dataclass(frozen=True, kw_only=True, slots=True)
class Industrial(SampleTransform):
    """Rotates and tilts an image a little, then changes its light, sharpness, noise and compression.

    Areas from outside the image are black. Boxes become upright boxes around the changed ones and are
    clipped. Boxes with less than a tenth (`MIN_SHARE`) or a side under a pixel in the image are dropped.
    """

    options: IndustrialOptions

    def change(self, sample: Sample, *, rng: np.random.Generator) -> Sample:
        """Change a sample; `rng` gives the seed of all draws."""
        channels = sample.image.shape[0]
        # albumentations cannot light images of one channel, so gray passes through as three.
        expanded = sample.image.expand(3, -1, -1) if channels == 1 else sample.image
        is_uint8 = channels in (1, 3) and sample.image.dtype == torch.uint8
        transform = _build_transform(self.options, has_colors=is_uint8 and channels == 3, jpeg=is_uint8)
        transform.set_random_seed(int(rng.integers(2**31)))
        changed = transform(
            image=np.ascontiguousarray(expanded.permute(1, 2, 0).numpy()),
            bboxes=sample.boxes_xyxy.numpy(),
            labels=sample.labels.numpy(),
        )
        boxes = torch.as_tensor(np.asarray(changed["bboxes"], dtype=np.float32)).reshape(-1, 4)
        labels = torch.as_tensor(np.asarray(changed["labels"], dtype=np.int64)).reshape(-1)
        image = torch.from_numpy(np.ascontiguousarray(changed["image"])).permute(2, 0, 1)[:channels]
        return replace(sample, image=image.contiguous(), boxes_xyxy=boxes, labels=labels)


def require_albumentations() -> None:
    """Raise a ConfigError if the optional package is not installed."""
    if importlib.util.find_spec("albumentations") is None:
        raise ConfigError(
            "augment.industrial: needs albumentations, which is not installed. Install it with "
            "pip install 'deim-defects[augment]', or set augment.industrial=null."
        )


@cache
def _build_transform(options: IndustrialOptions, *, has_colors: bool, jpeg: bool) -> Any:
    # Otherwise each loading process asks the network for a newer version of the package.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as albu
    import cv2

    cv2.setNumThreads(0)  # the loading processes share the cores already
    # IPP's distances, which lighting uses, depend on the place of an image in memory.
    cv2.ipp.setUseIPP(False)

    degrees, shift = options.max_degrees, options.max_corner_shift
    noises = [albu.GaussNoise(std_range=(0.01, 0.05), p=1)]
    if has_colors:
        noises.append(albu.ISONoise(color_shift=(0.01, 0.03), intensity=(0.1, 0.3), p=1))
    blurs = [
        albu.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 1.5), p=1),
        albu.MotionBlur(blur_limit=(3, 7), p=1),
    ]
    lights = [albu.Illumination(mode=mode, intensity_range=(0.05, 0.2), p=1) for mode in LIGHT_MODES]
    return albu.Compose(
        [
            albu.Affine(rotate=(-degrees, degrees), p=options.rotation),
            albu.Perspective(scale=(0.0, shift), p=options.perspective),
            albu.OneOf(lights, p=options.lighting),
            albu.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=options.exposure),
            albu.OneOf(blurs, p=options.blur),
            albu.OneOf(noises, p=options.noise),
            albu.ImageCompression(quality_range=(40, 90), p=options.jpeg if jpeg else 0),
        ],
        bbox_params=albu.BboxParams(
            format="pascal_voc",
            label_fields=["labels"],
            min_visibility=MIN_SHARE,
            min_width=1,
            min_height=1,
            clip=True,
            filter_invalid_bboxes=True,
        ),
    )
