"""The losses of pretraining: features of a teacher, or the pixels behind a mask."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from deim.model.backbone.timm import STRIDES
from deim.model.pretraining.network import MASK_PX, PretrainingOutput
from deim.model.pretraining.teacher import Teacher

BETA = 2.0
"""Difference from which the loss of features is linear."""


@dataclass(frozen=True, slots=True)
class FeatureLoss:
    """Distance of the predicted maps from those of a teacher.

    Source:
        Smooth L1 of normalized features, as in Wei et al. (arXiv:2205.14141).
    """

    teacher: Teacher

    def __call__(self, output: PretrainingOutput) -> dict[str, Tensor]:
        """Return a term for each stride, a mean over images."""
        features = self.teacher(output.images.float())
        return {
            f"features_{stride}": F.smooth_l1_loss(predicted.float(), expected, beta=BETA)
            for stride, predicted, expected in zip(STRIDES, output.maps, features, strict=True)
        }


def pixel_loss(output: PretrainingOutput) -> dict[str, Tensor]:
    """Return the mean absolute error of the pixels behind the mask, for each stride.

    Source:
        Xie et al. (arXiv:2111.09886).
    """
    assert output.mask is not None
    terms = {}
    for predicted in output.maps:
        stride = output.images.shape[-1] // predicted.shape[-1]
        pixels = F.pixel_unshuffle(output.images.float(), stride)
        repeats = MASK_PX // stride
        mask = output.mask.repeat_interleave(repeats, dim=1).repeat_interleave(repeats, dim=2)[:, None]
        error = (predicted.float() - pixels).abs() * mask
        terms[f"pixels_{stride}"] = error.sum() / (mask.sum() * pixels.shape[1])
    return terms
