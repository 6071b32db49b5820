"""Running a detector over images: the one path that validation, evaluation and prediction share."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deim.boxes import clip_boxes, clip_to_window, xyxy_to_xywh
from deim.config.schema import Config
from deim.data.formats.coco import CocoSplit
from deim.data.images.input_format import InputFormat, build_input_format
from deim.data.images.load import read_tiles, to_tensor
from deim.data.images.resize import fit_tiles, normalize
from deim.engine.checkpoints import TrainedDetector, load_trained
from deim.engine.device import select_device
from deim.engine.step import StepBatch
from deim.errors import ConfigError
from deim.inference.detection_table import FoundBoxes
from deim.inference.nms import candidate_rules
from deim.inference.postprocess import select_detections
from deim.inference.tile_merge import TileMerger
from deim.metrics.choose_thresholds import OperatingPoints, describe_goal, operating_points_from_dict
from deim.structures import Detections, Placement

ImageLike = str | Path | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
"""A file, a picture, or an (H, W, C) or (H, W) array with the depth and channels of the training images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Detections of a split."""

    by_image: dict[int, Detections]
    """Detections of each image id, clipped to the image."""
    network_seconds: float
    """Time in the network and its post-processing, the merging of tiles too, all images together."""
    total_seconds: float
    """The same with loading and preparing the images."""

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results: `image_id`, `category_id`, `bbox` xywh in pixels, `score`, `query`.

        Args:
            category_ids: Category id of each class index.
        """
        return [
            entry
            for image_id, detections in self.by_image.items()
            for entry in to_coco_results(image_id, detections, category_ids)
        ]


def to_coco_results(
    image_id: int, detections: Detections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO results of one image, each with its `query`.

    Args:
        image_id: Its id.
        detections: Boxes in pixels of the image.
        category_ids: Category id of each class index.
    """
    boxes = xyxy_to_xywh(detections.boxes_xyxy).tolist()
    columns = (detections.scores.tolist(), detections.labels.tolist(), detections.queries.tolist())
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "score": score,
            "query": query,
        }
        for box, score, label, query in zip(boxes, *columns, strict=True)
    ]


@torch.no_grad()
def detect(
    model: nn.Module, images: Tensor, placements: Sequence[Placement], *, max_detections: int
) -> list[Detections]:
    """Detect objects in prepared inputs, in float32; boxes are clipped to their images, or tiles.

    Args:
        model: In evaluation mode, on the device of `images`.
        images: (B, C, H, W) float, normalized.
        placements: Where each input lies in its original image.
        max_detections: Detections kept an input.

    Returns:
        Detections on the CPU, an input each, boxes in pixels of the original.
    """
    found = select_detections(model(images), placements, max_detections=max_detections)
    return [
        Detections(
            boxes_xyxy=_clip(item.boxes_xyxy, placement).cpu(),
            scores=item.scores.cpu(),
            labels=item.labels.cpu(),
            queries=item.queries.cpu(),
        )
        for item, placement in zip(found, placements, strict=True)
    ]


def _clip(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Boxes clipped to what their input shows of the original."""
    if placement.tile_xyxy is None:
        return clip_boxes(boxes_xyxy, placement.orig_size_hw)
    return clip_to_window(boxes_xyxy, placement.tile_xyxy)


def predict_split(
    model: nn.Module, loader: Iterable[StepBatch], *, device: torch.device, max_detections: int
) -> Predictions:
    """Detect objects in every image of a loader; what tiles show is merged once for each image.

    Args:
        model: On `device`; it is put into evaluation mode.
        loader: From `build_eval_loader`, or other batches that the model takes; the tiles of an image come in
            a row, in one batch or several.
        device: Where to compute.
        max_detections: Detections kept an image.

    Raises:
        DataError: If an image is damaged.
    """
    model.eval()
    by_image: dict[int, Detections] = {}
    merger = TileMerger(max_detections=max_detections)
    network_seconds = 0.0
    started = time.perf_counter()
    for batch in loader:
        images = batch.images.to(device, non_blocking=True)
        network_started = time.perf_counter()
        placements = [target["placement"] for target in batch.targets]
        found = detect(model, images, placements, max_detections=max_detections)
        by_image.update(merger.add([target["image_id"] for target in batch.targets], placements, found))
        network_seconds += time.perf_counter() - network_started
    by_image.update(merger.finish())
    return Predictions(
        by_image=by_image,
        network_seconds=network_seconds,
        total_seconds=time.perf_counter() - started,
    )


def join_predictions(parts: Sequence[Predictions], split: CocoSplit) -> Predictions:
    """Put the predictions of several processes together, images in the order of the split's file.

    Args:
        parts: Of different images.
        split: The split that they share.
    """
    by_image = {image_id: found for part in parts for image_id, found in part.by_image.items()}
    return Predictions(
        by_image={image_id: by_image[image_id] for image_id in split.image_ids.tolist()},
        network_seconds=sum(part.network_seconds for part in parts),
        total_seconds=max(part.total_seconds for part in parts),
    )


class Predictor:
    """A trained detector for use from Python.

    Args:
        trained: From `load_trained`.
    """

    def __init__(self, trained: TrainedDetector) -> None:
        self.trained = trained

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, by class index."""
        return self.trained.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """C ids of the training annotations, by class index."""
        return self.trained.category_ids

    @property
    def input_format(self) -> InputFormat:
        """How an image becomes the network's input."""
        config = self.trained.config
        return build_input_format(config.data, config.image_size_hw)

    @property
    def operating_points(self) -> OperatingPoints | None:
        """Threshold of each class, and nms of duplicates, as chosen on the validation split.

        Raises:
            ConfigError: If the config was changed to ask for others than those stored, or changes the inputs.
        """
        stored = stored_points(self.trained)
        if stored is not None and self.trained.changed_inputs:
            changed = " and ".join(self.trained.changed_inputs)
            raise ConfigError(
                f"{self.trained.path}: its thresholds were chosen with another {changed} and do not hold "
                f"here. Leave {changed} as it was, or give a threshold: --score-threshold, from Python "
                f"score_threshold."
            )
        if stored is not None and not is_asked_for(stored, self.trained.config):
            raise ConfigError(
                f"{self.trained.path}: its thresholds were chosen for {stored.goal}, nms "
                f"{stored.nms.describe()}, normal class {stored.normal_class}; the config now asks "
                f"for others. Choose them with tools/evaluate.py {self.trained.path} --split val and the "
                f"same --set."
            )
        return stored

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, score_threshold: float | None = None
    ) -> list[Detections]:
        """Detect objects, exactly as evaluation does.

        Args:
            images: One image or several: paths, pictures, or arrays: uint8 (H, W, 3) RGB or (H, W) gray, and
                for a detector of other channels or with a scaling, (H, W, C) uint8 or uint16 as it says.
            score_threshold: Detections with a lower score are left out, and nothing else; 0 gives the raw
                detections. None takes those that count at the stored operating points, or, if the checkpoint
                has none, all from `evaluation.draw_threshold`.

        Returns:
            Detections of each image, best score first, boxes in pixels of the image.

        Raises:
            DataError: If a file is missing or not an image, or an image has not the depth and the channels
                that the detector was trained for.
        """
        several = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else images
        found = list(self._predict_whole(several))
        if score_threshold is not None:
            return [above(detections, score_threshold) for detections in found]
        points = self.operating_points
        if points is None:
            return [above(detections, self.trained.config.evaluation.draw_threshold) for detections in found]
        return [counting(detections, points) for detections in found]

    def _predict_whole(self, images: Sequence[ImageLike]) -> Iterator[Detections]:
        """Raw detections of each image, whose tiles, if any, make batches as in evaluation."""
        config = self.trained.config
        merger = TileMerger(max_detections=max_detections(config))
        inputs = self._inputs(images)
        while batch := list(islice(inputs, config.data.eval_batch_size)):
            numbers, tensors, placements = zip(*batch, strict=True)
            found = detect(
                self.trained.model,
                torch.stack(tensors).to(self.trained.device),
                placements,
                max_detections=max_detections(config),
            )
            yield from (item for _, item in merger.add(numbers, placements, found))
        yield from (item for _, item in merger.finish())

    def _inputs(self, images: Sequence[ImageLike]) -> Iterator[tuple[int, Tensor, Placement]]:
        """Inputs, read when they are asked for, with the number of their image."""
        form = self.input_format
        for number, image in enumerate(images):
            for fitted, placement in _fit(image, form):
                yield number, normalize(fitted, form), placement


