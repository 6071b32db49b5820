"""The table of contents of all options.

The options of a component are declared with the component; here are the blocks that belong to no single one.
The defaults are those of the reference recipe where one exists. `loader.py` turns YAML into these classes and
reports every problem at once; ranges are checked on construction, so a `Config` in hand is valid.
"""

from dataclasses import dataclass, field
from typing import Literal

from deim.config.checks import (
    EPOCHS,
    QUERIES,
    RESAMPLES,
    SEED,
    as_hw,
    check,
    not_fraction,
    not_input_size,
    not_positive,
    outside,
)
from deim.data.augment.options import AugmentOptions
from deim.data.options import DataOptions
from deim.engine.early_stopping import EarlyStoppingOptions
from deim.engine.ema import EmaOptions
from deim.engine.optimizer import RecipeOptions
from deim.engine.schedule import ScheduleOptions
from deim.engine.task import TASKS, TaskOptions, detection_options, task_options_class
from deim.files import count
from deim.inference.operating_points import BestF1Goal, Goal, NmsOptions
from deim.language import LanguageCode
from deim.loss.criterion import LossOptions
from deim.model.detector import ModelOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """When and how a run is evaluated."""

    every_epochs: int = 1
    """Epochs between validations; the last epoch is always validated."""
    evaluate_raw: bool = False
    """Also evaluate the weights that are not averaged; the better ones become best.pth."""
    draw_threshold: float = 0.4
    """Lowest score that is kept and drawn until thresholds are chosen, in [0, 1]."""
    goal: Goal = field(default_factory=BestF1Goal)
    """Goal for which the threshold of each class is chosen, on the validation split."""
    max_escape_rate: float = 0.01
    """Share of defective images without a detection, in [0, 1], for which reports give a threshold."""
    nms: NmsOptions = field(default_factory=NmsOptions)
    max_detections: int = 100
    """Detections of an image and a class that COCO metrics count, as maxDets of pycocotools; at least 10. An
    image with more boxes also needs more `model.decoder.num_queries`, or `data.tiles`."""
    bootstrap_resamples: int = 1000
    """Resamples of the images for each confidence interval, at least 2; 0 gives no intervals."""
    language: LanguageCode = "en"
    """Language of pages and charts; console, tables and JSON files are English."""

    def __post_init__(self) -> None:
        check(
            [
                *outside(1, EPOCHS, every_epochs=self.every_epochs),
                *outside(10, QUERIES, max_detections=self.max_detections),
                *outside(0, RESAMPLES, bootstrap_resamples=self.bootstrap_resamples),
                (self.bootstrap_resamples == 1, "bootstrap_resamples: got 1, needs 0 or at least 2"),
                *not_fraction(draw_threshold=self.draw_threshold, max_escape_rate=self.max_escape_rate),
            ]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeOptions:
    """How a run uses the machine."""

    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:1`."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto: bf16 on GPUs that support it, fp16 on older ones, off on a CPU."""
    tensorboard: bool = True
    """Write TensorBoard curves to the run folder."""
    checkpoint_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; every epoch ends with one."""
    preflight: bool = True
    """Try the most demanding step and a validation batch before training, and log their memory."""
    activation_checkpointing: bool = False
    """Compute the activations of backbone and encoder again in the backward pass: less memory, slower."""
    compile: bool = False
    """Compile backbone and encoder with torch.compile: slow to start, then faster."""
    deterministic: bool = False
    """Use deterministic operations where they exist, and warn of the others."""

    def __post_init__(self) -> None:
        check(not_positive(checkpoint_minutes=self.checkpoint_minutes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One experiment."""

    output_dir: str
    """Run folder; a run that exists there is replaced only with --overwrite."""
    image_size: int | tuple[int, int]
    """Side of the network input in pixels, or [height, width]; multiples of 32, at least 64."""
    epochs: int
    """Passes over the training images."""
    seed: int = 0
    """Seed of weights, sampling, augmentation and denoising."""
    task: TaskOptions = field(
        default_factory=detection_options, metadata={"names": TASKS, "class_of": task_options_class}
    )
    """What is trained: `type: detection`, or another task with its options."""
    model: ModelOptions
    data: DataOptions
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    ema: EmaOptions = field(default_factory=EmaOptions)
    early_stopping: EarlyStoppingOptions = field(default_factory=EarlyStoppingOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    def __post_init__(self) -> None:
        height, width = self.image_size_hw
        too_small = (
            height == 64 and 0 < self.augment.multi_scale <= 0.5,
            f"augment.multi_scale: got {self.augment.multi_scale}, but sizes start at a height of "
            f"64, so image_size {height}x{width} has none below it, nor as many above it. Raise "
            "image_size, or set augment.multi_scale to 0.",
        )
        check(
            [
                *number_problems(self.image_size, self.epochs, self.seed),
                too_small,
                *self._low_resolution_problems(),
            ]
        )

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the network input, in pixels."""
        return as_hw(self.image_size)

    def _low_resolution_problems(self) -> list[tuple[bool, str]]:
        """Return what makes the first phase of the schedule unlike a shorter, smaller part of the run."""
        low = self.schedule.low_resolution
        if low is None:
            return []
        (height, width), (low_height, low_width) = self.image_size_hw, low.image_size_hw
        name, got = "schedule.low_resolution", f"got {low_height}x{low_width}"
        is_part = low_height <= height and low_width <= width and low.image_size_hw != self.image_size_hw
        return [
            (
                low.epochs >= self.epochs,
                f"{name}.epochs: got {low.epochs}, but the run has {count('epoch', self.epochs)} and ends at "
                f"the full image_size. Give at most {self.epochs - 1}, or null for the block.",
            ),
            (
                not is_part,
                f"{name}.image_size: {got}, but image_size is {height}x{width}. Give a smaller size, or null "
                f"for the block.",
            ),
            (
                is_part
                and self.data.resize == "letterbox"
                and abs(low_width * height - low_height * width) >= 32 * height,
                f"{name}.image_size: {got}, which would distort the images of image_size {height}x{width}, "
                f"but data.resize letterbox keeps their aspect ratio. Give sides of about the same ratio.",
            ),
        ]


def number_problems(image_size: int | tuple[int, int], epochs: int, seed: int) -> list[tuple[bool, str]]:
    """Return the problems of the numbers outside blocks, which do not depend on any block."""
    return [
        *not_input_size(image_size),
        *outside(1, EPOCHS, epochs=epochs),
        *outside(0, SEED, seed=seed),
    ]
