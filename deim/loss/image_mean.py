"""A loss whose terms are means over images, for models that need no matching of queries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deim.loss.criterion import LossCounts
from deim.structures import Target


@dataclass(frozen=True, slots=True)
class MatchedImages:
    """Number of images of a micro-batch."""

    counts: LossCounts


@dataclass(frozen=True, slots=True)
class ImageMeanLoss:
    """Sums the terms of micro-batches to those of the batch; a `BatchLoss`."""

    compute: Callable[[Any], Mapping[str, Tensor]]
    """Returns the terms of a model's output, each a mean over its images."""

    def match(self, outputs: object, targets: Sequence[Target], *, epoch: int) -> MatchedImages:  # noqa: ARG002
        """Count the images and boxes of a batch."""
        boxes = sum(len(target["labels"]) for target in targets)
        return MatchedImages(LossCounts(images=len(targets), boxes=boxes, pairs=0))

    def terms(self, outputs: object, matched: MatchedImages, counts: LossCounts) -> dict[str, Tensor]:
        """Return the terms as shares of those of `counts`."""
        share = matched.counts.images / counts.images
        return {name: value.float() * share for name, value in self.compute(outputs).items()}
