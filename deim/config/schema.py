"""Every option of the project, with its unit, range and default.

Those of the model are in `model_schema.py`, those of phase 2 in `multimodal_schema.py`. The defaults are
those of the reference recipe where one exists. `loader.py` turns YAML into these classes and reports every
problem at once; the ranges below are checked on construction, so a `Config` in hand is valid.
"""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import below, check, not_fraction, not_positive
from deim.config.model_schema import ModelConfig
from deim.config.multimodal_schema import MultimodalConfig

Auto = Literal["auto"]


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
    """Share of a tile that it has in common with the next, at least, in [0, 0.9]; as wide as most objects."""
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
    batch_size: int | Auto = 8
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


@dataclass(frozen=True, kw_only=True, slots=True)
class MatcherConfig:
    """Costs of the Hungarian assignment of queries to boxes."""

    cost_class: float = 2.0
    """Weight of the focal classification cost."""
    cost_bbox: float = 5.0
    """Weight of the L1 distance of normalised cxcywh boxes."""
    cost_giou: float = 2.0
    """Weight of the negative generalised IoU."""
    alpha: float = 0.25
    """Balance of the focal cost, in [0, 1]."""
    gamma: float = 2.0
    """Exponent of the focal cost."""
    iou_order: float = 4.0
    """Exponent of the IoU in the cost used after `schedule.matcher_change_epoch`."""

    def __post_init__(self) -> None:
        costs = below(
            0,
            cost_class=self.cost_class,
            cost_bbox=self.cost_bbox,
            cost_giou=self.cost_giou,
            gamma=self.gamma,
        )
        check([*costs, *not_fraction(alpha=self.alpha), *not_positive(iou_order=self.iou_order)])


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and exponents of the loss terms."""

    mal: float = 1.0
    """Weight of the matchability-aware classification loss."""
    bbox: float = 5.0
    """Weight of the L1 box loss."""
    giou: float = 2.0
    """Weight of the generalised IoU loss."""
    fgl: float = 0.15
    """Weight of the fine-grained localisation loss on edge distributions."""
    ddf: float = 1.5
    """Weight of the distillation of the last layer's edge distributions into earlier layers."""
    mal_gamma: float = 1.5
    """Exponent of the classification target and of the negatives' weight."""
    ddf_temperature: float = 5.0
    """Temperature of the distillation, above 0."""
    union_ties: Literal["first", "reference"] = "first"
    """Which box a query gets when two have equal votes: the first, or whatever the reference's sort gives."""
    matcher: MatcherConfig = field(default_factory=MatcherConfig)

    def __post_init__(self) -> None:
        weights = below(
            0,
            mal=self.mal,
            bbox=self.bbox,
            giou=self.giou,
            fgl=self.fgl,
            ddf=self.ddf,
            mal_gamma=self.mal_gamma,
        )
        check([*weights, *not_positive(ddf_temperature=self.ddf_temperature)])


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """Optimiser: AdamW with one learning rate for the backbone and one for the rest."""

    lr: float = 5e-4
    """Learning rate of everything but the vision transformer, at the flat phase."""
    backbone_lr: float = 2.5e-5
    """Learning rate of the vision transformer, at the flat phase."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running moments."""
    clip_grad_norm: float = 0.1
    """Largest global L2 norm of the gradient; larger gradients are scaled down to it."""
    max_refused_steps: int = 20
    """Steps in a row without a finite loss and gradient, after which the last good state is restored."""
    parameter_groups: Literal["by_type", "reference"] = "by_type"
    """`by_type` decays no norm, bias, scale or token; `reference` decays what DEIMv2 decays."""

    def __post_init__(self) -> None:
        check(
            [
                *not_positive(lr=self.lr, backbone_lr=self.backbone_lr, clip_grad_norm=self.clip_grad_norm),
                *below(0, weight_decay=self.weight_decay),
                *below(1, max_refused_steps=self.max_refused_steps),
                (
                    not all(0 <= b < 1 for b in self.betas),
                    f"betas: got {list(self.betas)}, each needs [0, 1)",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Phases of a run. `auto` follows from `epochs` by the reference's ratios; see `resolve_schedule`."""

    warmup_steps: int | Auto = "auto"
    """Optimiser steps of quadratic warm-up; auto: 2000, at most 5 % of the run."""
    flat_epochs: int | Auto = "auto"
    """Epochs until the learning rate starts to fall; auto: half of the augmented epochs, plus 4 of 100."""
    no_aug_epochs: int | Auto = "auto"
    """Final epochs without augmentation, at the lowest learning rate; auto: a tenth of `epochs`."""
    augment_start_epoch: int | Auto = "auto"
    """First epoch with augmentation other than flips and sizes; auto: 4 of 100 epochs."""
    mix_end_epoch: int | Auto = "auto"
    """First epoch without mosaic and mix-up; auto: half of the augmented epochs after the start."""
    matcher_change_epoch: int | Auto = "auto"
    """First epoch with the second matching cost; auto: nine tenths of the augmented epochs."""
    final_lr_ratio: float = 0.5
    """Lowest learning rate as a share of the flat one, in [0, 1]."""

    def __post_init__(self) -> None:
        check(
            [
                *below(
                    0,
                    warmup_steps=self.warmup_steps,
                    flat_epochs=self.flat_epochs,
                    no_aug_epochs=self.no_aug_epochs,
                    augment_start_epoch=self.augment_start_epoch,
                    mix_end_epoch=self.mix_end_epoch,
                    matcher_change_epoch=self.matcher_change_epoch,
                ),
                *not_fraction(final_lr_ratio=self.final_lr_ratio),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaConfig:
    """Exponential moving average of the weights; the average is what is evaluated and saved as best."""

    decay: float | Auto = "auto"
    """Share kept at each step, in [0, 1); auto: 0.9999, or a horizon of a tenth of a shorter run."""
    warmup_steps: int | Auto = "auto"
    """Steps in which the decay ramps up; auto: a tenth of the averaging horizon."""

    def __post_init__(self) -> None:
        check(
            [
                *below(0, warmup_steps=self.warmup_steps),
                (
                    not isinstance(self.decay, str) and not 0 <= self.decay < 1,
                    f"decay: got {self.decay}, needs [0, 1)",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingConfig:
    """Ends a run that no longer gains."""

    patience: int | None = None
    """Epochs without a gain before the run ends; null never ends it early."""
    min_delta: float = 0.0
    """A gain is a score higher than the best by more than this, in [0, 1]."""
    metric: Literal["ap", "ap50"] = "ap"
    """COCO AP, or AP at IoU 0.50, of the validation split."""
    before_final_stage: bool = False
    """Let the run end before its final stage, whose gain is then lost; otherwise patience counts there, or,
    without a final stage, from `schedule.augment_start_epoch`."""

    def __post_init__(self) -> None:
        check([*below(1, patience=self.patience), *not_fraction(min_delta=self.min_delta)])


@dataclass(frozen=True, kw_only=True, slots=True)
class BestF1Goal:
    """Each class's threshold is the one with its highest F1."""

    type: Literal["best_f1"] = "best_f1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallGoal:
    """Each class's threshold is the highest that finds enough of its boxes."""

    type: Literal["recall"]
    at_least: float
    """Share of the class's boxes to be found at IoU 0.5, in [0, 1]."""

    def __post_init__(self) -> None:
        check(not_fraction(at_least=self.at_least))


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseBoxesGoal:
    """Each class's threshold is the lowest with few enough false boxes."""

    type: Literal["false_boxes"]
    at_most_per_image: float
    """False boxes of the class an image on average, at least 0."""

    def __post_init__(self) -> None:
        check(below(0, at_most_per_image=self.at_most_per_image))


Goal = BestF1Goal | RecallGoal | FalseBoxesGoal


@dataclass(frozen=True, kw_only=True, slots=True)
class SuppressionConfig:
    """Suppression of duplicates among the detections that count; `auto` is settled on validation."""

    mode: Literal["none", "class_aware", "agnostic"] | Auto = "auto"
    """Which better boxes rule a detection out by overlapping it: none, those of its class, any."""
    iou_threshold: float | Auto = "auto"
    """IoU above which they do so, in (0, 1); auto with mode none."""
    best_class_per_query: bool | Auto = "auto"
    """Keep only the best class of each query."""

    def __post_init__(self) -> None:
        is_number = isinstance(self.iou_threshold, float)
        check(
            [
                (
                    is_number and not 0 < float(self.iou_threshold) < 1,
                    f"iou_threshold: got {self.iou_threshold}, needs (0, 1)",
                ),
                (
                    is_number and self.mode == "none",
                    f"iou_threshold: got {self.iou_threshold}, of no use with mode none. Leave it auto.",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How often and how a run is scored."""

    every_epochs: int = 1
    """Epochs between validations; the last epoch is always validated."""
    evaluate_raw: bool = False
    """Also score the weights that are not averaged; the better of the two becomes best.pth."""
    draw_threshold: float = 0.4
    """Lowest score that counts and is drawn as long as no threshold has been chosen, in [0, 1]."""
    goal: Goal = field(default_factory=BestF1Goal)
    """What the threshold of each class is chosen for, on the validation split."""
    max_escape_rate: float = 0.01
    """Share of defective images that may pass without a hit, in [0, 1]; reports give the threshold for it."""
    suppression: SuppressionConfig = field(default_factory=SuppressionConfig)
    bootstrap_resamples: int = 1000
    """Resamples of the images behind each interval, at least 2; 0 gives no intervals."""

    def __post_init__(self) -> None:
        check(
            [
                *below(1, every_epochs=self.every_epochs),
                (
                    self.bootstrap_resamples < 0 or self.bootstrap_resamples == 1,
                    f"bootstrap_resamples: got {self.bootstrap_resamples}, needs 0 or at least 2",
                ),
                *not_fraction(draw_threshold=self.draw_threshold, max_escape_rate=self.max_escape_rate),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine."""

    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:1`."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto: bf16 on GPUs that have it, fp16 on older ones, off on CPU."""
    tensorboard: bool = True
    """Write TensorBoard curves to the run folder."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; each epoch ends with one too."""
    preflight: bool = True
    """Before training, try the most demanding step and a validation batch, and print the memory they take."""
    activation_checkpointing: bool = False
    """Compute the activations of backbone and encoder twice rather than keep them: less memory, slower."""
    compile: bool = False
    """Compile backbone and encoder with torch.compile: slow to start, then faster."""
    deterministic: bool = False
    """Use deterministic operations only, where there are any; those that are not are named."""

    def __post_init__(self) -> None:
        check(not_positive(checkpoint_minutes=self.checkpoint_minutes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment."""

    output_dir: str
    """Run folder; an existing run there is never overwritten without being asked."""
    image_size: int | tuple[int, int]
    """Side of the network input in pixels, or [height, width]; multiples of 32, at least 64."""
    epochs: int
    """Passes over the training images."""
    seed: int = 0
    """Seed of weights, sampling, augmentation and denoising."""
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    multimodal: MultimodalConfig | None = None
    """Phase 2, text fusion on a frozen detector; null trains a detector."""

    def __post_init__(self) -> None:
        height, width = self.image_size_hw
        check(
            [
                (
                    height < 64 or width < 64 or height % 32 != 0 or width % 32 != 0,
                    f"image_size: got {height}x{width}, height and width must be multiples of 32 from 64; "
                    f"the nearest are {_nearest_32(height)}x{_nearest_32(width)}",
                ),
                *below(1, epochs=self.epochs),
                *below(0, seed=self.seed),
                (
                    height == 64 and 0 < self.augment.multi_scale <= 0.5,
                    f"augment.multi_scale: got {self.augment.multi_scale}, but sizes start at a height of "
                    f"64, so image_size {height}x{width} has none below it, nor as many above it. Raise "
                    "image_size, or set augment.multi_scale to 0.",
                ),
            ]
        )

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the network input, in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        return self.image_size


def _nearest_32(side: int) -> int:
    return max(64, round(side / 32) * 32)
