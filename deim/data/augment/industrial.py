"""What cameras, lamps and fixtures of a plant change: light, lens, sensor, compression, position.

The changes are those of albumentations, an optional package: `pip install 'deim-defects[augment]'`.
"""

import importlib.util
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from deim.config.checks import check, not_fraction
from deim.data.transforms import Sample
from deim.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class IndustrialOptions:
    """What cameras, lamps and fixtures change, by the extra `augment`; probabilities are in [0, 1]."""

    rotation: float = 0.3
    """A small rotation about the center."""
    max_degrees: float = 5.0
    """Largest rotation to either side, in degrees, up to 45."""
    perspective: float = 0.2
    """A camera that stands askew."""
    max_corner_shift: float = 0.05
    """Largest standard deviation of the corners' shift, as a share of the side, in (0, 0.25]."""
    lighting: float = 0.4
    """Light that falls off to one side, to a corner or around a spot."""
    exposure: float = 0.3
    """Brightness and contrast of the whole image."""
    blur: float = 0.2
    """Out of focus, or moved along a line."""
    noise: float = 0.3
    """Noise of the sensor."""
    jpeg: float = 0.2
    """Traces of JPEG compression at a quality of 40 to 90; for 8-bit gray and RGB alone."""

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


LEAST_SHARE = 0.1
"""Share of a turned or tilted box that must lie in the image; with less of it, the box is dropped."""
LIGHT_MODES = ("linear", "corner", "gaussian")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndustrialChanges:
    """How likely and how strong each change is; probabilities in [0, 1]."""

    rotation: float
    max_degrees: float
    """Largest rotation to either side."""
    perspective: float
    max_corner_shift: float
    """Largest standard deviation of the corners' shift, as a share of the side."""
    lighting: float
    exposure: float
    blur: float
    noise: float
    jpeg: float


def require_albumentations() -> None:
    """Make sure that the package is there.

    Raises:
        ConfigError: If it is not installed.
    """
    if importlib.util.find_spec("albumentations") is None:
        raise ConfigError(
            "augment.industrial: needs albumentations, which is not installed. Install it with "
            "pip install 'deim-defects[augment]', or set augment.industrial=null."
        )


def change_industrially(sample: Sample, changes: IndustrialChanges, *, rng: np.random.Generator) -> Sample:
    """Turn and tilt the image a little, then change its light, sharpness, noise and compression.

    What comes into the image from outside is black. Boxes become upright boxes around the changed ones, are
    clipped, and are dropped if less than a tenth of one (`LEAST_SHARE`), or a side under a pixel, is left.
    JPEG is for 8-bit gray and RGB alone, since it would cut deeper images to 8 bits.

    Args:
        sample: Any sample.
        changes: Which, and how strong.
        rng: Source of the seed of all draws.

    Raises:
        ConfigError: If albumentations is not installed.
    """
    channels = sample.image.shape[0]
    # Gray goes through three times and comes back once: albumentations lights no image of one channel.
    given = sample.image.expand(3, -1, -1) if channels == 1 else sample.image
    is_rgb8 = channels in (1, 3) and sample.image.dtype == torch.uint8
    pipeline = _build_pipeline(
        changes, has_colors=is_rgb8 and channels == 3, jpeg=is_rgb8, seed=int(rng.integers(2**31))
    )
    found = pipeline(
        image=np.ascontiguousarray(given.permute(1, 2, 0).numpy()),
        bboxes=sample.boxes_xyxy.numpy(),
        labels=sample.labels.numpy(),
    )
    boxes = torch.as_tensor(np.asarray(found["bboxes"], dtype=np.float32)).reshape(-1, 4)
    labels = torch.as_tensor(np.asarray(found["labels"], dtype=np.int64)).reshape(-1)
    image = torch.from_numpy(np.ascontiguousarray(found["image"])).permute(2, 0, 1)[:channels].contiguous()
    return replace(sample, image=image, boxes_xyxy=boxes, labels=labels)


def _build_pipeline(changes: IndustrialChanges, *, has_colors: bool, jpeg: bool, seed: int) -> Any:
    require_albumentations()
    # It asks the network for a newer version of itself otherwise, in each process that loads.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as albu
    import cv2

    cv2.setNumThreads(0)  # the processes that load share the cores already

    degrees, shift = changes.max_degrees, changes.max_corner_shift
    noises = [albu.GaussNoise(std_range=(0.01, 0.05), p=1)]
    if has_colors:
        noises.append(albu.ISONoise(color_shift=(0.01, 0.03), intensity=(0.1, 0.3), p=1))
    lights = [albu.Illumination(mode=mode, intensity_range=(0.05, 0.2), p=1) for mode in LIGHT_MODES]
    return albu.Compose(
        [
            albu.Affine(rotate=(-degrees, degrees), p=changes.rotation),
            albu.Perspective(scale=(0.0, shift), p=changes.perspective),
            albu.OneOf(lights, p=changes.lighting),
            albu.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=changes.exposure),
            albu.OneOf(
                [
                    albu.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 1.5), p=1),
                    albu.MotionBlur(blur_limit=(3, 7), p=1),
                ],
                p=changes.blur,
            ),
            albu.OneOf(noises, p=changes.noise),
            albu.ImageCompression(
                compression_type="jpeg", quality_range=(40, 90), p=changes.jpeg if jpeg else 0
            ),
        ],
        bbox_params=albu.BboxParams(
            format="pascal_voc",
            label_fields=["labels"],
            min_visibility=LEAST_SHARE,
            min_width=1,
            min_height=1,
            clip=True,
            filter_invalid_bboxes=True,
        ),
        seed=seed,
    )
