"""TODO."""

from dataclasses import dataclass

from deim.config.checks import below, check, not_fraction
from deim.data.augment.industrial import IndustrialOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentOptions:
    """Random changes of training images; what is not said otherwise is a probability in [0, 1].

    When they run: flips in all epochs; colors, zoom-out, crop, copy-blend and `industrial` from
    `schedule.augment_start_epoch` to the final stage; mosaic and mix-up from there to
    `schedule.mix_end_epoch`; several sizes until the final stage. `deim/data/augment/pipeline.py` is the one place
    that knows.
    """

    horizontal_flip: float = 0.5
    """Mirror left and right; on for the whole run."""
    vertical_flip: float = 0.0
    """Mirror top and bottom; on for the whole run."""
    photometric: float = 0.5
    """Brightness, contrast, saturation, hue and channel order, each drawn with this probability."""
    mosaic: float = 0.0
    """Four images in one, turned, shifted and scaled."""
    mosaic_max_degrees: float = 10.0
    """Largest rotation of a mosaic to either side, in degrees, up to 45."""
    mosaic_max_shift: float = 0.1
    """Largest shift of a mosaic, as a share of its side, in [0, 0.5]."""
    mosaic_scales: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest scale of a mosaic, above 0."""
    zoom_out: float = 0.0
    """The image smaller on a black canvas; not for mosaics."""
    zoom_out_max_scale: float = 4.0
    """Largest side of that canvas, in sides of the image, at least 1."""
    crop: float = 0.0
    """A part of the image that keeps enough of a box, as in SSD; not for mosaics."""
    mix_up: float = 0.0
    """Share of the batches in which each image is blended with another of the batch."""
    copy_blend: float = 0.0
    """Share of the other batches in which defects of the batch are blended into its images."""
    copy_blend_objects: int = 3
    """Defects blended into an image, at most; at least 1."""
    copy_blend_balanced: bool = False
    """Defects are drawn class by class, each as likely, from the whole training split, not from the batch."""
    multi_scale: float = 0.0
    """Largest change of the input's size, drawn for each batch, as a share in [0, 0.5]; 0 for one size."""
    multi_scale_repeat: int = 6
    """How often `image_size` counts among the sizes to draw from, at least 1."""
    industrial: IndustrialOptions | None = None
    """Light, lens, sensor and position; null for none."""

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
                *below(1, zoom_out_max_scale=self.zoom_out_max_scale),
                *below(1, copy_blend_objects=self.copy_blend_objects),
                (
                    self.copy_blend_balanced and self.copy_blend == 0,
                    "copy_blend_balanced: got true, but copy_blend is 0, so nothing is blended in. Set "
                    "copy_blend above 0.",
                ),
                *below(1, multi_scale_repeat=self.multi_scale_repeat),
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
