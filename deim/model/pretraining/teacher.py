"""The teacher of distillation: a trained network of timm, whose maps a backbone learns to predict."""

from collections.abc import Sequence
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deim.model.backbone.timm import (
    STRIDES,
    OptionNames,
    TimmNetwork,
    TimmOptions,
    load_features,
    pretrained_normalization,
)

IMAGE_CHANNELS: Final = 3
OF_TEACHER: Final = OptionNames(
    name="task.method.teacher",
    weights="task.method.weights",
    without="pretrain without a teacher, with task.method.type=masked_images",
)


class Teacher(nn.Module):
    """A frozen network of timm.

    Args:
        options: The network and its weights.
        mean: Mean of each image channel that normalized the images, in [0, 1].
        std: Standard deviation of each image channel that normalized the images.

    Raises:
        CheckpointError: If its weights are missing or damaged, or of another network.
        ConfigError: If timm is not installed or has no such model, or the model does not fit.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, options: TimmOptions, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = TimmNetwork(options, in_channels=IMAGE_CHANNELS, strides=STRIDES, names=OF_TEACHER)
        self.network.body.load_state_dict(load_features(options, names=OF_TEACHER))
        of_teacher = pretrained_normalization(options)
        means, deviations = (
            torch.tensor([theirs, ours]).view(2, -1, 1, 1)
            for theirs, ours in zip(of_teacher, (mean, std), strict=True)
        )
        self.register_buffer("scale", deviations[1] / deviations[0])
        self.register_buffer("shift", (means[1] - means[0]) / deviations[0])
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> list[int]:
        """Number of channels of each map."""
        return cast("list[int]", self.network.body.feature_info.channels())

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps (B, C, H/s, W/s) for s = 8, 16, 32 of images (B, 3, H, W) float, normalized.

        The channels of each place have mean 0 and variance 1, so that all strides weigh alike.

        Source:
            The normalization of Wei et al. (arXiv:2205.14141).
        """
        maps = self.network.extract_maps(images * self.scale + self.shift)
        return [
            F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)
            for features in maps
        ]
