"""Running a detector over images: the one path that validation, evaluation and prediction share."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from deim.boxes import clip_to_window
from deim.config.schema import Config
from deim.data.images.input_format import build_input_format
from deim.data.images.load import read_tiles, to_tensor
from deim.data.images.resize import fit_tiles, normalize
from deim.engine.device import select_device
from deim.engine.step import StepBatch
from deim.engine.trained_detector import TrainedDetector, load_trained
from deim.errors import CheckpointError, ConfigError, DataError, DeimError, NonFiniteError
from deim.inference.detection_table import DetectionTable
from deim.inference.operating_points import OperatingPoints, candidate_rules, describe_goal
from deim.inference.postprocess import are_finite, select_detections
from deim.inference.tile_merge import merge_by_image
from deim.records import from_json
from deim.structures import Detections, Placement

ImageLike = str | Path | Image.Image | NDArray[np.uint8] | NDArray[np.uint16]
"""A file, a Pillow image, or an (H, W, C) or (H, W) array with the depth and channels of the training
images."""


NON_FINITE_ADVICE: Final = (
    "Use another checkpoint, compute in float32, and see that data.scaling, data.mean and data.std are those "
    "of the training."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Raw detections of a split, or of a process's share of it."""

    detections: DetectionTable
    """Boxes are clipped to their images."""
    network_seconds: float
    """Time in the network, post-processing and merging of tiles, all images together."""
    total_seconds: float
    """The same with reading and preparing the images."""


@torch.no_grad()
def detect(
    model: nn.Module,
    images: Tensor,
    placements: Sequence[Placement],
    *,
    max_detections: int,
    names: Sequence[object],
) -> list[Detections | NonFiniteError]:
    """Detect objects in prepared inputs, in float32; boxes are clipped to their images, or tiles.

    Args:
        model: In evaluation mode, on the device of `images`.
        images: (B, C, H, W) float, normalized.
        placements: Where each input lies in its original image.
        max_detections: Number of detections to keep per input.
        names: Name of the image of each input, for messages.

    Returns:
        Detections of each input on the CPU, boxes in pixels of the original; an error for an input to which
        the network answers NaN or infinity, which would otherwise look like an image without objects.
    """
    output = model(images)
    is_finite = are_finite(output)
    selected = select_detections(output, placements, max_detections=max_detections)
    return [
        Detections(
            boxes_xyxy=clip_to_window(
                item.boxes_xyxy, placement.tile_xyxy or (0, 0, *placement.orig_size_hw[::-1])
            ).cpu(),
            scores=item.scores.cpu(),
            labels=item.labels.cpu(),
            queries=item.queries.cpu(),
        )
        if is_good
        else NonFiniteError(f"{name}: the network gives NaN or infinity for it. {NON_FINITE_ADVICE}")
        for item, placement, name, is_good in zip(selected, placements, names, is_finite, strict=True)
    ]


def predict_split(
    model: nn.Module,
    loader: Iterable[StepBatch],
    *,
    device: torch.device,
    max_detections: int,
    image_ids: Sequence[int],
) -> Predictions:
    """Detect objects in every image of a loader; the detections of the tiles of an image are merged.

    Args:
        model: On `device`; it is put into evaluation mode.
        loader: From `build_eval_loader`, or other batches that the model takes; the tiles of an image follow
            each other, in one batch or several.
        device: Device to compute on.
        max_detections: Number of detections to keep per image.
        image_ids: Ids of all images of the split, by position.

    Raises:
        DataError: If an image is damaged.
        NonFiniteError: If the network gives NaN or infinity for an image.
    """
    network_seconds = 0.0

    def detect_inputs() -> Iterator[tuple[int, Placement, Detections]]:
        nonlocal network_seconds
        for batch in loader:
            images = batch.images.to(device, non_blocking=True)
            network_started = time.perf_counter()
            placements = [target["placement"] for target in batch.targets]
            names = [target.get("file_name", target["image_id"]) for target in batch.targets]
            results = detect(model, images, placements, max_detections=max_detections, names=names)
            for target, placement, result in zip(batch.targets, placements, results, strict=True):
                if isinstance(result, NonFiniteError):
                    raise result
                yield target["image_id"], placement, result
            # Tiles were merged while this waited, so that their time is included.
            network_seconds += time.perf_counter() - network_started

    model.eval()
    started = time.perf_counter()
    by_id = dict(merge_by_image(detect_inputs(), max_detections=max_detections))
    by_position = {position: by_id[key] for position, key in enumerate(image_ids) if key in by_id}
    return Predictions(
        detections=DetectionTable.from_detections(by_position),
        network_seconds=network_seconds,
        total_seconds=time.perf_counter() - started,
    )