def load_detector(path: str | Path, *, device: str = "auto") -> Predictor:
    """Load a trained detector; nothing but the checkpoint is needed.

    Args:
        path: `best.pth` or `last.pth`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        ConfigError: If there is no such device.
    """
    return Predictor(load_trained(Path(path), device=select_device(device)))


def stored_points(trained: TrainedDetector) -> OperatingPoints | None:
    """The operating points in a checkpoint; None if there are none.

    Args:
        trained: From `load_trained`.
    """
    return None if trained.operating_points is None else operating_points_from_dict(trained.operating_points)


def is_asked_for(points: OperatingPoints, config: Config) -> bool:
    """Whether operating points are those that a config asks for, as far as it says.

    Args:
        points: From a checkpoint.
        config: Its config, with any changes.
    """
    options = config.evaluation
    return (
        points.goal == describe_goal(options.goal)
        and points.max_escape_rate == options.max_escape_rate
        and points.nms in candidate_rules(options.nms)
        and points.normal_class == config.data.normal_class
    )


def above(detections: Detections, score_threshold: float) -> Detections:
    """The detections whose score is at least `score_threshold`."""
    return detections.take(detections.scores >= score_threshold)


def counting(detections: Detections, points: OperatingPoints) -> Detections:
    """The detections of one image that count at operating points.

    Args:
        detections: Raw.
        points: Of the detector.
    """
    kept = points.keep(
        FoundBoxes(
            image=np.zeros(len(detections.scores), dtype=np.int64),
            label=detections.labels.numpy(),
            # The very numbers that results in COCO's form carry.
            boxes_xywh=xyxy_to_xywh(detections.boxes_xyxy).double().numpy(),
            scores=detections.scores.double().numpy(),
            query=detections.queries.numpy(),
        )
    )
    return detections.take(torch.from_numpy(kept))


def max_detections(config: Config) -> int:
    """Detections kept an image: as many as there are queries."""
    return config.model.decoder.num_queries


def _fit(image: ImageLike, form: InputFormat) -> Iterator[tuple[Tensor, Placement]]:
    """An image, or its tiles, at the size of the network input, and where each lies in it."""
    if isinstance(image, (str, Path)):
        return read_tiles(Path(image), form)
    return fit_tiles(to_tensor(image, form.pixels, where="predict"), form)
