"""Scoring a detector on a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from typing import Any

import torch
from torch import nn

from deim.config.schema import Config
from deim.data.formats.coco import CocoSplit, match_classes
from deim.data.images.input_format import build_input_format
from deim.data.loader import build_eval_loader
from deim.engine.checkpoints import TrainedDetector
from deim.engine.distributed import DistributedContext
from deim.errors import DataError
from deim.inference.predictor import Predictions, join_predictions, max_detections, predict_split
from deim.metrics.coco import CocoMetrics, compute_coco_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Predictions of a split and their scores."""

    metrics: CocoMetrics
    predictions: Predictions
    category_ids: tuple[int, ...]
    """Category id of each class index in these results."""
    ground_truth: dict[str, Any]
    """COCO dict; categories in the order of the class indices."""
    results: list[dict[str, Any]]
    """The predictions as COCO results."""


class Evaluator:
    """Scores detectors on one split; its loader is kept from one epoch to the next.

    Args:
        config: The experiment that the detector belongs to.
        split: Any split.
        class_names: The detector's classes, by index.
        category_ids: Their ids in the training annotations, for classes that the split does not list.
        device: Where the detector computes.
        distributed: Processes that share the images, each of which is scored once; None for this one alone.

    Raises:
        DataError: If the split has a class that the detector does not know, or the normal class is not known.
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
        _check_normal_class(config.data.normal_class, class_names)
        self.split = split
        self.device = device
        self.max_detections = max_detections(config)
        self.category_ids = _all_category_ids(class_index, category_ids)
        self.class_names = tuple(class_names)
        self.distributed = distributed or DistributedContext()
        self.loader = build_eval_loader(
            split,
            class_index,
            data=config.data,
            input_format=build_input_format(config.data, config.image_size_hw),
            rank=self.distributed.rank,
            num_ranks=self.distributed.size,
        )

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Detect in every image and score; every process gets the result of the whole split.

        Raises:
            DataError: If an image is damaged.
        """
        self.distributed.copy_buffers(model)
        own = predict_split(model, self.loader, device=self.device, max_detections=self.max_detections)
        predictions = join_predictions(self.distributed.gather(own), self.split)
        ground_truth = self.ground_truth()
        results = predictions.to_coco(self.category_ids)
        return Evaluation(
            metrics=compute_coco_metrics(ground_truth, results),
            predictions=predictions,
            category_ids=self.category_ids,
            ground_truth=ground_truth,
            results=results,
        )

    def ground_truth(self) -> dict[str, Any]:
        """The split as a COCO dict; categories in the order of the class indices."""
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return self.split.to_coco() | {"categories": categories}


def evaluator_of(trained: TrainedDetector, split: CocoSplit) -> Evaluator:
    """Build the evaluator of a trained detector on a split.

    Args:
        trained: From `load_trained`.
        split: Any split.

    Raises:
        DataError: If the split has a class that the detector does not know.
    """
    return Evaluator(
        trained.config,
        split,
        class_names=trained.class_names,
        category_ids=trained.category_ids,
        device=trained.device,
    )


def _check_normal_class(name: str | None, class_names: Sequence[str]) -> None:
    if name is None or name in class_names:
        return
    close = get_close_matches(name, class_names, n=1)
    advice = f"Did you mean {close[0]!r}?" if close else f"The classes are {', '.join(class_names)}."
    raise DataError(
        f"data.normal_class: got {name!r}, which is none of the classes. {advice} Without such a class, "
        f"set it to null."
    )


def _all_category_ids(class_index: Mapping[int, int], category_ids: Sequence[int]) -> tuple[int, ...]:
    """The split's id of each class.

    A class that the split does not list is reported too: with its id in training, or, if the split has given
    that to another class, with the first number that is free in both.
    """
    id_of_class = {index: category_id for category_id, index in class_index.items()}
    free = (number for number in count(1) if number not in class_index and number not in category_ids)
    return tuple(
        id_of_class[index] if index in id_of_class else trained if trained not in class_index else next(free)
        for index, trained in enumerate(category_ids)
    )
