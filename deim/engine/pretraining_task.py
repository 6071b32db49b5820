"""The task `pretraining`: a backbone learns from images without annotations, before it detects."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NoReturn

import torch
from torch import nn

from deim.config.checks import check
from deim.config.schema import Config
from deim.data.batch import Batch
from deim.data.formats.split import CocoSplit
from deim.data.images.input_format import build_input_format
from deim.data.loader import BatchLoader, build_eval_loader
from deim.data.tensor_file import pack_tensors
from deim.engine.checkpoints import Checkpoint, read_checkpoint
from deim.engine.context import RunContext, TrainingRun
from deim.engine.detection_task import DetectionTask, build_detection_loader, load_start
from deim.engine.distributed import DistributedContext
from deim.engine.optimizer import build_optimizer
from deim.engine.task import TaskOptions, TaskProducts
from deim.engine.validation import Validation
from deim.errors import CheckpointError, ConfigError, NonFiniteError
from deim.files import write_bytes
from deim.loss.image_mean import ImageMeanLoss
from deim.loss.pretraining import FeatureLoss, pixel_loss
from deim.model.backbone.timm import PRETRAINED, RANDOM, STRIDES, TimmOptions
from deim.model.pretraining.network import PretrainingNetwork
from deim.model.pretraining.teacher import IMAGE_CHANNELS, Teacher
from deim.model.weights import hash_tensors

BACKBONE_FILE: Final = "backbone.safetensors"
"""Name in the run folder of the weights that `model.init_from` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationOptions:
    """The backbone learns to predict the maps of a trained network."""

    type: Literal["distillation"] = "distillation"
    teacher: str = "tf_efficientnet_lite0"
    """Name of a network in timm with maps at strides 8, 16 and 32."""
    weights: str = PRETRAINED
    """Its weights: `pretrained` for those that timm downloads, or that the package of the extra `lite` holds;
    or the file of a state dict of timm or torchvision."""

    def __post_init__(self) -> None:
        problem = "needs weights, as a network with random ones teaches nothing: give pretrained or a file"
        check([(self.weights == RANDOM, f"weights: got {RANDOM}, {problem}")])


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedImagesOptions:
    """The backbone learns to predict the pixels of squares that it does not see."""

    type: Literal["masked_images"] = "masked_images"
    mask_ratio: float = 0.6
    """Share of the squares of 32 px that are masked, above 0 and below 1."""

    def __post_init__(self) -> None:
        problem = f"mask_ratio: got {self.mask_ratio:g}, must be above 0 and below 1"
        check([(not 0 < self.mask_ratio < 1, problem)])


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingOptions:
    """Training of the backbone alone, on images whose annotations, if there are any, are not used."""

    type: Literal["pretraining"] = "pretraining"
    method: DistillationOptions | MaskedImagesOptions = field(default_factory=DistillationOptions)
    """What the backbone learns: `type: distillation` or `type: masked_images`."""


