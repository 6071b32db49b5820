"""Every option of the project, with its unit, range and default.

Those of the model are in `model_schema.py`, those of data and augmentation in `data_schema.py`, those of
phase 2 in `multimodal_schema.py`. The defaults are those of the reference recipe where one exists.
`loader.py` turns YAML into these classes and reports every problem at once; the ranges below are checked on
construction, so a `Config` in hand is valid.
"""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import below, check, not_fraction, not_positive
from deim.config.data_schema import AugmentConfig, DataConfig
from deim.config.model_schema import ModelConfig
from deim.config.multimodal_schema import MultimodalConfig

Auto = Literal["auto"]


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
