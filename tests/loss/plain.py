"""Boxes and probabilities in plain Python numbers, to check the tensor code against."""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def to_xyxy(cxcywh: Numbers) -> list[float]:
    cx, cy, w, h = cxcywh
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def plain_area(xyxy: Numbers) -> float:
    return (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])


def plain_iou(a: Numbers, b: Numbers) -> float:
    """Of two xyxy boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    return overlap / (plain_area(a) + plain_area(b) - overlap)


def plain_giou(a: Numbers, b: Numbers) -> float:
    """Of two xyxy boxes."""
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = plain_iou(a, b)
    union = (plain_area(a) + plain_area(b)) / (1 + iou)
    return iou - (hull - union) / hull


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: Numbers) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]
