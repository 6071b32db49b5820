"""Images whose boxes are filled rectangles of a color that stands for their label."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deim.data.augment.transform import Sample


def some(number: int, *, of: int) -> list[Any]:
    """Seeds for `parametrize`: the first ones in each run, all of them among the slow tests."""
    return [seed if seed < number else pytest.param(seed, marks=pytest.mark.slow) for seed in range(of)]


COLORS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
GRAY = 128


def colored_sample(
    boxes: list[tuple[int, int, int, int]], size_hw: tuple[int, int], first: int = 0
) -> Sample:
    """Boxes (xyxy, apart from one another) on gray; their labels count up from `first`."""
    image = torch.full((3, *size_hw), GRAY, dtype=torch.uint8)
    labels = [(first + number) % len(COLORS) for number in range(len(boxes))]
    for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
        image[:, top:bottom, left:right] = COLORS[label][:, None, None]
    return Sample(
        image=image,
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def random_colored_sample(seed: int, size_hw: tuple[int, int] | None = None, num_boxes: int = 2) -> Sample:
    """Up to three boxes of different labels, one in each third of the width."""
    rng = np.random.default_rng([seed, 77])
    height, width = size_hw or (int(rng.integers(60, 140)), int(rng.integers(60, 140)))
    third = width // 3
    boxes = []
    for number in range(num_boxes):
        box_width, box_height = int(rng.integers(8, third)), int(rng.integers(8, height))
        left = number * third + int(rng.integers(0, third - box_width + 1))
        top = int(rng.integers(0, height - box_height + 1))
        boxes.append((left, top, left + box_width, top + box_height))
    return colored_sample(boxes, (height, width), first=seed % len(COLORS))


def shows(image: Tensor, label: int, threshold: float = 60) -> Tensor:
    """(H, W) bool: pixels nearer to the color of a label than `threshold` in each channel."""
    return ((image.float() - COLORS[label].float()[:, None, None]).abs() < threshold).all(dim=0)


def assert_boxes_inside(sample: Sample) -> None:
    height, width = sample.image.shape[-2:]
    boxes = sample.boxes_xyxy
    assert boxes.shape == (len(sample.labels), 4)
    assert boxes.dtype == torch.float32
    assert sample.labels.dtype == torch.int64
    assert sample.image.dtype == torch.uint8
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    torch.testing.assert_close(sample.area, (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1))


def assert_boxes_frame_their_color(sample: Sample, tolerance: float = 2.0) -> None:
    """Each label occurs once, and its box reaches just as far as the pixels of its color."""
    assert len(set(sample.labels.tolist())) == len(sample.labels)
    for box, label in zip(sample.boxes_xyxy, sample.labels.tolist(), strict=True):
        rows, columns = shows(sample.image, label).nonzero().unbind(-1)
        assert len(rows)
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        torch.testing.assert_close(box, seen, atol=tolerance, rtol=0)


def same(first: Sample, second: Sample) -> bool:
    return all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in ("image", "boxes_xyxy", "labels")
    )
