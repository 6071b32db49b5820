"""The list of all random changes of training images, with the epochs in which each runs.

epochs              mosaic   colors   zoom-out, crop,   flips   mix-up   copy-blend   sizes
                                      industrial
before start        –        –        –                 yes     –        –            yes
start to mix_end    yes      yes      yes *             yes     yes      yes          yes
mix_end to stop     –        yes      yes               yes     –        yes          yes
from stop           –        –        –                 yes     –        –            –

* zoom-out and crop for the images that did not become a mosaic.
"""

from dataclasses import dataclass

import numpy as np

from deim.data.augment.colors import Colors
from deim.data.augment.copy_blend import CopyBlend
from deim.data.augment.flip import Flip
from deim.data.augment.industrial import Industrial, require_albumentations
from deim.data.augment.mix_up import MixUp
from deim.data.augment.mosaic import Mosaic
from deim.data.augment.multi_scale import MultiScale, compute_sizes
from deim.data.augment.options import AugmentOptions
from deim.data.augment.transform import (
    ALL_EPOCHS,
    BlendTransform,
    ComposeTransform,
    ImageSource,
    Sample,
    SampleTransform,
    Transform,
)
from deim.data.augment.zoom_crop import ZoomCrop


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentEpochs:
    """Epochs (0-based) in which the augmentation changes."""

    start: int
    """First epoch with more than flips and several sizes."""
    mix_end: int
    """First epoch without mosaic and mix-up."""
    stop: int
    """First epoch of the final stage, which has flips only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochStage:
    """Consecutive epochs with the same transforms."""

    first_epoch: int
    """First epoch, 0-based."""
    end_epoch: int
    """First epoch after the stage."""
    names: tuple[str, ...]
    """Names of the transforms."""

    def describe(self) -> str:
        """Return the stage as one line."""
        return f"epochs {self.first_epoch + 1} to {self.end_epoch}: {', '.join(self.names) or 'nothing'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchDraw:
    """Random choices for a whole batch."""

    size_hw: tuple[int, int] | None
    """Size of the input in pixels; None for the usual one."""
    blend: BlendTransform | None
    """How its images are blended; None if they are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentPipeline:
    """All random changes of training images, in the order in which they run.

    A transform that is off still draws its random numbers, so that the draws of one do not depend on whether
    another is on.
    """

    options: AugmentOptions
    epochs: AugmentEpochs
    image_size_hw: tuple[int, int]
    """Usual size of the network input, in pixels."""
    compose_transforms: tuple[ComposeTransform, ...]
    """The first one whose draw succeeds makes the network input."""
    sample_transforms: tuple[SampleTransform, ...]
    blend_transforms: tuple[BlendTransform, ...]
    """The first one whose draw succeeds blends the batch."""
    multi_scale: MultiScale

    @property
    def transforms(self) -> list[Transform]:
        """All transforms, in the order in which they run."""
        return [*self.compose_transforms, *self.sample_transforms, *self.blend_transforms, self.multi_scale]

    @property
    def changes_images(self) -> bool:
        """Whether single images are changed."""
        return any(transform.is_on for transform in self.transforms if transform.stage != "batch")

    @property
    def mixes_images(self) -> bool:
        """Whether the images of a batch are blended or resized together."""
        return any(transform.is_on for transform in self.transforms if transform.stage == "batch")

    @property
    def draws_donors(self) -> bool:
        """Whether objects to copy are drawn from the whole split."""
        return any(isinstance(item, CopyBlend) and item.balanced for item in self.blend_transforms)

    @property
    def largest_size_hw(self) -> tuple[int, int]:
        """Size in pixels of the largest network input."""
        sizes = [self.image_size_hw, *self.multi_scale.sizes_hw]
        return max(sizes, key=lambda size_hw: size_hw[0] * size_hw[1])

    def max_boxes(self, num_boxes: int) -> int:
        """Return the maximum number of boxes of an input, given that of an image of the dataset."""
        for transform in self.transforms:
            num_boxes = transform.max_boxes(num_boxes)
        return num_boxes

    def compose(self, source: ImageSource, *, epoch: int, rng: np.random.Generator) -> Sample | None:
        """Make the network input from several images or a part of one, if that is drawn.

        Args:
            source: The image, and access to the others.
            epoch: Current epoch, 0-based.
            rng: Source of all random draws.

        Returns:
            The sample at the size of the network input; None for the whole image.
        """
        for transform in self.compose_transforms:
            if epoch in transform.epochs:
                sample = transform.compose(source, rng=rng)
                if sample is not None:
                    return sample
        return None

    def change(self, sample: Sample, *, epoch: int, rng: np.random.Generator) -> Sample:
        """Change a sample at the size of the network input.

        Args:
            sample: From `compose`, or a resized image.
            epoch: Current epoch, 0-based.
            rng: Source of all random draws.
        """
        for transform in self.sample_transforms:
            if epoch in transform.epochs:
                sample = transform.change(sample, rng=rng)
        return sample

    def draw_batch(self, *, epoch: int, rng: np.random.Generator) -> BatchDraw:
        """Draw the size and the blending of a batch.

        Args:
            epoch: Current epoch, 0-based.
            rng: Source of all random draws.
        """
        size_hw = self.multi_scale.draw_size(epoch, rng=rng)
        hits = [rng.random() < transform.probability for transform in self.blend_transforms]
        chosen = (
            transform
            for transform, is_hit in zip(self.blend_transforms, hits, strict=True)
            if is_hit and epoch in transform.epochs
        )
        return BatchDraw(size_hw=size_hw, blend=next(chosen, None))

    def stages(self, num_epochs: int) -> list[EpochStage]:
        """Return the stages of a run of `num_epochs` epochs, in order."""
        stages: list[EpochStage] = []
        for epoch in range(num_epochs):
            active = (item for item in self.transforms if item.is_on and epoch in item.epochs)
            names = tuple(transform.name for transform in active)
            is_same = bool(stages) and stages[-1].names == names
            first_epoch = stages.pop().first_epoch if is_same else epoch
            stages.append(EpochStage(first_epoch=first_epoch, end_epoch=epoch + 1, names=names))
        return stages

    def describe(self, num_epochs: int) -> list[str]:
        """Return a line for each stage of a run of `num_epochs` epochs."""
        return [stage.describe() for stage in self.stages(num_epochs)]


