"""Samples for the network, and the order in which an epoch visits them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from deim.boxes import clip_boxes, clip_to_window, to_input_fractions, xywh_to_xyxy, xyxy_to_cxcywh
from deim.data.augment.pipeline import Augmentation, Composition
from deim.data.formats.coco import CocoSplit
from deim.data.image_cache import DiskCache, MemoryCache
from deim.data.images.pixel_format import RGB8, PixelFormat, check_pixels
from deim.data.images.read import read_header
from deim.data.images.tiling import Tiling, place_tile, tile_split
from deim.data.sampling import count_copies, draw_copies, epoch_length
from deim.data.transforms import Sample, fit_to_input, normalize, read_image, read_input
from deim.errors import DataError
from deim.files import raise_listed
from deim.structures import Placement, Target

Item = tuple[int, ...]
"""(epoch, index) of an image, or tile, to load; with a copy, from 1, at the end where it comes again."""

AUGMENTATION, NOISE, COMPOSITION, BATCH = 0, 1, 2, 3
"""What draws of an item or a batch are for: each purpose has numbers of its own, whatever the others draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFormat:
    """How an image becomes the network's input; stored in checkpoints, the same everywhere."""

    size_hw: tuple[int, int]
    """Size of the network input, in pixels."""
    resize: Literal["stretch", "letterbox"]
    mean: tuple[float, ...]
    """C numbers, in [0, 1] of the scaled image."""
    std: tuple[float, ...]
    """C numbers, above 0."""
    pixels: PixelFormat = RGB8
    """Channels and scaling of the files."""
    reduced_decode: bool = False
    """Whether JPEG photographs are decoded at a part of their size where that is large enough."""
    tiling: Tiling | None = None
    """How images are cut into tiles, each of which becomes an input; None for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawBatch:
    """Images of a batch that are not normalized yet, with their targets."""

    images: list[Tensor]
    """(C, H, W) each, uint8 or float32 in [0, 1]."""
    targets: list[Target]
    """An image each."""
    input_format: InputFormat
    """Says how to normalize."""


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images of a split as network inputs with targets; with tiles, each tile is an item like an image.

    The tiles of an image follow one another, and an image is decoded once for tiles in a row. Augmentation
    depends on nothing but the seed and the item (epoch, index and copy), whatever the number of workers. A
    plain index stands for epoch 0.

    Args:
        split: The annotations.
        class_index: Class index of each category id of the split.
        input_format: How an image becomes an input.
        augmentation: Random changes of training images; None for evaluation.
        seed: Seed of the augmentation.
        cache_bytes: Memory for resized images, in each process that loads; the first to come are kept.
        repeat_factors: (N,) how often the sampler shows each item, which mosaics keep to; None for all alike.
        disk_cache: Resized images that all processes share; what it keeps is not kept in memory as well.
    """

    def __init__(
        self,
        split: CocoSplit,
        class_index: Mapping[int, int],
        *,
        input_format: InputFormat,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        disk_cache: DiskCache | None = None,
        repeat_factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.split = split
        self.class_index = dict(class_index)
        self.input_format = input_format
        self.augmentation = augmentation
        self.seed = seed
        self._memory_cache = MemoryCache(cache_bytes)
        self._disk_cache = disk_cache
        self._chances = None if repeat_factors is None else repeat_factors / repeat_factors.sum()
        self.tiles = tile_split(split, input_format.tiling)
        self._decoded: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def image_index(self, index: int) -> int:
        """Position in the split of the image that an item shows."""
        return int(self.tiles.image[index])

    def __getitem__(self, item: int | Item) -> tuple[Tensor, Target]:
        """Return the input (C, H, W) float32 and its target.

        Raises:
            DataError: If the image is damaged.
        """
        image, target = self.read(item if isinstance(item, tuple) else (0, item))
        return normalize(image, self.input_format.mean, self.input_format.std), target

    def __getitems__(self, items: Sequence[int | Item]) -> "RawBatch":
        """Return the items of a batch, not yet normalized: `collate` does that in the memory of the batch.

        Torch's loader asks for batches by this name.

        Raises:
            DataError: If an image is damaged.
        """
        pairs = [self.read(item if isinstance(item, tuple) else (0, item)) for item in items]
        return RawBatch(
            images=[image for image, _ in pairs],
            targets=[target for _, target in pairs],
            input_format=self.input_format,
        )

    def read(self, item: Item) -> tuple[Tensor, Target]:
        """Return the input (C, H, W), uint8 or float32 in [0, 1], not yet normalized, and its target.

        Raises:
            DataError: If the image is damaged.
        """
        index, image_index = item[1], self.image_index(item[1])
        size_hw = self.input_format.size_hw
        to_pixels = torch.tensor([size_hw[1], size_hw[0]] * 2)
        composed = self._compose(item)
        has_colors = composed is not None and composed.has_colors
        if composed is not None:
            sample = composed.sample
            left, top, right, bottom = (int(edge) for edge in self.tiles.windows_xyxy[index])
            whole = Placement(
                orig_size_hw=(bottom - top, right - left),
                span_hw=(float(bottom - top), float(right - left)),
                shift_yx=(0.0, 0.0),
            )
            placement = self._place(whole, index)
        else:
            boxes, labels = self._boxes(index)
            image, placement = self._fitted_image(index)
            sample = Sample(
                image=image, boxes_xyxy=to_input_fractions(boxes, placement) * to_pixels, labels=labels
            )
        if self.augmentation is not None:
            rng = np.random.default_rng(self._seed_of(item, AUGMENTATION))
            sample = self.augmentation(sample, epoch=item[0], rng=rng, has_colors=has_colors)
        target: Target = {
            "boxes": xyxy_to_cxcywh(sample.boxes_xyxy / to_pixels),
            "labels": sample.labels,
            "area": sample.area,
            "image_id": int(self.split.image_ids[image_index]),
            "file_name": self.split.file_names[image_index],
            "placement": placement,
            "noise_seed": int(np.random.SeedSequence(self._seed_of(item, NOISE)).generate_state(1)[0]),
        }
        return sample.image, target

    def find_items_of_classes(self) -> dict[int, list[int]]:
        """Indices of the images that show each class, by its index; classes that none shows are left out."""
        found: dict[int, list[int]] = {}
        for index in range(len(self)):
            for label in self._boxes(index)[1].unique().tolist():
                found.setdefault(label, []).append(index)
        return found

    def _seed_of(self, item: Item, purpose: int) -> list[int]:
        """What the draws of an item depend on; copies of an image have draws of their own."""
        epoch, index, *copy = item
        return [self.seed, epoch, index, purpose, *copy]

    def _compose(self, item: Item) -> Composition | None:
        """A mosaic or a part of the image at the size of the network input, if that is drawn."""
        if self.augmentation is None:
            return None
        return self.augmentation.compose(
            item[1],
            self._read_sample,
            num_images=len(self),
            size_hw=self.input_format.size_hw,
            resize=self.input_format.resize,
            epoch=item[0],
            chances=self._chances,
            # Draws of its own: with or without mosaic, an image is flipped in the same epochs.
            rng=np.random.default_rng(self._seed_of(item, COMPOSITION)),
        )

    def _read_sample(self, index: int) -> Sample:
        """An image, or a tile, in its own size."""
        boxes, labels = self._boxes(index)
        if self.tiles.is_part[index]:
            left, top, _, _ = self.tiles.windows_xyxy[index].tolist()
            boxes = boxes - boxes.new_tensor([left, top, left, top])
        return Sample(image=self._read_image(index), boxes_xyxy=boxes, labels=labels)

    def _fitted_image(self, index: int) -> tuple[Tensor, Placement]:
        """The image, or tile, at the size of the network input; nothing changes it in place."""
        cache: MemoryCache | DiskCache = self._memory_cache
        if self._disk_cache is not None and self._disk_cache.has_place(index):
            cache = self._disk_cache
        fitted = cache.get(index)
        if fitted is None:
            fitted = self._fit(index)
            cache.put(index, fitted)
        image, placement = fitted
        return image, self._place(placement, index)

    def _fit(self, index: int) -> tuple[Tensor, Placement]:
        """An image, or a tile as if it were one, at the size of the network input."""
        form = self.input_format
        if self.tiles.is_part[index]:
            return fit_to_input(self._read_image(index), form.size_hw, resize=form.resize)
        path = self.split.image_path(self.image_index(index))
        return read_input(
            path, form.size_hw, resize=form.resize, pixels=form.pixels, reduced=form.reduced_decode
        )

    def _read_image(self, index: int) -> Tensor:
        """The pixels of an image, or of a tile, whose image is kept for the next tile."""
        image_index, window = self.image_index(index), self.tiles.window(index)
        path = self.split.image_path(image_index)
        if window is None:
            return read_image(path, self.input_format.pixels)
        if self._decoded is None or self._decoded[0] != image_index:
            self._decoded = image_index, read_image(path, self.input_format.pixels)
        left, top, right, bottom = window
        # A copy: a view in a cache would keep the whole image.
        return self._decoded[1][:, top:bottom, left:right].clone()

    def _place(self, placement: Placement, index: int) -> Placement:
        """The placement in the whole image of an input that was made of an image, or of a tile."""
        window = self.tiles.window(index)
        if window is None:
            return placement
        height, width = self.split.sizes_hw[self.image_index(index)].tolist()
        return place_tile(placement, window, (height, width))

    def _boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) xyxy clipped to what is shown, in original pixels, and labels (N,); no crowds."""
        rows = self.tiles.rows_of(index)
        boxes = xywh_to_xyxy(torch.from_numpy(self.split.boxes_xywh[rows]).float())
        labels = [self.class_index[int(category)] for category in self.split.box_category_ids[rows]]
        height, width = self.split.sizes_hw[self.image_index(index)]
        boxes, window = clip_boxes(boxes, (height, width)), self.tiles.window(index)
        if window is not None:
            boxes = clip_to_window(boxes, window)
        return boxes, torch.tensor(labels, dtype=torch.int64)


def check_images(split: CocoSplit, pixels: PixelFormat | None = RGB8) -> None:
    """Look at the header of every image of a split; damage further inside shows only when it is decoded.

    Args:
        split: Any split.
        pixels: What its images are to be; None for anything.

    Raises:
        DataError: If a file is not an image, has another size than the annotations say, or another depth or
            other channels than asked for; all are listed.
    """
    problems = []
    for index, listed_hw in enumerate(split.sizes_hw.tolist()):
        try:
            header = read_header(split.image_path(index))
            if pixels is not None:
                check_pixels(header, pixels, where=split.image_path(index))
        except DataError as error:
            problems.append(str(error))
            continue
        if list(header.size_hw) != listed_hw:
            where, name = split.annotations_path.name, split.file_names[index]
            problems.append(describe_size_difference(where, name, listed_hw, header.size_hw))
    raise_listed(problems)


def describe_size_difference(where: str, name: str, listed_hw: Sequence[int], found_hw: Sequence[int]) -> str:
    """What to tell about an image whose file has another size than the annotations say; sizes in pixels."""
    return (
        f"{where}: image {name!r} is listed as {listed_hw[1]}x{listed_hw[0]} px, the upright file has "
        f"{found_hw[1]}x{found_hw[0]} px. Boxes would be misplaced: correct the size, and the boxes if they "
        f"were drawn on a rotated view."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRequest:
    """A batch to be loaded."""

    epoch: int
    number: int
    """Of the batch in its epoch, from 0."""
    items: tuple[Item, ...]
    """Of the batch, all processes together."""
    own: slice
    """Positions in `items` that are this process's part."""


