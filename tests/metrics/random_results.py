"""Splits with random boxes and detections: the hard cases of every analysis, in COCO's own forms.

24 images of 400 px, every fourth one empty; seven classes, among them one absent, one never predicted and one
of crowd regions only; scores with many ties; one image with more than 100 detections of a class.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deim.inference.detection_table import DetectionTable, GroundTruthTable
from deim.metrics.assignment import Overlaps, compute_overlaps
from deim.metrics.coco import CocoMetrics, compute_coco_metrics

CLASS_NAMES = ("scratch", "pit", "crack", "absent", "never predicted", "only crowd", "NORMAL")
CATEGORY_IDS = (90, 3, 7, 12, 40, 41, 200)


def random_split(
    seed: int, *, num_images: int = 24, num_classes: int = 7, empty: bool = False, decimals: int = 1
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A COCO ground truth and COCO results.

    Args:
        seed: Of everything.
        num_images: Every fourth one has no boxes.
        num_classes: The first so many of `CLASS_NAMES`.
        empty: No image has a box, but there are detections.
        decimals: Of the scores; 1 gives many ties.
    """
    rng = np.random.default_rng(seed)
    usable = [label for label in range(num_classes) if CLASS_NAMES[label] != "absent"]
    images = [
        {"id": 1000 + 7 * i, "width": 400, "height": 400, "file_name": f"{i}.png"} for i in range(num_images)
    ]
    categories = [{"id": CATEGORY_IDS[label], "name": CLASS_NAMES[label]} for label in range(num_classes)]
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []

    def random_box() -> list[float]:
        width, height = rng.uniform(8, 180, size=2)
        return [
            float(rng.uniform(0, 400 - width)),
            float(rng.uniform(0, 400 - height)),
            float(width),
            float(height),
        ]

    def predict(image_id: int, label: int, bbox: list[float]) -> None:
        if CLASS_NAMES[label] == "never predicted":
            return
        predictions.append(
            {
                "image_id": image_id,
                "category_id": CATEGORY_IDS[label],
                "bbox": bbox,
                "score": round(float(rng.uniform()), decimals),
                "query": len(predictions),
            }
        )

    for index, image in enumerate(images):
        for _ in range(int(rng.integers(0, 3))):
            predict(image["id"], int(rng.integers(num_classes)), random_box())
        if index % 4 == 3 or empty:
            continue
        for _ in range(int(rng.integers(1, 9))):
            label = int(rng.choice(usable))
            bbox = random_box()
            is_crowd = CLASS_NAMES[label] == "only crowd" or rng.uniform() < 0.1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": CATEGORY_IDS[label],
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(is_crowd),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                spread = rng.choice([0.04, 0.25])
                moved = np.array(bbox) + rng.normal(0, spread, size=4) * np.array([*bbox[2:], *bbox[2:]])
                seen_as = label if rng.uniform() < 0.8 else int(rng.integers(num_classes))
                predict(image["id"], seen_as, np.maximum(moved, 1.0).tolist())
    for _ in range(130):
        predict(images[0]["id"], min(1, num_classes - 1), random_box())
    predictions = [predictions[k] for k in rng.permutation(len(predictions))]
    return {"images": images, "annotations": annotations, "categories": categories}, predictions


class Split(NamedTuple):
    """Both tables of a split, in the order in which the metrics take them."""

    truth: GroundTruthTable
    detections: DetectionTable

    def keep(self, kept: NDArray[Any]) -> "Split":
        """The same ground truth with some of the detections."""
        return Split(self.truth, self.detections.take(kept))

    @property
    def overlaps(self) -> Overlaps:
        """The overlaps of both, computed anew."""
        return compute_overlaps(*self)


def split_tables(
    ground_truth: dict[str, Any], predictions: list[dict[str, Any]], *, normal_class: str | None = None
) -> Split:
    """The tables of COCO dictionaries."""
    truth = GroundTruthTable.from_coco(ground_truth, normal_class=normal_class)
    return Split(truth, DetectionTable.from_coco(predictions, truth))


def coco_metrics(ground_truth: dict[str, Any], predictions: list[dict[str, Any]]) -> CocoMetrics:
    """COCO metrics of COCO dictionaries."""
    return compute_coco_metrics(*split_tables(ground_truth, predictions))
