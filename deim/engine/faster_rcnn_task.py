"""The task `faster_rcnn`: a convolutional baseline with the data, trainer and reports of the detector."""

from dataclasses import dataclass
from typing import Literal

from deim.config.checks import SIDE_PX, check, outside
from deim.config.schema import Config
from deim.engine.context import RunContext
from deim.engine.detection_task import DetectionTask
from deim.engine.task import TaskOptions
from deim.errors import ConfigError
from deim.loss.image_mean import ImageMeanLoss
from deim.model.backbone.timm import TimmOptions
from deim.model.baselines.faster_rcnn import FasterRcnn, Losses


@dataclass(frozen=True, kw_only=True, slots=True)
class FasterRcnnOptions:
    """Training of Faster R-CNN on the network of timm in `model.backbone`.

    `model.hidden_dim` are the channels of its feature pyramid, and `model.decoder.num_queries` its detections
    of an image; the rest of `model` and `loss` is not used.
    """

    type: Literal["faster_rcnn"] = "faster_rcnn"
    anchor_sides: tuple[int, int, int, int, int] = (16, 32, 64, 128, 256)
    """Side of the square anchors at strides 4 to 64, in pixels of the network input."""

    def __post_init__(self) -> None:
        check(outside(1, SIDE_PX, anchor_sides=self.anchor_sides))


def name_losses(losses: Losses) -> Losses:
    """Return the losses of torchvision by names without prefix."""
    return {name.removeprefix("loss_"): value for name, value in losses.items()}


class FasterRcnnTask(DetectionTask):
    """See `TrainingTask`."""

    options_class: type[TaskOptions] = FasterRcnnOptions
    has_query_loss = False

    def build_model(self, config: Config, num_classes: int) -> FasterRcnn:
        """Build Faster R-CNN with random weights.

        Raises:
            ConfigError: If the backbone is not one of timm.
        """
        options, backbone = config.task, config.model.backbone
        assert isinstance(options, FasterRcnnOptions)
        if not isinstance(backbone, TimmOptions):
            raise ConfigError(
                f"model.backbone.type: got {backbone.type!r}, but faster_rcnn needs a network of timm, such "
                f"as --set 'model.backbone={{type: timm, name: resnet18}}'."
            )
        return FasterRcnn(
            backbone,
            hidden_dim=config.model.hidden_dim,
            num_classes=num_classes,
            channels=config.data.channels,
            max_detections=config.model.decoder.num_queries,
            anchor_sides=options.anchor_sides,
        )

    def build_loss(self, context: RunContext) -> ImageMeanLoss:  # noqa: ARG002
        """Build the loss, which the model computes itself."""
        return ImageMeanLoss(name_losses)

    def describe_model(self, config: Config) -> str:
        """Return `faster_rcnn-resnet18`."""
        return f"faster_rcnn-{getattr(config.model.backbone, 'name', '')}"


TASK = FasterRcnnTask()
