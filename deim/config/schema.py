"""Every option of the project, with its unit, range and default.

The defaults are those of the reference recipe where one exists. `loader.py` turns YAML into these classes and
reports every problem at once; the ranges below are checked on construction, so a `Config` in hand is valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from deim.errors import ConfigError

Auto = Literal["auto"]


def _check(problems: Sequence[tuple[bool, str]]) -> None:
    wrong = [message for is_wrong, message in problems if is_wrong]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _below(bound: float, **values: float | str | None) -> list[tuple[bool, str]]:
    """Problems of the values that lie below `bound`; `auto` and null have no size."""
    return [
        (value < bound, f"{name}: got {value}, needs at least {bound}")
        for name, value in values.items()
        if isinstance(value, (int, float))
    ]


def _not_positive(**values: float) -> list[tuple[bool, str]]:
    return [(value <= 0, f"{name}: got {value}, must be above 0") for name, value in values.items()]


def _not_fraction(**values: float) -> list[tuple[bool, str]]:
    return [(not 0 <= value <= 1, f"{name}: got {value}, needs [0, 1]") for name, value in values.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class VitTinyConfig:
    """Plain vision transformer with rotary positions: the distilled ViT-Tiny family of the S and M models."""

    type: Literal["vit_tiny"]
    dim: int
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (3, 7, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 16
    """Channels of the first convolution of the spatial adapter."""

    def __post_init__(self) -> None:
        _check_vit(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoV3Config:
    """DINOv3 vision transformer: register tokens, layer scale, masked key bias; the backbone of L and X."""

    type: Literal["dinov3"]
    dim: int = 384
    """Token width; a multiple of `num_heads` · 4."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 6
    """Attention heads of each block."""
    return_blocks: tuple[int, int, int] = (5, 8, 11)
    """0-based blocks whose tokens feed strides 8, 16 and 32, ascending."""
    adapter_width: int = 32
    """Channels of the first convolution of the spatial adapter."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """Feed-forward of each block: ViT-S has `mlp`, ViT-S+ has `swiglu`."""

    def __post_init__(self) -> None:
        _check_vit(self.dim, self.depth, self.num_heads, self.return_blocks, self.adapter_width)


def _check_vit(
    dim: int, depth: int, num_heads: int, return_blocks: tuple[int, int, int], adapter_width: int
) -> None:
    _check(
        [
            *_below(1, dim=dim, depth=depth, num_heads=num_heads, adapter_width=adapter_width),
            (
                dim % (max(num_heads, 1) * 4) != 0,
                f"dim: {dim} is not a multiple of num_heads · 4 = {num_heads * 4}",
            ),
            (
                list(return_blocks) != sorted(set(return_blocks))
                or not all(0 <= block < depth for block in return_blocks),
                f"return_blocks: got {list(return_blocks)}, needs three ascending blocks in [0, {depth})",
            ),
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Hybrid encoder: attention at stride 32, then fusion up and down the pyramid."""

    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Hidden width of the attention layer's feed-forward."""
    expansion: float = 1.0
    """Width of the fusion blocks relative to half of `model.hidden_dim`, in (0, 4]."""
    depth_mult: float = 1.0
    """Fusion blocks have round(3 · depth_mult) convolutions in sequence."""

    def __post_init__(self) -> None:
        _check(
            [
                *_below(1, num_heads=self.num_heads, dim_feedforward=self.dim_feedforward),
                (not 0 < self.expansion <= 4, f"expansion: got {self.expansion}, needs (0, 4]"),
                (round(3 * self.depth_mult) < 1, f"depth_mult: got {self.depth_mult}, gives no block at all"),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Transformer decoder with iterative refinement of edge distributions."""

    num_layers: int = 4
    """Decoder layers, at least 2."""
    num_heads: int = 8
    """Attention heads; divides `model.hidden_dim`."""
    dim_feedforward: int = 512
    """Twice the hidden width of the gated feed-forward; even."""
    num_queries: int = 300
    """Object queries an image, and detections kept an image."""
    num_points: tuple[int, int, int] = (3, 6, 3)
    """Sampling points of each head at strides 8, 16 and 32."""
    reg_max: int = 32
    """Bins of an edge's distance distribution, less one; even."""
    reg_scale: float = 4.0
    """Distances are in units of box side / reg_scale."""
    up: float = 0.5
    """Half range of the fine bins, in units of reg_scale."""
    num_denoising: int = 100
    """Denoising queries an image and polarity, about; 0 switches denoising off."""
    label_noise_ratio: float = 0.5
    """Twice the probability that a denoising query gets a random label, in [0, 1]."""
    box_noise_scale: float = 1.0
    """Size of the box noise in units of half the box side, at least 0."""

    def __post_init__(self) -> None:
        _check(
            [
                *_below(2, num_layers=self.num_layers, dim_feedforward=self.dim_feedforward),
                *_below(1, num_heads=self.num_heads, num_queries=self.num_queries),
                *_below(0, num_denoising=self.num_denoising, box_noise_scale=self.box_noise_scale),
                *_not_positive(reg_scale=self.reg_scale, up=self.up),
                *_not_fraction(label_noise_ratio=self.label_noise_ratio),
                (self.dim_feedforward % 2 != 0, f"dim_feedforward: got {self.dim_feedforward}, must be even"),
                (min(self.num_points) < 1, f"num_points: got {list(self.num_points)}, each at least 1"),
                (
                    self.reg_max < 8 or self.reg_max % 2 != 0,
                    f"reg_max: got {self.reg_max}, needs an even number of at least 8",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The detector's architecture and the weights it starts from."""

    name: str
    """Name in logs and reports, such as `deimv2-m`."""
    hidden_dim: int
    """Width of encoder and decoder; a multiple of 4 and of the numbers of heads."""
    backbone: VitTinyConfig | DinoV3Config
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    init_from: str | None = None
    """Weights to start from: a checkpoint of this project, an official DEIMv2 file, or a backbone file."""

    def __post_init__(self) -> None:
        heads = {max(self.encoder.num_heads, 1), max(self.decoder.num_heads, 1), 4}
        _check(
            [
                *_below(4, hidden_dim=self.hidden_dim),
                (
                    any(self.hidden_dim % number != 0 for number in heads),
                    f"hidden_dim: {self.hidden_dim} is not a multiple of 4 and of the numbers of heads",
                ),
            ]
        )


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
        _check(
            [
                *_below(1, train_images=self.train_images, val_images=self.val_images),
                *_below(0, test_images=self.test_images, seed=self.seed),
                (
                    min(self.max_size_wh) < 96,
                    f"max_size_wh: got {list(self.max_size_wh)}, each needs at least 96",
                ),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the images are and how they reach the network."""

    root: str
    """Dataset folder, relative to where the command runs."""
    train_annotations: str = "annotations/train.json"
    """COCO file of the training split, relative to `root`."""
    val_annotations: str = "annotations/val.json"
    """COCO file of the validation split, relative to `root`."""
    test_annotations: str | None = "annotations/test.json"
    """COCO file of the test split, relative to `root`; null if there is none."""
    images: str = "images"
    """Folder of the images, relative to `root`."""
    synthetic: SyntheticConfig | None = None
    """Makes the synthetic defect set at `root` if nothing is there; null never makes one."""
    resize: Literal["stretch", "letterbox"] = "stretch"
    """How an image becomes `image_size`: `stretch` ignores the aspect ratio, `letterbox` pads."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green, blue in [0, 1], subtracted from the input."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green, blue, dividing the input."""
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

    def __post_init__(self) -> None:
        _check(
            [
                *_below(
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
                *_below(0, num_workers=self.num_workers, cache_mb=self.cache_mb),
                (min(self.std) <= 0, f"std: got {list(self.std)}, each must be above 0"),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random changes of training images; each number is a probability in [0, 1]."""

    horizontal_flip: float = 0.5
    """Mirror left and right; on for the whole run."""
    vertical_flip: float = 0.0
    """Mirror top and bottom; on for the whole run."""
    photometric: float = 0.5
    """Brightness, contrast, saturation, hue and channel order, each drawn with this probability."""

    def __post_init__(self) -> None:
        _check(
            _not_fraction(
                horizontal_flip=self.horizontal_flip,
                vertical_flip=self.vertical_flip,
                photometric=self.photometric,
            )
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
        costs = _below(
            0,
            cost_class=self.cost_class,
            cost_bbox=self.cost_bbox,
            cost_giou=self.cost_giou,
            gamma=self.gamma,
        )
        _check([*costs, *_not_fraction(alpha=self.alpha), *_not_positive(iou_order=self.iou_order)])


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
        weights = _below(
            0,
            mal=self.mal,
            bbox=self.bbox,
            giou=self.giou,
            fgl=self.fgl,
            ddf=self.ddf,
            mal_gamma=self.mal_gamma,
        )
        _check([*weights, *_not_positive(ddf_temperature=self.ddf_temperature)])


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
        _check(
            [
                *_not_positive(lr=self.lr, backbone_lr=self.backbone_lr, clip_grad_norm=self.clip_grad_norm),
                *_below(0, weight_decay=self.weight_decay),
                *_below(1, max_refused_steps=self.max_refused_steps),
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
    """First epoch with photometric augmentation; auto: 4 of 100 epochs."""
    matcher_change_epoch: int | Auto = "auto"
    """First epoch with the second matching cost; auto: nine tenths of the augmented epochs."""
    final_lr_ratio: float = 0.5
    """Lowest learning rate as a share of the flat one, in [0, 1]."""

    def __post_init__(self) -> None:
        _check(
            [
                *_below(
                    0,
                    warmup_steps=self.warmup_steps,
                    flat_epochs=self.flat_epochs,
                    no_aug_epochs=self.no_aug_epochs,
                    augment_start_epoch=self.augment_start_epoch,
                    matcher_change_epoch=self.matcher_change_epoch,
                ),
                *_not_fraction(final_lr_ratio=self.final_lr_ratio),
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
        _check(
            [
                *_below(0, warmup_steps=self.warmup_steps),
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
    """Let the run end before its final stage, whose gain is then lost; otherwise patience counts there."""

    def __post_init__(self) -> None:
        _check([*_below(1, patience=self.patience), *_not_fraction(min_delta=self.min_delta)])


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How often and how a run is scored."""

    every_epochs: int = 1
    """Epochs between validations; the last epoch is always validated."""
    evaluate_raw: bool = False
    """Also score the weights that are not averaged; the better of the two becomes best.pth."""
    draw_threshold: float = 0.4
    """Lowest score of a detection that pictures show, in [0, 1]."""

    def __post_init__(self) -> None:
        _check(
            [
                *_below(1, every_epochs=self.every_epochs),
                *_not_fraction(draw_threshold=self.draw_threshold),
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
        _check(_not_positive(checkpoint_minutes=self.checkpoint_minutes))


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

    def __post_init__(self) -> None:
        height, width = self.image_size_hw
        _check(
            [
                (
                    height < 64 or width < 64 or height % 32 != 0 or width % 32 != 0,
                    f"image_size: got {height}x{width}, height and width must be multiples of 32 from 64; "
                    f"the nearest are {_nearest_32(height)}x{_nearest_32(width)}",
                ),
                *_below(1, epochs=self.epochs),
                *_below(0, seed=self.seed),
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
