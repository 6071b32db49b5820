"""The list of all random changes of training images, with the epochs in which each runs.

epochs              mosaic   colors   zoom-out, crop,   flips   mix-up   copy-blend   sizes
                                      industrial
before start        –        –        –                 yes     –        –            yes
start to mix_end    yes      yes      yes *             yes     yes      yes          yes
mix_end to stop     –        yes      yes               yes     –        yes          yes
from stop           –        –        –                 yes     –        –            –

* zoom-out and crop for the images that did not become a mosaic.

Epochs of low resolution reduce each batch in all of these stages; several sizes are around the smaller one.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from deim.data.augment.colors import Colors
from deim.data.augment.copy_blend import CopyBlend
from deim.data.augment.flip import Flip
from deim.data.augment.industrial import Industrial, require_albumentations
from deim.data.augment.mix_up import MixUp
from deim.data.augment.mosaic import Mosaic
from deim.data.augment.options import AugmentOptions, LowResolutionOptions
from deim.data.augment.transform import (
    BlendTransform,
    ComposeTransform,
    ImageSource,
    Sample,
    SampleTransform,
    Transform,
)
from deim.data.augment.zoom_crop import ZoomCrop

T_co = TypeVar("T_co", bound=Transform, covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentEpochs:
    """Epochs (0-based) in which the augmentation changes."""

    start: int
    """First epoch with more than flips and several sizes."""
    mix_end: int
    """First epoch without mosaic and mix-up."""
    stop: int
    """First epoch of the final stage, which has flips only."""
    low_resolution: LowResolutionOptions | None = None
    """First epochs of the run with smaller inputs; None for none."""

    @property
    def low_resolution_end(self) -> int:
        """First epoch at the full size."""
        return 0 if self.low_resolution is None else self.low_resolution.epochs


@dataclass(frozen=True, slots=True)
class Scheduled(Generic[T_co]):
    """A transform with the epochs in which it runs."""

    name: str
    """Name for logs and previews."""
    transform: T_co
    probability: float
    """Probability that it changes an image or a batch, the highest of several; 0 for off."""
    epochs: range
    """Epochs (0-based) in which it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochStage:
    """Consecutive epochs with the same transforms."""

    first_epoch: int
    end_epoch: int
    """First epoch after the stage."""
    names: tuple[str, ...]
    """Names of the transforms."""

    def describe(self) -> str:
        """Return the stage as one line."""
        return f"epochs {self.first_epoch + 1} to {self.end_epoch}: {', '.join(self.names) or 'nothing'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentPipeline:
    """All random changes of training images, in the order in which they run."""

    options: AugmentOptions
    epochs: AugmentEpochs
    image_size_hw: tuple[int, int]
    """Usual size of the network input, in pixels."""
    compose_transforms: tuple[Scheduled[ComposeTransform], ...]
    """The first one whose draw succeeds makes the network input."""
    sample_transforms: tuple[Scheduled[SampleTransform], ...]
    blend_transforms: tuple[Scheduled[BlendTransform], ...]
    """The first one whose draw succeeds blends the batch."""
    sizes_hw: tuple[tuple[int, int], ...]
    """Sizes in pixels to draw one from for each batch, some several times; empty keeps the usual size."""
    low_sizes_hw: tuple[tuple[int, int], ...] = ()
    """The same for the epochs of low resolution, if there are any."""

    @property
    def changes_images(self) -> bool:
        """Whether single images are changed."""
        return any(item.probability > 0 for item in (*self.compose_transforms, *self.sample_transforms))

    @property
    def mixes_images(self) -> bool:
        """Whether the images of a batch are blended or resized together."""
        has_sizes = bool(self.sizes_hw or self.low_sizes_hw)
        return has_sizes or any(item.probability > 0 for item in self.blend_transforms)

    @property
    def largest_size_hw(self) -> tuple[int, int]:
        """Size in pixels of the largest network input."""
        sizes_hw = (self.image_size_hw, *self.sizes_hw, *self.low_sizes_hw)
        return max(sizes_hw, key=lambda size_hw: size_hw[0] * size_hw[1])

    def max_boxes(self, num_boxes: int) -> int:
        """Return the maximum number of boxes of an input, given that of an image of the dataset."""
        for item in (*self.compose_transforms, *self.sample_transforms, *self.blend_transforms):
            if item.probability > 0:
                num_boxes = item.transform.max_boxes(num_boxes)
        return num_boxes

    def compose(self, source: ImageSource, *, epoch: int, rng: np.random.Generator) -> Sample | None:
        """Make the network input from several images or a part of one; None if that is not drawn."""
        for item in self.compose_transforms:
            if epoch in item.epochs:
                sample = item.transform.compose(source, rng=rng)
                if sample is not None:
                    return sample
        return None

    def change(self, sample: Sample, *, epoch: int, rng: np.random.Generator) -> Sample:
        """Change a sample at the size of the network input."""
        for item in self.sample_transforms:
            if epoch in item.epochs:
                sample = item.transform.change(sample, rng=rng)
        return sample

    def draw_batch(
        self, *, epoch: int, rng: np.random.Generator
    ) -> tuple[tuple[int, int] | None, BlendTransform | None]:
        """Draw the size of a batch in pixels, None for the usual one, and how it is blended, None if not."""
        sizes_hw = self.sizes_at(epoch)
        size_hw = sizes_hw[rng.integers(len(sizes_hw))] if sizes_hw else None
        hits = [rng.random() < item.probability for item in self.blend_transforms]
        for item, is_hit in zip(self.blend_transforms, hits, strict=True):
            if is_hit and epoch in item.epochs:
                return size_hw, item.transform
        return size_hw, None

    def sizes_at(self, epoch: int) -> tuple[tuple[int, int], ...]:
        """Return the sizes in pixels to draw from in an epoch (0-based); empty for the usual one."""
        low = self.epochs.low_resolution if epoch < self.epochs.low_resolution_end else None
        if epoch < self.epochs.stop:
            return self.sizes_hw if low is None else self.low_sizes_hw
        return () if low is None else (low.image_size_hw,)

    def stages(self, num_epochs: int) -> list[EpochStage]:
        """Return the stages of a run of `num_epochs` epochs, in order."""
        listed = (*self.compose_transforms, *self.sample_transforms, *self.blend_transforms)
        epochs_by_name: dict[str, Sequence[int]] = {
            item.name: item.epochs for item in listed if item.probability > 0
        }
        several = [epoch for epoch in range(num_epochs) if len(self.sizes_at(epoch)) > 1]
        epochs_by_name["several sizes"] = several
        if self.epochs.low_resolution is not None:
            height, width = self.epochs.low_resolution.image_size_hw
            epochs_by_name[f"{height}x{width} px"] = range(self.epochs.low_resolution_end)
        stages: list[EpochStage] = []
        for epoch in range(num_epochs):
            names = tuple(name for name, epochs in epochs_by_name.items() if epoch in epochs)
            is_same = bool(stages) and stages[-1].names == names
            first_epoch = stages.pop().first_epoch if is_same else epoch
            stages.append(EpochStage(first_epoch=first_epoch, end_epoch=epoch + 1, names=names))
        return stages


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
    all_epochs = range(sys.maxsize)
    zooms = {"zoom-out": augment.zoom_out, "crop": augment.crop}
    zoom_name = ", ".join(name for name, probability in zooms.items() if probability > 0)
    colors = Colors(probability=augment.photometric)
    flip = Flip(horizontal=augment.horizontal_flip, vertical=augment.vertical_flip)
    samples: list[Scheduled[SampleTransform]] = [
        Scheduled("colors", colors, augment.photometric, with_changes),
        Scheduled("flips", flip, max(augment.horizontal_flip, augment.vertical_flip), all_epochs),
    ]
    if augment.industrial is not None:
        require_albumentations()
        samples.append(Scheduled("industrial", Industrial(options=augment.industrial), 1.0, with_changes))
    low = epochs.low_resolution
    low_sizes_hw: tuple[tuple[int, int], ...] = ()
    if low is not None:
        sizes_hw = compute_sizes(low.image_size_hw, augment.multi_scale, repeat=augment.multi_scale_repeat)
        low_sizes_hw = sizes_hw or (low.image_size_hw,)
    copy_blend = CopyBlend(options=augment, excluded_label=normal_label)
    copy_name = "balanced copy-blend" if augment.copy_blend_balanced else "copy-blend"
    return AugmentPipeline(
        options=augment,
        epochs=epochs,
        image_size_hw=image_size_hw,
        compose_transforms=(
            Scheduled("mosaic", Mosaic(options=augment), augment.mosaic, with_mixes),
            Scheduled(zoom_name, ZoomCrop(options=augment, colors=colors), max(zooms.values()), with_changes),
        ),
        sample_transforms=tuple(samples),
        blend_transforms=(
            Scheduled("mix-up", MixUp(), augment.mix_up, with_mixes),
            Scheduled(copy_name, copy_blend, augment.copy_blend, with_changes),
        ),
        sizes_hw=compute_sizes(image_size_hw, augment.multi_scale, repeat=augment.multi_scale_repeat),
        low_sizes_hw=low_sizes_hw,
    )


def compute_sizes(size_hw: tuple[int, int], max_change: float, *, repeat: int) -> tuple[tuple[int, int], ...]:
    """Compute the sizes from which the size of a batch is drawn; the usual one is listed `repeat` times.

    Returns:
        Heights in steps of 32 within the maximum change, a share of the usual one, as many above as below,
        with widths of the same share in multiples of 32; at least 64 both. Empty if there is only one size.

    Source:
        The list of DEIMv2's loader.
    """
    height, width = size_hw
    # Rounded: 0.7 · 320 is a little less than 224 in binary fractions.
    lowest = max(64, int(round((1 - max_change) * height, 6) // 32) * 32)
    highest = int(round((1 + max_change) * height, 6) // 32) * 32
    below = list(range(lowest, height, 32))
    above = [highest - 32 * number for number in range(len(below)) if highest - 32 * number > height]
    if not below:
        return ()
    heights = [*below, *[height] * repeat, *above]
    return tuple((side, max(64, round(side * width / height / 32) * 32)) for side in heights)