def build_pipeline(
    augment: AugmentOptions,
    *,
    epochs: AugmentEpochs,
    image_size_hw: tuple[int, int],
    normal_label: int | None = None,
) -> AugmentPipeline:
    """Build the random changes of training images.

    Args:
        augment: The `augment` block of the config.
        epochs: Epochs in which the augmentation changes.
        image_size_hw: Usual size of the network input, in pixels.
        normal_label: Class index of good surfaces, which are never copied; None for none.

    Raises:
        ConfigError: If a transform needs a package that is not installed.
    """
    with_mixes, with_changes = range(epochs.start, epochs.mix_end), range(epochs.start, epochs.stop)
    zooms = {"zoom-out": augment.zoom_out, "crop": augment.crop}
    colors = Colors(probability=augment.photometric, epochs=with_changes)
    samples: list[SampleTransform] = [
        colors,
        Flip(horizontal=augment.horizontal_flip, vertical=augment.vertical_flip, epochs=ALL_EPOCHS),
    ]
    if augment.industrial is not None:
        require_albumentations()
        samples.append(Industrial(options=augment.industrial, epochs=with_changes))
    return AugmentPipeline(
        options=augment,
        epochs=epochs,
        image_size_hw=image_size_hw,
        compose_transforms=(
            Mosaic(
                probability=augment.mosaic,
                max_degrees=augment.mosaic_max_degrees,
                max_shift=augment.mosaic_max_shift,
                scales=augment.mosaic_scales,
                epochs=with_mixes,
            ),
            ZoomCrop(
                name=", ".join(name for name, chance in zooms.items() if chance > 0),
                zoom_out=augment.zoom_out,
                max_scale=augment.zoom_out_max_scale,
                crop=augment.crop,
                colors=colors,
                epochs=with_changes,
            ),
        ),
        sample_transforms=tuple(samples),
        blend_transforms=(
            MixUp(probability=augment.mix_up, epochs=with_mixes),
            CopyBlend(
                name="balanced copy-blend" if augment.copy_blend_balanced else "copy-blend",
                probability=augment.copy_blend,
                max_objects=augment.copy_blend_objects,
                balanced=augment.copy_blend_balanced,
                excluded_label=normal_label,
                epochs=with_changes,
            ),
        ),
        multi_scale=MultiScale(
            sizes_hw=compute_sizes(image_size_hw, augment.multi_scale, repeat=augment.multi_scale_repeat),
            epochs=range(epochs.stop),
        ),
    )
