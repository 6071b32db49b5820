"""Options of the augmentation."""

from dataclasses import dataclass

from deim.config.checks import EPOCHS, REPEATS, as_hw, check, not_fraction, not_input_size, outside
from deim.data.augment.industrial import IndustrialOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class LowResolutionOptions:
    """First epochs of a run with smaller inputs, which train faster; validation keeps the full size.

    Each batch is made at the full size, cached or not, and then reduced, as `augment.multi_scale` does it,
    whose sizes follow from the smaller one.
    """

    image_size: int | tuple[int, int]
    """Side of the network input in pixels, or [height, width]; multiples of 32, at least 64, below the
    `image_size` of the experiment."""
    epochs: int
    """Number of these epochs, at least 1 and fewer than those of the run."""

    def __post_init__(self) -> None:
        check([*not_input_size(self.image_size), *outside(1, EPOCHS, epochs=self.epochs)])

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the network input, in pixels."""
        return as_hw(self.image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentOptions:
    """Random changes of training images; unless stated otherwise, each value is a probability in [0, 1].

    Flips run in all epochs; colors, zoom-out, crop, copy-blend and `industrial` from
    `schedule.augment_start_epoch` to the final stage; mosaic and mix-up from there to
    `schedule.mix_end_epoch`; several sizes until the final stage. See `deim/data/augment/pipeline.py`.
    """

    horizontal_flip: float = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.0
    """Probability of mirroring top and bottom."""
    photometric: float = 0.5
    """Probability of each change of brightness, contrast, saturation, hue and channel order."""
    mosaic: float = 0.0
    """Probability of four images in one, rotated, shifted and scaled."""
    mosaic_max_degrees: float = 10.0
    """Maximum rotation of a mosaic in either direction, in degrees, up to 45."""
    mosaic_max_shift: float = 0.1
    """Maximum shift of a mosaic, as a share of its side, in [0, 0.5]."""
    mosaic_scales: tuple[float, float] = (0.5, 1.5)
    """Minimum and maximum scale of a mosaic, above 0."""
    zoom_out: float = 0.0
    """Probability of showing the image smaller on a black canvas; not for mosaics."""
    zoom_out_max_scale: float = 4.0
    """Maximum side of that canvas, in sides of the image, at least 1."""
    crop: float = 0.0
    """Probability of a crop that keeps enough of a box, as in SSD; not for mosaics."""
    mix_up: float = 0.0
    """Share of the batches in which each image is blended with another of the batch."""
    copy_blend: float = 0.0
    """Share of the other batches in which objects of the batch are blended into its images."""
    copy_blend_objects: int = 3
    """Maximum number of objects blended into an image, at least 1."""
    copy_blend_balanced: bool = False
    """Draw objects class by class, with equal probability, from the whole training split, not the batch."""
    multi_scale: float = 0.0
    """Maximum change of the input size, drawn for each batch, as a share in [0, 0.5]; 0 keeps one size."""
    multi_scale_repeat: int = 6
    """How often `image_size` is listed among the sizes to draw from, at least 1."""
    industrial: IndustrialOptions | None = None
    """Variation of light, lens, sensor and position; null for none."""

    def __post_init__(self) -> None:
        low, high = self.mosaic_scales
        check(
            [
                *not_fraction(
                    horizontal_flip=self.horizontal_flip,
                    vertical_flip=self.vertical_flip,
                    photometric=self.photometric,
                    mosaic=self.mosaic,
                    zoom_out=self.zoom_out,
                    crop=self.crop,
                    mix_up=self.mix_up,
                    copy_blend=self.copy_blend,
                ),
                *outside(1, REPEATS, zoom_out_max_scale=self.zoom_out_max_scale),
                *outside(1, REPEATS, copy_blend_objects=self.copy_blend_objects),
                (
                    self.copy_blend_balanced and self.copy_blend == 0,
                    "copy_blend_balanced: got true, but copy_blend is 0, so nothing is blended in. Set "
                    "copy_blend above 0.",
                ),
                *outside(1, REPEATS, multi_scale_repeat=self.multi_scale_repeat),
                (
                    not 0 <= self.mosaic_max_degrees <= 45,
                    f"mosaic_max_degrees: got {self.mosaic_max_degrees}, needs [0, 45]",
                ),
                (
                    not 0 <= self.mosaic_max_shift <= 0.5,
                    f"mosaic_max_shift: got {self.mosaic_max_shift}, needs [0, 0.5]",
                ),
                (
                    not 0 < low <= high,
                    f"mosaic_scales: got {[low, high]}, needs two numbers above 0, the smaller first",
                ),
                (not 0 <= self.multi_scale <= 0.5, f"multi_scale: got {self.multi_scale}, needs [0, 0.5]"),
            ]
        )