class EpochBatches(Sampler[list[Item]]):
    """Batches that visit every image once an epoch, in a random order of the seed and the epoch alone.

    With repeat factors an image comes more than once, by them, the seed and the epoch alone; the length of an
    epoch is always the same.

    With several processes each batch is shared out among them in equal parts. The last batch of an epoch may
    be smaller; if it cannot be shared out equally, fewer images than there are processes are left out, others
    in each epoch.

    Args:
        num_images: Images of the split, or tiles; in all that follows a tile is an image.
        batch_size: Images of a batch, all processes together; a multiple of `num_ranks`.
        seed: Seed of the order.
        rank: Number of this process.
        num_ranks: Processes.
        repeat_factors: (num_images,), at least 1, of `compute_repeat_factors`; None for once each.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        repeat_factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.order_length = num_images if repeat_factors is None else epoch_length(repeat_factors)
        self.num_images = self.order_length - self.order_length % batch_size % num_ranks
        self.repeat_factors = repeat_factors
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.epoch = 0
        self.first_batch = 0
        """Batches of the epoch to leave out, which a stopped run has already had."""

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for request in self.requests():
            yield list(request.items[request.own])

    def requests(self) -> Iterator[BatchRequest]:
        """The batches with what the other processes load of them."""
        order = self._order()
        copies = np.zeros_like(order) if self.repeat_factors is None else count_copies(order)
        for number in range(self.first_batch, len(self)):
            start = number * self.batch_size
            part = slice(start, min(start + self.batch_size, self.num_images))
            yield BatchRequest(
                epoch=self.epoch,
                number=number,
                items=tuple(
                    (self.epoch, index, copy) if copy else (self.epoch, index)
                    for index, copy in zip(order[part].tolist(), copies[part].tolist(), strict=True)
                ),
                own=slice(self.rank, None, self.num_ranks),
            )

    def _order(self) -> NDArray[np.int64]:
        """Indices of the images in the order of the epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.repeat_factors is None:
            return rng.permutation(self.order_length)
        copies = draw_copies(self.repeat_factors, rng=rng)
        return rng.permutation(np.repeat(np.arange(len(copies)), copies))
