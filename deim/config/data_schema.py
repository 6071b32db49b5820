"""The options of the data and of their random changes; `schema.py` has all others."""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import below, check, not_fraction


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """A generated defect set, written to `data.root` when that folder does not exist yet."""

    train_images: int = 300
    """Images of the training split."""
    val_images: int = 100
    """Images of the validation split."""
    test_images: int = 100
    """Images of the test split."""
    max_size_wh: tuple[int, int] = (1650, 1350)
    """Largest width and height of an image, in pixels."""
    seed: int = 0
    """Seed of the images; the same seed gives the same files."""

    def __post_init__(self) -> None:
        check(
            [
                *below(1, train_images=self.train_images, val_images=self.val_images),
                *below(0, test_images=self.test_images, seed=self.seed),
                (
                    min(self.max_size_wh) < 96,
                    f"max_size_wh: got {list(self.max_size_wh)}, each needs at least 96",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BytesScaling:
    """Images have 8 bits a channel and stay as they are; deeper files are refused."""

    type: Literal["bytes"] = "bytes"


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowScaling:
    """The same window of sensor values in all images becomes [0, 1]; what lies beyond is clipped."""

    type: Literal["window"]
    low: float
    """Sensor value that becomes 0."""
    high: float
    """Sensor value that becomes 1, above `low`, at most 65535."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, low=self.low),
                (
                    not self.low < self.high <= 65535,
                    f"high: got {self.high:g}, needs to be above low, {self.low:g}, and at most 65535",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PercentileScaling:
    """Each channel of each image is stretched between two of its own percentiles to [0, 1]."""

    type: Literal["percentile"]
    low: float = 0.5
    """Percent of the pixels that become 0, at least."""
    high: float = 99.5
    """Percent of the pixels that lie below 1, about; above `low`, at most 100."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, low=self.low),
                (
                    not self.low < self.high <= 100,
                    f"high: got {self.high:g}, needs to be above low, {self.low:g}, and at most 100",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSampling:
    """Every training image comes once an epoch."""

    type: Literal["uniform"] = "uniform"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatFactorSampling:
    """Images of a rare class come sqrt(threshold / share of the images that show it) times an epoch."""

    type: Literal["repeat_factor"]
    threshold: float
    """Classes on a smaller share of the training images are repeated, in (0, 1]."""

    def __post_init__(self) -> None:
        is_wrong = not 0 < self.threshold <= 1
        check([(is_wrong, f"threshold: got {self.threshold:g}, needs (0, 1]")])


@dataclass(frozen=True, kw_only=True, slots=True)
class TilesConfig:
    """Square tiles of the images, each an input of its own, in training, validation and prediction alike."""

    size: int
    """Side of a tile in pixels of the original image, at least 32; a shorter side of an image stays whole."""
    overlap: float = 0.2
    """Share of a tile that it has in common with the next, at least, in [0, 0.9]; as wide as most objects.
    With 0, an oblique scratch stays in pieces, and objects face to face within 1 % of a tile of its border
    become one."""
    keep_fraction: float = 0.5
    """Share of a box that a tile must hold to be trained on it, in (0, 1]; of a box that is larger than a
    tile, the share of what a tile can hold."""

    def __post_init__(self) -> None:
        check(
            [
                *below(32, size=self.size),
                (not 0 <= self.overlap <= 0.9, f"overlap: got {self.overlap:g}, needs [0, 0.9]"),
                (
                    not 0 < self.keep_fraction <= 1,
                    f"keep_fraction: got {self.keep_fraction:g}, needs (0, 1]",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the images are and how they reach the network."""

    root: str
    """Dataset folder, relative to where the command runs."""
    format: Literal["coco", "yolo", "voc"] = "coco"
    """Format of the annotations; `yolo` (a data.yaml) and `voc` (ImageSets/Main) find their files themselves,
    so that `train_annotations`, `val_annotations`, `test_annotations` and `images` are for `coco` alone."""
    train_annotations: str = "annotations/train.json"
    """COCO file of the training split, relative to `root`."""
    val_annotations: str = "annotations/val.json"
    """COCO file of the validation split, relative to `root`."""
    test_annotations: str | None = "annotations/test.json"
    """COCO file of the test split, relative to `root`; null if there is none."""
    images: str = "images"
    """Folder of the images, relative to `root`."""
    normal_class: str | None = None
    """Class that marks a good surface, such as NORMAL; images with no other box count as good. Or null."""
    synthetic: SyntheticConfig | None = None
    """Makes the synthetic defect set at `root` if nothing is there; null never makes one."""
    resize: Literal["stretch", "letterbox"] = "stretch"
    """How an image becomes `image_size`: `stretch` ignores the aspect ratio, `letterbox` pads."""
    reduced_decode: bool = False
    """Decodes JPEG photographs at 1/2, 1/4 or 1/8 of their size, the smallest that is not below `image_size`:
    faster, with slightly other pixels; training, evaluation and prediction of image files do the same."""
    tiles: TilesConfig | None = None
    """Cuts images into tiles, which count as images in batches and epochs; scores, reports and predictions
    are of whole images. null takes images whole."""
    channels: int = 3
    """Channels of the image files, 1 to 4; 3 is RGB, and grey files, whose one channel is repeated."""
    scaling: BytesScaling | WindowScaling | PercentileScaling = field(default_factory=BytesScaling)
    """How the values of the files become [0, 1]; files of 16 bits need a `window` or a `percentile`."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel in [0, 1], subtracted from the input; the default is of red, green, blue."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, dividing the input."""
    sampling: UniformSampling | RepeatFactorSampling = field(default_factory=UniformSampling)
    """How often an epoch shows each training image; `repeat_factor` makes epochs longer."""
    batch_size: int | Literal["auto"] = 8
    """Images that a process has in memory at once in training; auto: as many as fit."""
    effective_batch_size: int | None = None
    """Images an optimiser step, over all processes; null: `batch_size` of each process."""
    eval_batch_size: int = 8
    """Images a batch in evaluation."""
    num_workers: int = 2
    """Processes that load images; 0 loads in the main process."""
    cache_mb: int = 0
    """Memory for resized images in each loading process and split, in MiB; 0 decodes them anew each time."""
    disk_cache_mb: int = 0
    """Disk for resized images of each split, in MiB, shared by all processes and later runs; 0 uses none."""
    disk_cache_dir: str = "outputs/image_cache"
    """Folder of these images; it may be deleted between runs."""

    def __post_init__(self) -> None:
        check(
            [
                *below(
                    1,
                    batch_size=self.batch_size,
                    effective_batch_size=self.effective_batch_size,
                    eval_batch_size=self.eval_batch_size,
                ),
                (
                    self.batch_size == "auto" and self.effective_batch_size is None,
                    "batch_size: 'auto' needs effective_batch_size, the images of an optimiser step that the "
                    "learning rate was chosen for",
                ),
                *below(
                    0,
                    num_workers=self.num_workers,
                    cache_mb=self.cache_mb,
                    disk_cache_mb=self.disk_cache_mb,
                ),
                (
                    self.reduced_decode and self.tiles is not None,
                    "reduced_decode: got true, but tiles are cut from the image in full. Set one of the two.",
                ),
                (
                    self.format != "coco" and self.synthetic is not None,
                    f"format: got {self.format!r}, but the synthetic set is COCO. Set synthetic to null.",
                ),
                (
                    not 1 <= self.channels <= 4,
                    f"channels: got {self.channels}, files of 1 to 4 channels can be read",
                ),
                *(
                    (
                        len(values) != self.channels and 1 <= self.channels <= 4,
                        f"{name}: got {list(values)}, needs one number for each of {self.channels} channels, "
                        f"such as {[usual] * self.channels}",
                    )
                    for name, values, usual in (("mean", self.mean, 0.449), ("std", self.std, 0.226))
                ),
                (min(self.std) <= 0, f"std: got {list(self.std)}, each must be above 0"),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IndustrialConfig:
    """What cameras, lamps and fixtures change, by the extra `augment`; probabilities are in [0, 1]."""

    rotation: float = 0.3
    """A small rotation about the centre."""
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
    """Traces of JPEG compression at a quality of 40 to 90; for 8-bit grey and RGB alone."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random changes of training images; what is not said otherwise is a probability in [0, 1].

    When they run: flips in all epochs; colours, zoom-out, crop, copy-blend and `industrial` from
    `schedule.augment_start_epoch` to the final stage; mosaic and mix-up from there to
    `schedule.mix_end_epoch`; several sizes until the final stage. `deim/data/stages.py` is the one place
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
    industrial: IndustrialConfig | None = None
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
