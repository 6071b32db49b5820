"""The images of a split as batches of network inputs with targets."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from deim.boxes import clip_to_window, to_input_fractions, xywh_to_xyxy, xyxy_to_cxcywh
from deim.data.augment.copy_blend import CopyBlend
from deim.data.augment.pipeline import AugmentPipeline
from deim.data.augment.transform import BlendTransform, Donors, ImageSource, Sample
from deim.data.batch import Batch, collate, resize_batch
from deim.data.formats.split import CocoSplit
from deim.data.image_cache import DiskCache, MemoryCache
from deim.data.images.input_format import InputFormat
from deim.data.images.load import read_image, read_input
from deim.data.images.resize import fit_to_input, to_unit
from deim.data.images.tiling import place_tile, tile_split
from deim.data.sampling import BatchRequest, Item
from deim.errors import DataError
from deim.structures import Placement, Target

SAMPLE, NOISE, COMPOSE, BATCH = 0, 1, 2, 3
"""Purposes of random draws: the draws of one do not depend on how many another makes."""


class DetectionDataset(Dataset[Batch | DataError]):
    """The images of a split as network inputs with targets; with tiles, each tile is an item.

    The tiles of an image follow one another, and an image is decoded once for consecutive tiles. All random
    draws depend only on the seed and the item or the number of the batch, whatever the number of workers.

    Args:
        split: The annotations.
        class_index: Class index of each category id of the split.
        input_format: How an image becomes an input.
        pipeline: Random changes of training images; None for evaluation.
        seed: Seed of the random changes.
        cache_bytes: Memory for resized images in each loading process; the first images are kept.
        repeat_factors: (N,) how often the sampler draws each item, which mosaics follow; None for equal.
        disk_cache: Resized images that all processes share.
    """

    def __init__(
        self,
        split: CocoSplit,
        class_index: Mapping[int, int],
        *,
        input_format: InputFormat,
        pipeline: AugmentPipeline | None = None,
        seed: int = 0,
        cache_bytes: int = 0,
        disk_cache: DiskCache | None = None,
        repeat_factors: NDArray[np.float64] | None = None,
    ) -> None:
        self.split = split
        self.class_index = dict(class_index)
        self.input_format = input_format
        self.pipeline = pipeline
        self.seed = seed
        self.tiles = tile_split(split, input_format.tiles)
        self._memory_cache = MemoryCache(cache_bytes)
        self._disk_cache = disk_cache
        self._sampling_shares = None if repeat_factors is None else repeat_factors / repeat_factors.sum()
        self._decoded: tuple[int, Tensor] | None = None
        # Computed here rather than for the first batch, so that loading processes share it.
        draws_donors = pipeline is not None and pipeline.options.copy_blend_balanced
        self._images_of_classes = self._find_images_of_classes() if draws_donors else {}

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, request: BatchRequest) -> Batch | DataError:
        """Load a batch.

        A batch that is blended is loaded whole by each process, which then keeps its part: the images are the
        same for any number of processes.

        Returns:
            The batch; an error about an image instead of raising it, so that it keeps its message on the way
            from a loading process to the main one.
        """
        try:
            batch = self._load(request)
        except DataError as error:
            return error
        if get_worker_info() is not None:
            batch.share()
        return batch

    def load_items(self, items: Sequence[Item]) -> Batch:
        """Load a batch of items without the changes of whole batches.

        Raises:
            DataError: If an image is damaged.
        """
        return collate(*self._read_items(items), self.input_format)

    def read(self, item: Item) -> tuple[Tensor, Target]:
        """Read the input (C, H, W) of an item, uint8 or float32 in [0, 1], not normalized, and its target.

        Raises:
            DataError: If the image is damaged.
        """
        epoch, index = item[:2]
        image_index = self.image_index(index)
        height, width = self.input_format.size_hw
        to_pixels = torch.tensor([width, height] * 2)
        sample, placement = self._compose(item), self._unscaled_placement(index)
        if sample is None:
            boxes, labels = self._boxes(index)
            image, placement = self._resized_image(index)
            boxes = to_input_fractions(boxes, placement) * to_pixels
            sample = Sample(image=image, boxes_xyxy=boxes, labels=labels)
        if self.pipeline is not None:
            rng = np.random.default_rng(self._seed(item, SAMPLE))
            sample = self.pipeline.change(sample, epoch=epoch, rng=rng)
        return sample.image, {
            "boxes": xyxy_to_cxcywh(sample.boxes_xyxy / to_pixels),
            "labels": sample.labels,
            "area": sample.area,
            "image_id": int(self.split.image_ids[image_index]),
            "file_name": self.split.file_names[image_index],
            "placement": placement,
            "noise_seed": int(self._seed(item, NOISE).generate_state(1)[0]),
        }

    def image_index(self, index: int) -> int:
        """Return the position in the split of the image of an item."""
        return int(self.tiles.image[index])

    def _load(self, request: BatchRequest) -> Batch:
        if self.pipeline is None or not self.pipeline.mixes_images:
            return self.load_items(request.items[request.part])
        rng = np.random.default_rng([self.seed, request.epoch, request.number, BATCH])
        size_hw, blend = self.pipeline.draw_batch(epoch=request.epoch, rng=rng)
        if blend is None:
            images, targets = self._read_items(request.items[request.part])
        else:
            images, targets = self._read_items(request.items)
            donors = self._read_donors(blend, request.epoch, rng)
            images, targets = blend.blend(to_unit(images), targets, donors=donors, rng=rng)
            images, targets = images[request.part], targets[request.part]
        if size_hw is not None:
            images, targets = resize_batch(images, targets, size_hw)
        return collate(images, targets, self.input_format)

    def _read_items(self, items: Sequence[Item]) -> tuple[Tensor, list[Target]]:
        """Read inputs (B, C, H, W), not normalized, and their targets."""
        images, targets = zip(*(self.read(item) for item in items), strict=True)
        return torch.stack(images), list(targets)

    def _read_donors(self, blend: BlendTransform, epoch: int, rng: np.random.Generator) -> Donors | None:
        """Read inputs (D, C, H, W) in [0, 1] to take objects from, with the objects of the drawn class."""
        drawn = blend.draw_donors(self._images_of_classes, rng=rng) if isinstance(blend, CopyBlend) else []
        if not drawn:
            return None
        images, targets = self._read_items([(epoch, index) for _, index in drawn])
        for (label, _), target in zip(drawn, targets, strict=True):
            is_drawn = target["labels"] == label
            for name in ("boxes", "labels", "area"):
                target[name] = target[name][is_drawn]
        return to_unit(images), targets

    def _find_images_of_classes(self) -> dict[int, list[int]]:
        """Return the indices of the images that show each class, by class index."""
        images: dict[int, list[int]] = {}
        for index in range(len(self)):
            for label in self._boxes(index)[1].unique().tolist():
                images.setdefault(label, []).append(index)
        return images

    def _seed(self, item: Item, purpose: int) -> np.random.SeedSequence:
        """Return the seed of a draw of an item; repetitions of an image have their own draws."""
        epoch, index, *repetition = item
        return np.random.SeedSequence([self.seed, epoch, index, purpose, *repetition])

    def _compose(self, item: Item) -> Sample | None:
        """Return a mosaic or a part of the image at the size of the network input, if that is drawn."""
        if self.pipeline is None:
            return None
        source = ImageSource(
            index=item[1],
            read=self._read_sample,
            num_images=len(self),
            input_format=self.input_format,
            sampling_shares=self._sampling_shares,
        )
        rng = np.random.default_rng(self._seed(item, COMPOSE))
        return self.pipeline.compose(source, epoch=item[0], rng=rng)

    def _read_sample(self, index: int) -> Sample:
        """Read an image, or a tile, in its original size."""
        boxes, labels = self._boxes(index)
        left, top, _, _ = self.tiles.shown(index)
        boxes = boxes - boxes.new_tensor([left, top, left, top])
        return Sample(image=self._read_image(index), boxes_xyxy=boxes, labels=labels)

    def _resized_image(self, index: int) -> tuple[Tensor, Placement]:
        """Return the image, or tile, at the size of the network input; it must not be changed in place."""
        cache: MemoryCache | DiskCache = self._memory_cache
        if self._disk_cache is not None and self._disk_cache.has_place(index):
            cache = self._disk_cache
        resized = cache.get(index)
        if resized is None:
            if self.tiles.is_part[index]:
                resized = fit_to_input(self._read_image(index), self.input_format)
            else:
                path = self.split.image_path(self.image_index(index))
                resized = read_input(path, self.input_format)
            cache.put(index, resized)
        image, placement = resized
        window = self.tiles.window(index)
        return image, placement if window is None else place_tile(placement, window, self._image_hw(index))

    def _read_image(self, index: int) -> Tensor:
        """Read the pixels of an image, or of a tile, whose image is kept for the next tile."""
        image_index, window = self.image_index(index), self.tiles.window(index)
        path = self.split.image_path(image_index)
        if window is None:
            return read_image(path, self.input_format.pixels)
        if self._decoded is None or self._decoded[0] != image_index:
            self._decoded = image_index, read_image(path, self.input_format.pixels)
        left, top, right, bottom = window
        # A copy, because a view in a cache would keep the whole image.
        return self._decoded[1][:, top:bottom, left:right].clone()

    def _unscaled_placement(self, index: int) -> Placement:
        """Return the placement of an input that shows an item as if it were stretched."""
        left, top, right, bottom = self.tiles.shown(index)
        return Placement(
            orig_size_hw=self._image_hw(index),
            span_hw=(float(bottom - top), float(right - left)),
            shift_yx=(float(top), float(left)),
            tile_xyxy=self.tiles.window(index),
        )

    def _image_hw(self, index: int) -> tuple[int, int]:
        height, width = self.split.sizes_hw[self.image_index(index)].tolist()
        return height, width

    def _boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """Return boxes (N, 4) xyxy clipped to the item, in original pixels, and labels (N,); no crowds."""
        rows = self.tiles.rows_of(index)
        boxes = xywh_to_xyxy(torch.from_numpy(self.split.boxes_xywh[rows]).float())
        labels = [self.class_index[int(category)] for category in self.split.box_category_ids[rows]]
        return clip_to_window(boxes, self.tiles.shown(index)), torch.tensor(labels, dtype=torch.int64)
