"""Ground truth and detections of a split side by side, as flat arrays: what every analysis reads.

They are built from COCO's own forms alone, so an analysis of saved files gives what it gave after prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthBoxes:
    """Ground truth of a split. G counts its boxes, which are sorted by image."""

    image: NDArray[np.int64]
    """(G,) position of the image."""
    label: NDArray[np.int64]
    """(G,) 0-based class index."""
    boxes_xywh: NDArray[np.float64]
    """(G, 4) pixels of the image."""
    is_crowd: NDArray[np.bool_]
    """(G,) true for regions of many objects, which are neither hit nor missed."""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundBoxes:
    """Detections of a split. D counts them; sorted by image, and by falling score within an image."""

    image: NDArray[np.int64]
    """(D,) position of the image."""
    label: NDArray[np.int64]
    """(D,) 0-based class index."""
    boxes_xywh: NDArray[np.float64]
    """(D, 4) pixels of the image."""
    scores: NDArray[np.float64]
    """(D,) in [0, 1]."""
    query: NDArray[np.int64]
    """(D,) the query of the network that gave it; -1 if it is not known."""

    def __len__(self) -> int:
        return len(self.image)

    def take(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "FoundBoxes":
        """The detections that a mask or a list of positions keeps.

        Args:
            kept: (D,) mask, or positions in ascending order.
        """
        return FoundBoxes(
            image=self.image[kept],
            label=self.label[kept],
            boxes_xywh=self.boxes_xywh[kept],
            scores=self.scores[kept],
            query=self.query[kept],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitResults:
    """Ground truth and detections of a split. C counts classes, I images."""

    class_names: tuple[str, ...]
    """C names, by class index."""
    category_ids: tuple[int, ...]
    """C ids of the annotation file, by class index."""
    normal_class: int | None
    """Index of the class that marks a good surface; its boxes are no defects. None if there is none."""
    image_ids: tuple[int, ...]
    """I ids of the annotation file."""
    file_names: tuple[str, ...]
    """I names, relative to the image folder."""
    truth: TruthBoxes
    found: FoundBoxes

    @property
    def num_images(self) -> int:
        """I, images without boxes included."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    def with_found(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "SplitResults":
        """The same ground truth with some of the detections, see `FoundBoxes.take`."""
        return replace(self, found=self.found.take(kept))

    def is_defect(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which class indices are defects: all but the normal class."""
        return (
            np.ones(labels.shape, dtype=np.bool_)
            if self.normal_class is None
            else labels != self.normal_class
        )


def split_results(
    ground_truth: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    *,
    normal_class: str | None = None,
) -> SplitResults:
    """Arrange a COCO ground truth and COCO results as arrays.

    Args:
        ground_truth: COCO dict with `images`, `annotations` and `categories`; the order of the categories is
            that of the class indices. Any of them may be empty.
        predictions: COCO results: `image_id`, `category_id`, `bbox` (xywh in pixels), `score`, and `query`
            where it is known. May be empty.
        normal_class: Name of the class that marks a good surface.

    Raises:
        KeyError: If an image or a category is not in the ground truth; `compute_coco_metrics` says which.
    """
    class_names = tuple(str(category["name"]) for category in ground_truth["categories"])
    category_ids = tuple(int(category["id"]) for category in ground_truth["categories"])
    image_ids = tuple(int(image["id"]) for image in ground_truth["images"])
    images = {image_id: position for position, image_id in enumerate(image_ids)}
    labels = {category_id: index for index, category_id in enumerate(category_ids)}

    boxes = ground_truth["annotations"]
    owner = np.array([images[box["image_id"]] for box in boxes], dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    truth = TruthBoxes(
        image=owner[order],
        label=np.array([labels[box["category_id"]] for box in boxes], dtype=np.int64)[order],
        boxes_xywh=np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4)[order],
        is_crowd=np.array([bool(box.get("iscrowd", 0)) for box in boxes], dtype=np.bool_)[order],
    )
    scores = np.array([one["score"] for one in predictions], dtype=np.float64)
    owner = np.array([images[one["image_id"]] for one in predictions], dtype=np.int64)
    order = np.lexsort((-scores, owner))
    found = FoundBoxes(
        image=owner[order],
        label=np.array([labels[one["category_id"]] for one in predictions], dtype=np.int64)[order],
        boxes_xywh=np.array([one["bbox"] for one in predictions], dtype=np.float64).reshape(-1, 4)[order],
        scores=scores[order],
        query=np.array([one.get("query", -1) for one in predictions], dtype=np.int64)[order],
    )
    return SplitResults(
        class_names=class_names,
        category_ids=category_ids,
        normal_class=None if normal_class is None else class_names.index(normal_class),
        image_ids=image_ids,
        file_names=tuple(str(image.get("file_name", image["id"])) for image in ground_truth["images"]),
        truth=truth,
        found=found,
    )