class Predictor:
    """A trained detector for use from Python, with its `class_names` and `category_ids` by class index."""

    def __init__(self, trained: TrainedDetector) -> None:
        self.trained = trained
        self.class_names, self.category_ids = trained.class_names, trained.category_ids
        self.input_format = build_input_format(trained.config.data, trained.config.image_size_hw)

    @property
    def operating_points(self) -> OperatingPoints | None:
        """Threshold of each class and NMS, as chosen on the validation split; None if there are none.

        Raises:
            ConfigError: If the config was changed so that it asks for others, or so that the inputs differ.
        """
        stored, trained = stored_points(self.trained), self.trained
        if stored is not None and trained.changed_inputs:
            changed = " and ".join(trained.changed_inputs)
            raise ConfigError(
                f"{trained.path}: its thresholds were chosen with another {changed} and do not hold here. "
                f"Leave {changed} as it was, or give a threshold: --score-threshold, from Python "
                f"score_threshold."
            )
        if stored is not None and not match_config(stored, trained.config):
            raise ConfigError(
                f"{trained.path}: its thresholds were chosen for {stored.goal}, nms {stored.nms.describe()}, "
                f"normal class {stored.normal_class}; the config now asks for others. Choose them with deim "
                f"evaluate {trained.path} --split val and the same --set."
            )
        return stored

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, score_threshold: float | None = None
    ) -> list[Detections]:
        """Detect objects, exactly as evaluation does.

        Args:
            images: One image or several: paths, Pillow images, or arrays: uint8 (H, W, 3) RGB or (H, W) gray;
                a detector with other channels or with a scaling takes (H, W, C) uint8 or uint16.
            score_threshold: Lowest score to keep, without NMS; 0 gives the raw detections. None applies the
                stored operating points or, if the checkpoint has none, `evaluation.draw_threshold`.

        Returns:
            Detections of each image, best score first, boxes in pixels of the image.

        Raises:
            DataError: If a file is missing or not an image, or an image does not have the depth and the
                channels that the detector was trained for.
            NonFiniteError: If the network gives NaN or infinity for an image.
        """
        several = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else images
        results = []
        for result in self.stream(several, score_threshold=score_threshold):
            if isinstance(result, DeimError):
                raise result
            results.append(result)
        return results

    def stream(
        self, images: Iterable[ImageLike], *, score_threshold: float | None = None
    ) -> Iterator[Detections | DataError | NonFiniteError]:
        """Detect objects as `predict`, image by image, and give the error of an image that cannot be used.

        Only the images of a batch are held in memory.

        Args:
            images: Any number of images.
            score_threshold: As for `predict`.

        Yields:
            Detections of each image, or the reason why there are none, in the order of `images`.
        """
        points = self.operating_points if score_threshold is None else None
        if score_threshold is None:
            score_threshold = self.trained.config.evaluation.draw_threshold
        limit = self.trained.config.model.decoder.num_queries
        errors: dict[int, DataError | NonFiniteError] = {}
        for number, item in merge_by_image(self._detect(images, limit, errors), max_detections=limit):
            failed = sorted(key for key in errors if key <= number)
            yield from map(errors.pop, failed)
            if number in failed:  # for one of its tiles
                continue
            if points is None:
                yield item.take(item.scores >= score_threshold)
            else:
                yield item.take(torch.from_numpy(points.keep(DetectionTable.from_detections({0: item}))))
        yield from map(errors.pop, sorted(errors))

    def _detect(
        self, images: Iterable[ImageLike], limit: int, errors: dict[int, DataError | NonFiniteError]
    ) -> Iterator[tuple[int, Placement, Detections]]:
        """Yield the raw detections of each input; tiles, if any, are batched as in evaluation.

        An image that cannot be used has its number and its error in `errors`.
        """
        inputs = self._inputs(images, errors)
        while batch := list(islice(inputs, self.trained.config.data.eval_batch_size)):
            numbers, names, tensors, placements = zip(*batch, strict=True)
            stacked = torch.stack(tensors).to(self.trained.device)
            results = detect(self.trained.model, stacked, placements, max_detections=limit, names=names)
            for number, placement, result in zip(numbers, placements, results, strict=True):
                if isinstance(result, NonFiniteError):
                    errors[number] = result
                else:
                    yield number, placement, result

    def _inputs(
        self, images: Iterable[ImageLike], errors: dict[int, DataError | NonFiniteError]
    ) -> Iterator[tuple[int, str, Tensor, Placement]]:
        """Yield inputs with the number and name of their image, which is read when its first one is due."""
        form = self.input_format
        for number, image in enumerate(images):
            name = str(image) if isinstance(image, (str, Path)) else f"image {number + 1}"
            try:
                if isinstance(image, (str, Path)):
                    tiles = read_tiles(Path(image), form)
                else:
                    tiles = fit_tiles(to_tensor(image, form.pixels, where="predict"), form)
                for fitted, placement in tiles:
                    yield number, name, normalize(fitted, form), placement
            except DataError as error:
                errors[number] = error


def load_detector(path: str | Path, *, device: str = "auto") -> Predictor:
    """Load a trained detector from `best.pth` or `last.pth`; no other file is needed.

    Args:
        path: The checkpoint, or the folder of its run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged.
        ConfigError: If there is no such device.
    """
    return Predictor(load_trained(Path(path), device=select_device(device)))


def stored_points(trained: TrainedDetector) -> OperatingPoints | None:
    """Return the operating points in a checkpoint; None if there are none."""
    stored = trained.operating_points
    if stored is None:
        return None
    where = f"{trained.path}: operating_points"
    points = from_json(OperatingPoints, stored, where=where, error=CheckpointError)
    if tuple(entry.name for entry in points.classes) != trained.class_names:
        raise CheckpointError(f"{where}: not of the classes {', '.join(trained.class_names)}.")
    return points


def match_config(points: OperatingPoints, config: Config) -> bool:
    """Tell whether operating points are those that a config asks for, as far as the config says."""
    options = config.evaluation
    return (
        points.goal == describe_goal(options.goal)
        and points.max_escape_rate == options.max_escape_rate
        and points.nms in candidate_rules(options.nms)
        and points.normal_class == config.data.normal_class
    )
