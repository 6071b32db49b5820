"""Running a detector over a split: from the images to the tables that the metrics read."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

from deim.config.schema import Config
from deim.data.batch import Batch
from deim.data.formats.split import CocoSplit, match_classes
from deim.data.images.input_format import build_input_format
from deim.data.loader import build_eval_loader
from deim.engine.distributed import DistributedContext
from deim.engine.trained_detector import TrainedDetector
from deim.errors import DataError, NonFiniteError
from deim.files import suggest
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.predictor import Predictions, detect, predict_split
from deim.loss.criterion import Criterion
from deim.structures import ModelOutput, Placement

WARM_UP, MIN_REPEATS, MAX_REPEATS, MAX_LATENCY_SECONDS = 2, 5, 23, 5.0
"""Repeats of a measurement of latency, of which the first are not counted, and their longest time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Ground truth and raw detections of a split, and the time that the detections took."""

    ground_truth: GroundTruthTable
    detections: DetectionTable
    max_detections: int
    """Detections of an image and a class that metrics count."""
    network_ms: float
    """Mean time per image in the network, post-processing and merging of tiles."""
    total_ms: float
    """The same with reading and preparing the image."""
    loss: float | None = None
    """Loss of the last layer, see `Criterion.sum_last_layer`; None if it was not asked for."""


class Evaluator:
    """Runs detectors over one split; its loader is kept from one epoch to the next.

    Args:
        config: The experiment that the detector belongs to.
        split: Any split.
        class_names: The detector's classes, by index.
        category_ids: Their ids in the training annotations, for classes that the split does not list.
        device: Device of the detector.
        distributed: Processes that share the images; None for this one alone.

    Raises:
        DataError: If the split has a class that the detector does not know, or the normal class is unknown.
    """

    def __init__(
        self,
        config: Config,
        split: CocoSplit,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        device: torch.device,
        distributed: DistributedContext | None = None,
    ) -> None:
        class_index = match_classes(split, class_names, trained_on="the detector")
        normal_class = config.data.normal_class
        if normal_class is not None and normal_class not in class_names:
            raise DataError(
                f"data.normal_class: not a class of the detector, got {normal_class!r}. "
                f"{suggest(normal_class, class_names)} Without such a class, set it to null."
            )
        self.split = split
        self.device = device
        self.max_detections = config.model.decoder.num_queries
        self.counted_detections = config.evaluation.max_detections
        self.distributed = distributed or DistributedContext()
        self.criterion = Criterion(config.loss)
        self.ground_truth = GroundTruthTable(
            class_names=tuple(class_names),
            category_ids=_all_category_ids(class_index, category_ids),
            normal_class=None if normal_class is None else class_names.index(normal_class),
            image_ids=tuple(split.image_ids.tolist()),
            file_names=split.file_names,
            sizes_hw=split.sizes_hw,
            image=np.repeat(np.arange(len(split)), np.diff(split.first_box)),
            label=np.array([class_index[box] for box in split.box_category_ids.tolist()], dtype=np.int64),
            boxes_xywh=split.boxes_xywh,
            area=split.areas,
            is_crowd=split.is_crowd,
        )
        self.input_format = build_input_format(config.data, config.image_size_hw)
        self.loader = build_eval_loader(
            split,
            class_index,
            data=config.data,
            input_format=self.input_format,
            rank=self.distributed.rank,
            num_ranks=self.distributed.size,
        )

    def evaluate(self, model: nn.Module, *, with_loss: bool = False) -> EvaluationResult:
        """Detect in every image; every process gets the result of the whole split.

        Args:
            model: On the evaluator's device.
            with_loss: Compute the loss too, which takes time for matching.

        Raises:
            DataError: If an image is damaged.
            NonFiniteError: If the network gives NaN or infinity for an image.
        """
        loss = _LossSum(model, self.criterion) if with_loss else None
        self.distributed.copy_buffers(model)
        predictions = predict_split(
            model,
            loss.watch(self.loader) if loss else self.loader,
            device=self.device,
            max_detections=self.max_detections,
            image_ids=self.ground_truth.image_ids,
        )
        parts: list[Predictions] = self.distributed.gather(predictions)
        losses = self.distributed.gather((loss.total, loss.num_boxes)) if loss else []
        num_images = self.ground_truth.num_images
        return EvaluationResult(
            ground_truth=self.ground_truth,
            detections=DetectionTable.concatenate([part.detections for part in parts]),
            max_detections=self.counted_detections,
            network_ms=1000 * sum(part.network_seconds for part in parts) / num_images,
            total_ms=1000 * max(part.total_seconds for part in parts) / num_images,
            loss=sum(total for total, _ in losses) / max(sum(boxes for _, boxes in losses), 1)
            if losses
            else None,
        )

    @torch.no_grad()
    def measure_latency_ms(self, model: nn.Module) -> float:
        """Measure the median time of one input at a time in the network and post-processing.

        Reading and preparing the image are not in it, nor is the time until the device is warm.
        """
        model.eval()
        size_hw = self.input_format.size_hw
        image = torch.zeros(1, self.input_format.pixels.channels, *size_hw, device=self.device)
        placement = Placement(orig_size_hw=size_hw, span_hw=size_hw, shift_yx=(0, 0))
        times: list[float] = []
        while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and sum(times) < MAX_LATENCY_SECONDS):
            started = perf_counter()
            detect(model, image, [placement], max_detections=self.max_detections, names=["an empty image"])
            times.append(perf_counter() - started)
        return 1000 * median(times[WARM_UP:])


class _LossSum:
    """Adds up the loss of the last layer while a model detects."""

    def __init__(self, model: nn.Module, criterion: Criterion) -> None:
        self.model, self.criterion = model, criterion
        self.total, self.num_boxes = 0.0, 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches; add the loss of the model's output for each when the next one is asked for."""
        outputs: list[ModelOutput] = []
        hook = self.model.register_forward_hook(lambda _model, _inputs, output: outputs.append(output))
        try:
            for batch in batches:
                yield batch
                try:
                    total, num_boxes = self.criterion.sum_last_layer(outputs.pop(), batch.targets)
                except NonFiniteError:
                    total, num_boxes = math.nan, 0
                self.total, self.num_boxes = self.total + total, self.num_boxes + num_boxes
        finally:
            hook.remove()


def build_evaluator(trained: TrainedDetector, split: CocoSplit) -> Evaluator:
    """Build the evaluator of a trained detector on a split; raises as `Evaluator`."""
    return Evaluator(
        trained.config,
        split,
        class_names=trained.class_names,
        category_ids=trained.category_ids,
        device=trained.device,
    )


def _all_category_ids(class_index: Mapping[int, int], category_ids: Sequence[int]) -> tuple[int, ...]:
    """Return the split's category id of each class.

    A class that the split does not list gets its id in training or, if the split uses that id for another
    class, the first number that is free in both.
    """
    id_by_label = {index: category_id for category_id, index in class_index.items()}
    free = (number for number in count(1) if number not in class_index and number not in category_ids)
    return tuple(
        id_by_label[index] if index in id_by_label else trained if trained not in class_index else next(free)
        for index, trained in enumerate(category_ids)
    )
