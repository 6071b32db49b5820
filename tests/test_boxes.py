"""Box arithmetic: hand-made values, properties, and torchvision as a second opinion."""

import pytest
import torch
from torch import Tensor
from torchvision import ops

from deim.boxes import (
    box_area,
    clip_boxes,
    cxcywh_to_xyxy,
    generalized_iou,
    iou,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

UNIT = torch.tensor([0.0, 0.0, 1.0, 1.0])


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator)
    return torch.cat([low, low + 0.05 + 0.5 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.mark.parametrize("convert", [cxcywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_conversions_of_no_boxes_keep_their_shape(convert, shape):
    assert convert(torch.zeros(shape)).shape == shape


def test_areas_and_overlaps_of_no_boxes_are_empty():
    nothing, some = torch.zeros(0, 4), random_boxes(3, 0)
    assert box_area(nothing).shape == (0,)
    assert clip_boxes(nothing, (2, 3)).shape == (0, 4)
    for overlap in (iou, generalized_iou):
        assert overlap(nothing, nothing).shape == (0,)
        assert overlap(nothing[:, None], some[None]).shape == (0, 3)


def test_conversions_of_a_box_by_hand():
    assert cxcywh_to_xyxy(torch.tensor([5.0, 4.0, 4.0, 2.0])).tolist() == [3, 3, 7, 5]
    assert xyxy_to_cxcywh(torch.tensor([3.0, 3.0, 7.0, 5.0])).tolist() == [5, 4, 4, 2]
    assert xyxy_to_xywh(torch.tensor([3.0, 3.0, 7.0, 5.0])).tolist() == [3, 3, 4, 2]


def test_conversions_reverse_each_other_and_agree_with_torchvision():
    boxes_xyxy = random_boxes(50, 1)
    boxes = xyxy_to_cxcywh(boxes_xyxy)
    assert torch.allclose(cxcywh_to_xyxy(boxes), boxes_xyxy, atol=1e-6)
    assert torch.allclose(boxes, ops.box_convert(boxes_xyxy, "xyxy", "cxcywh"), atol=1e-6)
    assert torch.allclose(xyxy_to_xywh(boxes_xyxy), ops.box_convert(boxes_xyxy, "xyxy", "xywh"), atol=1e-6)


def test_a_negative_side_counts_as_zero():
    assert cxcywh_to_xyxy(torch.tensor([5.0, 4.0, -4.0, 2.0])).tolist() == [5, 3, 5, 5]


def test_area_by_hand():
    assert box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.0, 5.0]])).tolist() == [6, 0]


def test_clipped_boxes_lie_in_the_image_whose_size_is_height_first():
    boxes = torch.tensor([[-5.0, -1.0, 30.0, 30.0], [1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 70.0, 80.0]])
    assert clip_boxes(boxes, (10, 20)).tolist() == [[0, 0, 20, 10], [1, 2, 3, 4], [20, 10, 20, 10]]
    assert boxes[0, 0] == -5


@pytest.mark.parametrize(
    ("other", "expected_iou", "expected_giou"),
    [
        ([0.0, 0.0, 1.0, 1.0], 1.0, 1.0),
        ([0.0, 0.0, 0.5, 1.0], 0.5, 0.5),
        # Overlap 1/4, union 7/4, hull 9/4.
        ([0.5, 0.5, 1.5, 1.5], 1 / 7, 1 / 7 - 2 / 9),
        # Apart: union 2, hull 3.
        ([2.0, 0.0, 3.0, 1.0], 0.0, -1 / 3),
        # They share an edge.
        ([1.0, 0.0, 2.0, 1.0], 0.0, 0.0),
    ],
)
def test_overlaps_with_the_unit_square_by_hand(other, expected_iou, expected_giou):
    other = torch.tensor(other)
    assert iou(UNIT, other).item() == pytest.approx(expected_iou, abs=1e-6)
    assert generalized_iou(UNIT, other).item() == pytest.approx(expected_giou, abs=1e-6)


def test_pairwise_overlaps_equal_those_of_torchvision():
    a, b = random_boxes(30, 2), random_boxes(20, 3)
    assert torch.allclose(iou(a[:, None], b[None]), ops.box_iou(a, b), atol=1e-6)
    assert torch.allclose(generalized_iou(a[:, None], b[None]), ops.generalized_box_iou(a, b), atol=1e-6)


@pytest.mark.parametrize("overlap", [iou, generalized_iou])
def test_overlaps_are_symmetric_bounded_and_blind_to_place_and_scale(overlap):
    a, b = random_boxes(200, 4), random_boxes(200, 5)
    actual = overlap(a, b)
    assert torch.allclose(actual, overlap(b, a), atol=1e-6)
    assert actual.max() <= 1 + 1e-6
    assert actual.min() >= (0 if overlap is iou else -1)
    assert torch.allclose(actual, overlap(3 * a + 2, 3 * b + 2), atol=1e-4)
    assert torch.allclose(overlap(a, a), torch.ones(200), atol=1e-6)


def test_generalized_overlap_is_never_above_the_plain_one():
    a, b = random_boxes(200, 6), random_boxes(200, 7)
    assert (generalized_iou(a, b) <= iou(a, b) + 1e-6).all()


@pytest.mark.parametrize("overlap", [iou, generalized_iou])
def test_boxes_without_area_give_finite_overlaps_and_gradients(overlap):
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    actual = overlap(point, point.detach())
    assert actual.item() == pytest.approx(0, abs=1e-6)
    overlap(point, UNIT[None]).sum().backward()
    assert point.grad.isfinite().all()
