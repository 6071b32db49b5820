"""Options of the data."""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import (
    DAY_S,
    IMAGES_AT_ONCE,
    IMAGES_OF_STEP,
    MEMORY_MB,
    PROCESSES,
    Auto,
    check,
    not_positive,
    outside,
)
from deim.data.formats.names import Format
from deim.data.images.pixel_format import MAX_MEGAPIXELS, PixelFormat, Scaling, Uint8Scaling
from deim.data.images.tiling import TilesOptions
from deim.data.sampling import RepeatFactorSampling, UniformSampling
from deim.data.synthetic.make import SyntheticOptions

WORKER_TIMEOUT_S = 300.0
IMAGE_CACHE_DIR = "outputs/image_cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Location of the images, and how they become the input of the network."""

    root: str
    """Dataset folder, relative to the current folder."""
    format: Format | Auto = "auto"
    """Format of the annotations; auto detects it by the files in `root`."""
    train_annotations: str | None = None
    """COCO file of the training split, relative to `root`; null finds it by the names of files and folders,
    such as `annotations/instances_Train.json` or `train/`."""
    val_annotations: str | None = None
    """COCO file of the validation split, relative to `root`; null finds it."""
    test_annotations: str | None = None
    """COCO file of the test split, relative to `root`; null finds it if there is one."""
    images: str | None = None
    """Folder of the images of these files, relative to `root`; null: `images` if it is there, else `root`."""
    allow_outside: bool = False
    """Read files outside `root`, too, where the files of the dataset name such; only for data you trust."""
    crowd_as_objects: bool = False
    """Train on and evaluate regions marked `iscrowd` or `difficult` like other boxes. CVAT marks every object
    drawn with its brush."""
    normal_class: str | None = None
    """Class that marks a good surface, such as NORMAL; images with no other box count as good. null: none."""
    synthetic: SyntheticOptions | None = None
    """Makes the synthetic defect set at `root` if that folder is missing; null never makes one."""
    resize: Literal["stretch", "letterbox"] = "stretch"
    """How an image is resized to `image_size`: `stretch` ignores the aspect ratio, `letterbox` pads."""
    reduced_decode: bool = False
    """Decode JPEG files at 1/2, 1/4 or 1/8 of their size, the smallest that is not below `image_size`. This
    is faster and gives slightly different pixels, in training, evaluation and prediction of files."""
    tiles: TilesOptions | None = None
    """Cut images into tiles, which count as images in batches and epochs; reports and predictions are of
    whole images. null keeps images whole."""
    channels: int = 3
    """Channels of the image files, 1 to 4; 3 is RGB, or gray files, whose channel is repeated."""
    scaling: Scaling = field(default_factory=Uint8Scaling)
    """How the values of the files are scaled to [0, 1]; 16-bit files need a `window` or a `percentile`."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel in [0, 1], subtracted from the input; the default is of red, green, blue."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, dividing the input."""
    max_image_megapixels: float = MAX_MEGAPIXELS
    """Largest image that is read, in millions of pixels; a wrong header could ask for all memory."""
    sampling: UniformSampling | RepeatFactorSampling = field(default_factory=UniformSampling)
    """How often an epoch draws each training image; `repeat_factor` makes epochs longer."""
    batch_size: int | Literal["auto"] = 8
    """Images in memory of a process at the same time in training; auto: as many as fit."""
    effective_batch_size: int | None = None
    """Images of an optimizer step of all processes together; null: `batch_size` of each process."""
    eval_batch_size: int = 8
    """Images of a batch in evaluation."""
    num_workers: int = 2
    """Number of processes that load images, up to 256; 0 loads in the main process."""
    worker_timeout_s: float = WORKER_TIMEOUT_S
    """Seconds to wait for a batch of these processes, above 0; a network drive may hang for ever."""
    cache_mb: int = 0
    """Memory for resized images in each loading process and split, in MiB; 0 keeps none."""
    disk_cache_mb: int = 0
    """Disk space for resized images of each split, in MiB, shared by all processes and later runs; 0 for
    none."""
    disk_cache_dir: str = IMAGE_CACHE_DIR
    """Folder of these images; it may be deleted between runs. That of a checkpoint is not taken over."""

    def __post_init__(self) -> None:
        check(
            [
                *outside(1, IMAGES_AT_ONCE, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size),
                *outside(1, IMAGES_OF_STEP, effective_batch_size=self.effective_batch_size),
                (
                    self.batch_size == "auto" and self.effective_batch_size is None,
                    "batch_size: 'auto' needs effective_batch_size, the images of an optimizer step for "
                    "which the learning rate was chosen",
                ),
                *outside(0, PROCESSES, num_workers=self.num_workers),
                *outside(0, MEMORY_MB, cache_mb=self.cache_mb, disk_cache_mb=self.disk_cache_mb),
                *not_positive(worker_timeout_s=self.worker_timeout_s),
                *outside(0, DAY_S, worker_timeout_s=self.worker_timeout_s),
                (
                    self.reduced_decode and self.tiles is not None,
                    "reduced_decode: got true, but tiles are cut from full images. Set only one of the two.",
                ),
                (
                    self.format not in ("auto", "coco") and self.synthetic is not None,
                    f"format: got {self.format!r}, but the synthetic set is COCO. Set synthetic to null.",
                ),
                (
                    self.format not in ("auto", "coco") and self.annotation_files != {},
                    f"format: got {self.format!r}, but annotation files are only named for COCO. Remove the "
                    f"names, or the format.",
                ),
                *not_positive(max_image_megapixels=self.max_image_megapixels),
                (not 1 <= self.channels <= 4, f"channels: got {self.channels}, needs 1 to 4"),
                *(
                    (
                        len(values) != self.channels and 1 <= self.channels <= 4,
                        f"{name}: got {list(values)}, needs one number for each of {self.channels} channels, "
                        f"such as {[usual] * min(self.channels, 4)}",
                    )
                    for name, values, usual in (("mean", self.mean, 0.449), ("std", self.std, 0.226))
                ),
                (min(self.std) <= 0, f"std: got {list(self.std)}, each must be above 0"),
            ]
        )

    @property
    def pixels(self) -> PixelFormat:
        """Channels and scaling of the image files."""
        return PixelFormat(
            channels=self.channels, scaling=self.scaling, max_megapixels=self.max_image_megapixels
        )

    @property
    def annotation_files(self) -> dict[str, str]:
        """COCO file of each split that has one by option."""
        files = {"train": self.train_annotations, "val": self.val_annotations, "test": self.test_annotations}
        return {name: file for name, file in files.items() if file is not None}
