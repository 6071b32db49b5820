"""Ground truth and detections of a split as NumPy columns: their one form from the network to the report.

COCO dictionaries exist only in files, and inside `deim.metrics.coco` while the COCO evaluator runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from deim.boxes import xywh_to_xyxy, xyxy_to_xywh
from deim.files import raise_listed
from deim.structures import Detections

NUM_LISTED_IDS = 10
"""Unknown ids that a message lists."""
ROWS_AT_ONCE = 10_000
"""Rows that become Python objects at once."""


class CocoResult(TypedDict):
    """A detection in a file of COCO results."""

    image_id: int
    category_id: int
    bbox: list[float]
    """xywh in pixels of the image, 4 numbers."""
    score: float
    query: NotRequired[int]
    """Query of the network that predicted the detection."""


class CocoImage(TypedDict):
    """An image in a COCO file."""

    id: int
    file_name: NotRequired[str]
    height: NotRequired[int]
    width: NotRequired[int]


class CocoBox(TypedDict):
    """An annotation in a COCO file."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """xywh in pixels of the image."""
    area: NotRequired[float]
    iscrowd: NotRequired[int]


class CocoCategory(TypedDict):
    """A class in a COCO file."""

    id: int
    name: str


class CocoFile(TypedDict):
    """A COCO file, as far as `GroundTruthTable` reads it."""

    images: list[CocoImage]
    annotations: list[CocoBox]
    categories: list[CocoCategory]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruthTable:
    """Images, classes and boxes of a split: I images, C classes, G boxes."""

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
    """(G,) position of the image, ascending."""
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
        owner, label = _positions(
            [box["image_id"] for box in boxes],
            [box["category_id"] for box in boxes],
            image_ids,
            category_ids,
            where="ground truth",
        )
        order = np.argsort(owner, kind="stable")
        boxes_xywh = _box_column([box["bbox"] for box in boxes])
        areas = zip(boxes, boxes_xywh[:, 2:].prod(axis=1).tolist(), strict=True)
        area = np.array([box.get("area", product) for box, product in areas], dtype=np.float64)
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
            area=area[order],
            is_crowd=np.array([bool(box.get("iscrowd", 0)) for box in boxes], dtype=np.bool_)[order],
        )

    def to_coco(self) -> dict[str, Any]:
        """Return the COCO dictionary; annotations are numbered from 1."""
        images = zip(self.image_ids, self.file_names, self.sizes_hw.tolist(), strict=True)
        columns = (self.image, self.label, self.boxes_xywh, self.area, self.is_crowd)
        boxes = zip(*(column.tolist() for column in columns), strict=True)
        return {
            "images": [
                {"id": image_id, "file_name": name, "height": height, "width": width}
                for image_id, name, (height, width) in images
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
                for number, (image, label, box, area, is_crowd) in enumerate(boxes, start=1)
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
        """Return the detections that a (D,) mask or a list of positions selects."""
        return DetectionTable(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def rows_of_image(self, image: int) -> slice:
        """Return the range of rows that an image has, given its position."""
        return slice(*np.searchsorted(self.image, (image, image + 1)).tolist())

    def detections_of_image(self, image: int) -> Detections:
        """Return the detections of one image, given its position, as tensors."""
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
        joined = cls(
            **{
                field.name: np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(cls)
            }
        )
        return joined.take(np.argsort(joined.image, kind="stable"))

    @classmethod
    def from_coco(cls, results: Sequence[CocoResult], ground_truth: GroundTruthTable) -> "DetectionTable":
        """Build the table from COCO results of a split.

        Raises:
            DataError: If a result names an image or category that the ground truth does not have.
        """
        owner, label = _positions(
            [entry["image_id"] for entry in results],
            [entry["category_id"] for entry in results],
            ground_truth.image_ids,
            ground_truth.category_ids,
            where="predictions",
        )
        unsorted = cls(
            image=owner,
            label=label,
            boxes_xywh=_box_column([entry["bbox"] for entry in results]),
            score=np.array([entry["score"] for entry in results], dtype=np.float64),
            query=np.array([entry.get("query", -1) for entry in results], dtype=np.int64),
        )
        return unsorted.take(np.lexsort((-unsorted.score, owner)))

    def to_coco(self, image_ids: Sequence[int], category_ids: Sequence[int]) -> Iterator[CocoResult]:
        """Yield the detections as COCO results, by the ids of all images and of all classes."""
        columns = (self.image, self.label, self.boxes_xywh, self.score, self.query)
        for first in range(0, len(self), ROWS_AT_ONCE):
            rows = (column[first : first + ROWS_AT_ONCE].tolist() for column in columns)
            for image, label, box, score, query in zip(*rows, strict=True):
                yield CocoResult(
                    image_id=image_ids[image],
                    category_id=category_ids[label],
                    bbox=box,
                    score=score,
                    query=query,
                )


def _box_column(boxes: Sequence[Any]) -> NDArray[np.float64]:
    """Return (N, 4) of N boxes; a ValueError if one has another length."""
    return np.array(boxes, dtype=np.float64).reshape(len(boxes), 4)


def _positions(
    given_image_ids: Sequence[int],
    given_category_ids: Sequence[int],
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    *,
    where: str,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of given ids among those of the ground truth."""
    columns, problems = [], []
    for key, kind, given, ids in (
        ("image_id", "images", given_image_ids, image_ids),
        ("category_id", "categories", given_category_ids, category_ids),
    ):
        position = {value: index for index, value in enumerate(ids)}
        unknown = sorted(set(given) - position.keys())
        if unknown:
            listed = ", ".join(map(str, unknown[:NUM_LISTED_IDS]))
            more = f" and {len(unknown) - NUM_LISTED_IDS} more" if len(unknown) > NUM_LISTED_IDS else ""
            problems.append(
                f"{where}: unknown {key}, got {listed}{more}. Every {key} must be among the {kind}"
                " of the ground truth. Use the annotation file of the images that were predicted."
            )
        columns.append(np.array([position.get(value, -1) for value in given], dtype=np.int64))
    raise_listed(problems)
    image, category = columns
    return image, category
