"""Ground truth and detections of a split as NumPy columns: their one form from the network to the report.

COCO dictionaries exist only in files, and inside `deim.metrics.coco` while the COCO evaluator runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deim.boxes import xywh_to_xyxy, xyxy_to_xywh
from deim.errors import DataError
from deim.structures import Detections

NUM_LISTED_IDS = 10
"""Unknown ids that a message lists."""
ROWS_AT_ONCE = 10_000
"""Rows that become Python objects at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruthTable:
    """Images, classes and boxes of a split: I images, C classes, G boxes. Boxes are sorted by image."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """C ids of the annotation file, by class index."""
    normal_class: int | None
    """Index of the class that marks a good surface; its boxes are no defects. None if there is none."""
    image_ids: tuple[int, ...]
    """I ids of the annotation file."""
    file_names: tuple[str, ...]
    """I names, relative to the image folder."""
    sizes_hw: NDArray[np.int64]
    """(I, 2) height and width in pixels; 0 if the file does not give them."""
    image: NDArray[np.int64]
    """(G,) position of the image."""
    label: NDArray[np.int64]
    """(G,) 0-based class index."""
    boxes_xywh: NDArray[np.float64]
    """(G, 4) pixels of the image."""
    area: NDArray[np.float64]
    """(G,) area in square pixels, by which COCO sorts boxes into small, medium and large."""
    is_crowd: NDArray[np.bool_]
    """(G,) true for regions of many objects: detections in them are ignored, and they are never missed."""

    def __len__(self) -> int:
        return len(self.image)

    @property
    def num_images(self) -> int:
        """I, images without boxes included."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def boxes_per_class(self) -> NDArray[np.int64]:
        """(C,) number of boxes by class index, crowd regions not counted."""
        return np.bincount(self.label[~self.is_crowd], minlength=self.num_classes)

    def is_defect(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which class indices are defects: all except the normal class."""
        if self.normal_class is None:
            return np.ones(labels.shape, dtype=np.bool_)
        return labels != self.normal_class

    @classmethod
    def from_coco(cls, coco: Mapping[str, Any], *, normal_class: str | None = None) -> "GroundTruthTable":
        """Build the table from a COCO dictionary.

        Args:
            coco: `images`, `annotations` and `categories`, each possibly empty; the order of the categories
                is that of the class indices. A missing `area` is width times height, a missing `iscrowd` 0.
            normal_class: Name of the class that marks a good surface.

        Raises:
            DataError: If an annotation names an unknown image or category.
        """
        images, categories, boxes = coco["images"], coco["categories"], coco["annotations"]
        class_names = tuple(str(category["name"]) for category in categories)
        image_ids = tuple(int(image["id"]) for image in images)
        category_ids = tuple(int(category["id"]) for category in categories)
        owner, label = _positions(boxes, image_ids, category_ids, where="ground truth")
        order = np.argsort(owner, kind="stable")
        boxes_xywh = np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4)
        area = [
            box.get("area", width * height)
            for box, (width, height) in zip(boxes, boxes_xywh[:, 2:].tolist(), strict=True)
        ]
        return cls(
            class_names=class_names,
            category_ids=category_ids,
            normal_class=None if normal_class is None else class_names.index(normal_class),
            image_ids=image_ids,
            file_names=tuple(str(image.get("file_name", image["id"])) for image in images),
            sizes_hw=np.array(
                [(image.get("height", 0), image.get("width", 0)) for image in images], dtype=np.int64
            ).reshape(-1, 2),
            image=owner[order],
            label=label[order],
            boxes_xywh=boxes_xywh[order],
            area=np.array(area, dtype=np.float64)[order],
            is_crowd=np.array([bool(box.get("iscrowd", 0)) for box in boxes], dtype=np.bool_)[order],
        )

    def to_coco(self) -> dict[str, Any]:
        """Return the COCO dictionary; annotations are numbered from 1."""
        columns = (self.image, self.label, self.boxes_xywh, self.area, self.is_crowd)
        return {
            "images": [
                {"id": image_id, "file_name": name, "height": height, "width": width}
                for image_id, name, (height, width) in zip(
                    self.image_ids, self.file_names, self.sizes_hw.tolist(), strict=True
                )
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": self.image_ids[image],
                    "category_id": self.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for number, (image, label, box, area, is_crowd) in enumerate(
                    zip(*(column.tolist() for column in columns), strict=True), start=1
                )
            ],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionTable:
    """D detections of a split, sorted by image and, within an image, by falling score."""

    image: NDArray[np.int64]
    """(D,) position of the image."""
    label: NDArray[np.int64]
    """(D,) 0-based class index."""
    boxes_xywh: NDArray[np.float64]
    """(D, 4) pixels of the image."""
    score: NDArray[np.float64]
    """(D,) in [0, 1]."""
    query: NDArray[np.int64]
    """(D,) query of the network that predicted the detection; -1 if it is not known."""

    def __len__(self) -> int:
        return len(self.image)

    def take(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "DetectionTable":
        """Return the detections that a (D,) mask, or a list of positions in ascending order, selects."""
        if kept.dtype == np.bool_ and kept.all():
            return self
        return DetectionTable(
            image=self.image[kept],
            label=self.label[kept],
            boxes_xywh=self.boxes_xywh[kept],
            score=self.score[kept],
            query=self.query[kept],
        )

    def rows_of_image(self, image: int) -> slice:
        """Return the range of rows that an image has, given its position."""
        return slice(*np.searchsorted(self.image, (image, image + 1)).tolist())

    def detections_of_image(self, image: int) -> Detections:
        """Return the detections of one image, given its position, as tensors; see `Detections`."""
        rows = self.rows_of_image(image)
        return Detections(
            boxes_xyxy=xywh_to_xyxy(torch.from_numpy(self.boxes_xywh[rows])),
            scores=torch.from_numpy(self.score[rows]),
            labels=torch.from_numpy(self.label[rows]),
            queries=torch.from_numpy(self.query[rows]),
        )

    @classmethod
    def from_detections(cls, detections: Mapping[int, Detections]) -> "DetectionTable":
        """Build the table from the detections of some images, given by the position of the image."""
        images = sorted(detections)
        items = [detections[image] for image in images]
        counts = [len(item.scores) for item in items]

        def column(tensors: list[torch.Tensor], shape: tuple[int, ...]) -> NDArray[Any]:
            return torch.cat(tensors).numpy() if tensors else np.zeros(shape)

        # Boxes become xywh in float32 first: the same numbers as in a file of COCO results.
        boxes = column([xyxy_to_xywh(item.boxes_xyxy) for item in items], (0, 4))
        return cls(
            image=np.repeat(np.array(images, dtype=np.int64), counts),
            label=column([item.labels for item in items], (0,)).astype(np.int64),
            boxes_xywh=boxes.astype(np.float64),
            score=column([item.scores for item in items], (0,)).astype(np.float64),
            query=column([item.queries for item in items], (0,)).astype(np.int64),
        )

    @classmethod
    def concatenate(cls, tables: Sequence["DetectionTable"]) -> "DetectionTable":
        """Join the tables of different images of one split; at least one."""
        order = np.argsort(np.concatenate([table.image for table in tables]), kind="stable")
        names = ("image", "label", "boxes_xywh", "score", "query")
        return cls(
            **{name: np.concatenate([getattr(table, name) for table in tables])[order] for name in names}
        )

    @classmethod
    def from_coco(
        cls, results: Sequence[Mapping[str, Any]], ground_truth: GroundTruthTable
    ) -> "DetectionTable":
        """Build the table from COCO results.

        Args:
            results: `image_id`, `category_id`, `bbox` (xywh in pixels), `score`, and optionally `query`.
            ground_truth: Split that the ids belong to.

        Raises:
            DataError: If a result names an image or category that the ground truth does not have.
        """
        owner, label = _positions(
            results, ground_truth.image_ids, ground_truth.category_ids, where="predictions"
        )
        score = np.array([entry["score"] for entry in results], dtype=np.float64)
        order = np.lexsort((-score, owner))
        boxes = np.array([entry["bbox"] for entry in results], dtype=np.float64).reshape(-1, 4)
        query = np.array([entry.get("query", -1) for entry in results], dtype=np.int64)
        return cls(
            image=owner[order],
            label=label[order],
            boxes_xywh=boxes[order],
            score=score[order],
            query=query[order],
        )

    def to_coco(self, image_ids: Sequence[int], category_ids: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the detections as COCO results, each with its `query`.

        Args:
            image_ids: Id of each image, by position.
            category_ids: Id of each class, by index.
        """
        columns = (self.image, self.label, self.boxes_xywh, self.score, self.query)
        for first in range(0, len(self), ROWS_AT_ONCE):
            rows = (column[first : first + ROWS_AT_ONCE].tolist() for column in columns)
            for image, label, box, score, query in zip(*rows, strict=True):
                yield {
                    "image_id": image_ids[image],
                    "category_id": category_ids[label],
                    "bbox": box,
                    "score": score,
                    "query": query,
                }


def _positions(
    entries: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    where: str,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the position of the image and of the category of each entry."""
    columns, problems = [], []
    for key, kind, ids in (("image_id", "images", image_ids), ("category_id", "categories", category_ids)):
        position = {value: index for index, value in enumerate(ids)}
        unknown = sorted({entry[key] for entry in entries} - position.keys())
        if unknown:
            listed = ", ".join(map(str, unknown[:NUM_LISTED_IDS]))
            more = f" and {len(unknown) - NUM_LISTED_IDS} more" if len(unknown) > NUM_LISTED_IDS else ""
            problems.append(
                f"{where}: unknown {key}, got {listed}{more}. Every {key} must be among the {kind}"
                " of the ground truth. Use the annotation file of the images that were predicted."
            )
            continue
        columns.append(np.array([position[entry[key]] for entry in entries], dtype=np.int64))
    if problems:
        raise DataError("\n".join(problems))
    image, category = columns
    return image, category
