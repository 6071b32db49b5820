"""Which random changes run in which epoch: the one place that knows the stages of a run.

epochs              mosaic   colors   zoom-out, crop,   flips   mix-up   copy-blend   sizes
                                       industrial
before start        –        –         –                 yes     –        –            yes
start to mix_end    yes      yes       yes *             yes     yes      yes          yes
mix_end to stop     –        yes       yes               yes     –        yes          yes
from stop           –        –         –                 yes     –        –            –

* zoom-out and crop for the images that did not become a mosaic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deim.data.augment.batch_mix import copy_blend, draw_ratio, mix_up
from deim.data.augment.industrial import IndustrialChanges, change_industrially
from deim.data.augment.mosaic import make_mosaic
from deim.data.augment.zoom_crop import Window, draw_crop, draw_zoom_out, show_window
from deim.data.transforms import Sample, distort_colors, flip_horizontal, flip_vertical
from deim.structures import Target

Mix = Literal["mix_up", "copy_blend"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """A network input made of other images, or of a part of one."""

    sample: Sample
    """At the size of the network input."""
    has_colors: bool
    """Whether its colors are changed already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of an image, with their stages; probabilities in [0, 1]."""

    horizontal_flip: float
    vertical_flip: float
    photometric: float
    """Of each change of color."""
    start_epoch: int
    """First epoch (0-based) with more than flips."""
    stop_epoch: int
    """First epoch (0-based) of the final stage."""
    mix_end_epoch: int = 0
    """First epoch (0-based) without mosaic."""
    mosaic: float = 0.0
    mosaic_max_degrees: float = 10.0
    mosaic_max_shift: float = 0.1
    """As a share of the mosaic's side."""
    mosaic_scales: tuple[float, float] = (0.5, 1.5)
    zoom_out: float = 0.0
    zoom_out_max_scale: float = 4.0
    crop: float = 0.0
    industrial: IndustrialChanges | None = None

    def compose(
        self,
        index: int,
        read: Callable[[int], Sample],
        *,
        num_images: int,
        size_hw: tuple[int, int],
        resize: Literal["stretch", "letterbox"],
        epoch: int,
        rng: np.random.Generator,
        chances: NDArray[np.float64] | None = None,
    ) -> Composition | None:
        """Make the network input out of other images, or of a part of the image, if that is drawn.

        Args:
            index: Of the image.
            read: Gives an image of the split in its own size.
            num_images: Of the split.
            size_hw: Size of the network input, in pixels.
            resize: As in `fit_to_input`.
            epoch: 0-based.
            rng: Source of all draws.
            chances: (num_images,) of sum 1, how likely each image comes into a mosaic; None for all alike.

        Returns:
            None for the whole image as it is.
        """
        if self._runs_mosaic(epoch) and rng.random() < self.mosaic:
            if chances is None:
                others = rng.integers(num_images, size=3).tolist()
            else:
                others = rng.choice(num_images, size=3, p=chances).tolist()
            made = make_mosaic(
                [read(number) for number in (index, *others)],
                short_side=min(size_hw) // 2,
                max_degrees=self.mosaic_max_degrees,
                max_shift=self.mosaic_max_shift,
                scales=self.mosaic_scales,
                rng=rng,
            )
            shown = show_window(made, _whole(made), size_hw, resize=resize)
            return Composition(sample=shown, has_colors=False)
        if not self._runs(epoch):
            return None
        zooms, crops = rng.random() < self.zoom_out, rng.random() < self.crop
        if not zooms and not crops:
            return None
        sample = read(index)
        image_hw = (sample.image.shape[-2], sample.image.shape[-1])
        window = _whole(sample)
        if zooms:
            window = draw_zoom_out(image_hw, self.zoom_out_max_scale, rng=rng)
            # Ahead of the canvas, which stays black.
            sample = distort_colors(sample, self.photometric, rng=rng)
        if crops:
            window = draw_crop(window, sample.boxes_xyxy, image_hw, rng=rng)
        shown = show_window(sample, window, size_hw, resize=resize)
        return Composition(sample=shown, has_colors=zooms)

    def __call__(
        self, sample: Sample, *, epoch: int, rng: np.random.Generator, has_colors: bool = False
    ) -> Sample:
        """Change a sample.

        Args:
            sample: The image at the size of the network input.
            epoch: 0-based.
            rng: Source of all draws.
            has_colors: Whether its colors are changed already.
        """
        if self._runs(epoch) and not has_colors:
            sample = distort_colors(sample, self.photometric, rng=rng)
        if rng.random() < self.horizontal_flip:
            sample = flip_horizontal(sample)
        if rng.random() < self.vertical_flip:
            sample = flip_vertical(sample)
        if self.industrial is not None and self._runs(epoch):
            sample = change_industrially(sample, self.industrial, rng=rng)
        return sample

    def names(self, epoch: int) -> list[str]:
        """What may happen to an image in an epoch (0-based), in words."""
        runs = self._runs(epoch)
        active = {
            "mosaic": self._runs_mosaic(epoch) and self.mosaic > 0,
            "zoom-out": runs and self.zoom_out > 0,
            "crop": runs and self.crop > 0,
            "colors": runs and self.photometric > 0,
            "flips": max(self.horizontal_flip, self.vertical_flip) > 0,
            "industrial": runs and self.industrial is not None,
        }
        return [name for name, is_active in active.items() if is_active]

    def _runs(self, epoch: int) -> bool:
        return self.start_epoch <= epoch < self.stop_epoch

    def _runs_mosaic(self, epoch: int) -> bool:
        return self.start_epoch <= epoch < self.mix_end_epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchChanges:
    """Random changes of a batch, with their stages; probabilities in [0, 1]."""

    mix_up: float
    copy_blend: float
    """Of the batches without mix-up."""
    copy_blend_objects: int
    """Defects blended into an image, at most."""
    copy_blend_balanced: bool
    """Whether each class is as likely, of the whole split instead of the batch."""
    sizes_hw: tuple[tuple[int, int], ...]
    """Sizes of the input to draw from, in pixels; a size may stand there several times."""
    start_epoch: int
    """First epoch (0-based) with mix-up and copy-blend."""
    mix_end_epoch: int
    """First epoch (0-based) without mix-up."""
    stop_epoch: int
    """First epoch (0-based) of the final stage."""

    def draw_mix(self, *, epoch: int, rng: np.random.Generator) -> Mix | None:
        """Draw which blending a batch gets."""
        mixes, copies = rng.random() < self.mix_up, rng.random() < self.copy_blend
        if mixes and self.start_epoch <= epoch < self.mix_end_epoch:
            return "mix_up"
        return "copy_blend" if copies and self.start_epoch <= epoch < self.stop_epoch else None

    def draw_donors(
        self, kind: Mix, items_of_classes: Mapping[int, Sequence[int]], *, rng: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Draw objects to copy into a batch by class: a class first, then an image that shows it.

        Args:
            kind: From `draw_mix`.
            items_of_classes: Images that show each class, by its index; none of them empty.
            rng: Source of all draws.

        Returns:
            Class index and image, as many as objects may be blended into one image; none unless copies are
            balanced.
        """
        if kind != "copy_blend" or not self.copy_blend_balanced or not items_of_classes:
            return []
        labels = rng.choice(sorted(items_of_classes), size=self.copy_blend_objects).tolist()
        return [(label, int(rng.choice(items_of_classes[label]))) for label in labels]

    def mix(
        self,
        kind: Mix,
        images: Tensor,
        targets: Sequence[Target],
        *,
        donors: tuple[Tensor, Sequence[Target]] | None = None,
        left_out: int | None = None,
        rng: np.random.Generator,
    ) -> tuple[Tensor, list[Target]]:
        """Blend the images of a whole batch.

        Args:
            kind: From `draw_mix`.
            images: (B, C, H, W) float32 in [0, 1].
            targets: An image each.
            left_out: As in `copy_blend`.
            donors: Images drawn by `draw_donors`, with their objects of the drawn class; None for none.
            rng: Source of all draws.
        """
        ratio = draw_ratio(rng)
        match kind:
            case "mix_up":
                return mix_up(images, targets, ratio=ratio)
            case "copy_blend":
                return copy_blend(
                    images,
                    targets,
                    max_objects=self.copy_blend_objects,
                    ratio=ratio,
                    rng=rng,
                    left_out=left_out,
                    donors=donors,
                )

    def draw_size(self, *, epoch: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Draw the size of a batch's input, in pixels; None for the usual one."""
        if not self.sizes_hw or epoch >= self.stop_epoch:
            return None
        return self.sizes_hw[rng.integers(len(self.sizes_hw))]

    def names(self, epoch: int) -> list[str]:
        """What may happen to a batch in an epoch (0-based), in words."""
        copies = "balanced copy-blend" if self.copy_blend_balanced else "copy-blend"
        active = {
            "mix-up": self.mix_up > 0 and self.start_epoch <= epoch < self.mix_end_epoch,
            copies: self.copy_blend > 0 and self.start_epoch <= epoch < self.stop_epoch,
            "several sizes": bool(self.sizes_hw) and epoch < self.stop_epoch,
        }
        return [name for name, is_active in active.items() if is_active]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Epochs in a row with the same kinds of change."""

    first_epoch: int
    """0-based."""
    end_epoch: int
    """The first after it."""
    names: tuple[str, ...]
    """The kinds of change, in words."""

    def describe(self) -> str:
        """The stage in a line."""
        return f"epochs {self.first_epoch} to {self.end_epoch - 1}: {', '.join(self.names) or 'nothing'}"


def find_stages(augmentation: Augmentation, changes: BatchChanges | None, *, epochs: int) -> list[Stage]:
    """The stages of a run, in order.

    Args:
        augmentation: Of the images.
        changes: Of the batches; None for none.
        epochs: Of the run.
    """
    stages: list[Stage] = []
    for epoch in range(epochs):
        names = (*augmentation.names(epoch), *(changes.names(epoch) if changes else ()))
        goes_on = bool(stages) and stages[-1].names == names
        first = stages.pop().first_epoch if goes_on else epoch
        stages.append(Stage(first_epoch=first, end_epoch=epoch + 1, names=names))
    return stages


def compute_sizes(
    size_hw: tuple[int, int], largest_change: float, *, repeat: int
) -> tuple[tuple[int, int], ...]:
    """The sizes that batches are drawn from.

    Args:
        size_hw: The usual size, multiples of 32, in pixels.
        largest_change: As a share of the height, in [0, 0.5]; if it allows no other size, there are none.
        repeat: How often the usual size stands in the list.

    Returns:
        Heights in steps of 32 down to and up to the largest change, as many above as below, with widths of
        the same share in multiples of 32; at least 64 both.

    Source:
        The list of DEIMv2's loader.
    """
    if largest_change == 0:
        return ()
    height, width = size_hw
    # Rounded: 0.7 · 320 is a little less than 224.
    lowest = max(64, int(round((1 - largest_change) * height, 6) // 32) * 32)
    highest = int(round((1 + largest_change) * height, 6) // 32) * 32
    below = list(range(lowest, height, 32))
    above = [highest - 32 * number for number in range(len(below)) if highest - 32 * number > height]
    if not below and not above:
        return ()
    heights = [*below, *[height] * repeat, *above]
    return tuple((side, max(64, round(side * width / height / 32) * 32)) for side in heights)


def _whole(sample: Sample) -> Window:
    height, width = sample.image.shape[-2:]
    return Window(top=0, left=0, height=height, width=width)
