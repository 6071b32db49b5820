"""Running a detector over a split: from the images to the tables that the metrics read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import nn

from deim.config.schema import Config
from deim.data.formats.coco import CocoSplit, match_classes
from deim.data.images.input_format import build_input_format
from deim.data.loader import build_eval_loader
from deim.engine.distributed import DistributedContext
from deim.engine.trained_detector import TrainedDetector
from deim.errors import DataError
from deim.files import suggest
from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.inference.predictor import Predictions, max_detections_per_image, predict_split


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
        self.max_detections = max_detections_per_image(config)
        self.counted_detections = config.evaluation.max_detections
        self.distributed = distributed or DistributedContext()
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
        self.loader = build_eval_loader(
            split,
            class_index,
            data=config.data,
            input_format=build_input_format(config.data, config.image_size_hw),
            rank=self.distributed.rank,
            num_ranks=self.distributed.size,
        )

    def evaluate(self, model: nn.Module) -> EvaluationResult:
        """Detect in every image; every process gets the result of the whole split.

        Raises:
            DataError: If an image is damaged.
        """
        self.distributed.copy_buffers(model)
        predictions = predict_split(
            model,
            self.loader,
            device=self.device,
            max_detections=self.max_detections,
            image_ids=self.ground_truth.image_ids,
        )
        parts: list[Predictions] = self.distributed.gather(predictions)
        num_images = self.ground_truth.num_images
        return EvaluationResult(
            ground_truth=self.ground_truth,
            detections=DetectionTable.concatenate([part.detections for part in parts]),
            max_detections=self.counted_detections,
            network_ms=1000 * sum(part.network_seconds for part in parts) / num_images,
            total_ms=1000 * max(part.total_seconds for part in parts) / num_images,
        )


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