class PretrainingTask(DetectionTask):
    """See `TrainingTask`."""

    options_class: type[TaskOptions] = PretrainingOptions
    command = "pretrain"
    run_files = (BACKBONE_FILE,)
    fingerprint_messages: Mapping[str, str] = {"teacher": "task.method: a teacher with other weights"}
    has_stages = False
    has_query_loss = False

    def describe_model(self, config: Config) -> str:
        """Return the name of the model, for logs."""
        return f"backbone of {super().describe_model(config)}"

    def start_files(self, config: Config) -> list[Path]:
        """Return the files of initial weights and of the teacher's weights."""
        assert isinstance(config.task, PretrainingOptions)
        match config.task.method:
            case DistillationOptions(weights=weights) if weights != PRETRAINED:
                return [*super().start_files(config), Path(weights)]
        return super().start_files(config)

    def build(self, context: RunContext) -> TaskProducts:
        """Build the backbone with random or initial weights, its loss, optimizer and batches.

        Raises:
            CheckpointError: If the initial weights or those of the teacher cannot be read or do not fit.
            ConfigError: If the backbone or the teacher does not fit, or needs a package that is not
                installed.
        """
        config = context.config
        assert isinstance(config.task, PretrainingOptions)
        teacher = None
        match config.task.method:
            case DistillationOptions() as method:
                teacher = _build_teacher(method, config).to(context.device)
                head_channels, mask_ratio = teacher.channels, 0.0
            case MaskedImagesOptions() as method:
                head_channels = [config.data.channels * stride**2 for stride in STRIDES]
                mask_ratio = method.mask_ratio
        model = PretrainingNetwork(
            config.model.backbone,
            hidden_dim=config.model.hidden_dim,
            channels=config.data.channels,
            head_channels=head_channels,
            mask_ratio=mask_ratio,
        )
        if context.is_new:
            load_start(model, config, class_names=())
        return TaskProducts(
            model=model.to(context.device),
            criterion=ImageMeanLoss(pixel_loss if teacher is None else FeatureLoss(teacher)),
            optimizer=build_optimizer(model, config.recipe),
            loader=build_detection_loader(context),
            fingerprints={} if teacher is None else {"teacher": hash_tensors(teacher.state_dict())},
        )

    def build_stored_model(self, config: Config, checkpoint: Checkpoint, path: Path) -> NoReturn:  # noqa: ARG002
        """Refuse to detect.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{path}: a pretrained backbone, which detects nothing yet. Train a detector that starts "
            f"from it: deim train -c CONFIG --set model.init_from={path}"
        )


TASK = PretrainingTask()


def _build_teacher(method: DistillationOptions, config: Config) -> Teacher:
    """Build the teacher of images with the mean and standard deviation of the data."""
    data = config.data
    if data.channels != IMAGE_CHANNELS:
        raise ConfigError(
            f"data.channels: got {data.channels}, but the teacher {method.teacher} sees {IMAGE_CHANNELS}. "
            f"Pretrain with --set task.method.type=masked_images, or read gray files as RGB with "
            f"data.channels={IMAGE_CHANNELS} and three numbers in data.mean and data.std."
        )
    options = TimmOptions(type="timm", name=method.teacher, weights=method.weights)
    return Teacher(options, mean=data.mean, std=data.std)


@torch.no_grad()
def validate_pretraining(run: TrainingRun, model: nn.Module, batches: Iterable[Batch]) -> Validation:
    """Compute the loss of held-out images, the same in every process.

    Args:
        run: The run, for its loss and its processes.
        model: On the device of the run.
        batches: This process's share of the images.

    Raises:
        DataError: If an image is damaged.
        NonFiniteError: If the loss is NaN or infinite.
    """
    context, criterion = run.context, run.products.criterion
    context.distributed.copy_buffers(model)
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        inputs = batch.to(context.device)
        outputs = model(inputs.images, inputs.targets)
        matched = criterion.match(outputs, inputs.targets, epoch=0)
        terms = criterion.terms(outputs, matched, matched.counts)
        number = len(inputs.targets)
        totals += torch.tensor([number * float(sum(terms.values())), number])
    loss, number_of_images = context.distributed.sum(totals).tolist()
    if not math.isfinite(loss):
        raise NonFiniteError("the loss is NaN or infinite.")
    return Validation(
        ap=None,
        ap50=None,
        worst_class=None,
        worst_class_ap50=None,
        summary={},
        class_ap50={},
        loss=loss / number_of_images,
    )


def build_held_out_loader(config: Config, split: CocoSplit, distributed: DistributedContext) -> BatchLoader:
    """Build the loader of this process's share of the held-out images."""
    return build_eval_loader(
        split,
        {category_id: index for index, category_id in enumerate(split.category_ids)},
        data=config.data,
        input_format=build_input_format(config.data, config.image_size_hw),
        rank=distributed.rank,
        num_ranks=distributed.size,
    )


def write_backbone(checkpoint_path: Path, path: Path) -> None:
    """Write the backbone of a pretraining run as a file that `model.init_from` takes.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        OSError: If the file cannot be written.
    """
    checkpoint = read_checkpoint(checkpoint_path)
    weights = {
        name: value.cpu()
        for name, value in checkpoint.inference_weights.items()
        if name.startswith("backbone.")
    }
    content = pack_tensors(weights, task=checkpoint.task, config=checkpoint.config, step=checkpoint.step)
    write_bytes(path, content)
