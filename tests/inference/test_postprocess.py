"""From raw output to detections in the original image."""

import pytest
import torch

from deim.boxes import to_original_pixels
from deim.inference.postprocess import select_detections
from deim.structures import Placement

SQUARE = Placement(orig_size_hw=(100, 200), span_hw=(100.0, 200.0), shift_yx=(0.0, 0.0))


def test_no_queries_give_no_detections():
    output = {"pred_logits": torch.zeros(1, 0, 3), "pred_boxes": torch.zeros(1, 0, 4)}
    (actual,) = select_detections(output, [SQUARE])
    assert actual.boxes_xyxy.shape == (0, 4)
    assert actual.scores.shape == actual.labels.shape == (0,)


def test_best_pairs_of_query_and_class_come_first_without_threshold():
    output = {
        "pred_logits": torch.tensor([[[2.0, -9.0], [1.0, 3.0]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.1, 0.2]]]),
    }
    (actual,) = select_detections(output, [SQUARE])
    assert actual.labels.tolist() == [1, 0, 0, 1]
    assert actual.scores.tolist() == pytest.approx(torch.tensor([3.0, 2, 1, -9]).sigmoid().tolist())
    big, small = [80.0, 30, 120, 70], [40.0, 40, 60, 60]
    assert torch.allclose(actual.boxes_xyxy, torch.tensor([small, big, small, big]), atol=1e-4)
    (first,) = select_detections(output, [SQUARE], max_detections=1)
    assert first.labels.tolist() == [1]


def test_boxes_outside_the_image_are_not_clipped():
    output = {"pred_logits": torch.zeros(1, 1, 1), "pred_boxes": torch.tensor([[[0.0, 1.0, 0.2, 0.2]]])}
    (actual,) = select_detections(output, [SQUARE])
    assert actual.boxes_xyxy[0].tolist() == pytest.approx([-20, 90, 20, 110], abs=1e-4)


def test_letterboxed_inputs_map_back_without_the_padding():
    # An image of 50 x 100 px in a square input that spans 100 x 100 px of it, with 25 px above and below.
    placement = Placement(orig_size_hw=(50, 100), span_hw=(100.0, 100.0), shift_yx=(-25.0, 0.0))
    boxes = to_original_pixels(torch.tensor([[0.0, 0.25, 1.0, 0.75]]), placement)
    assert boxes.tolist() == [[0.0, 0.0, 100.0, 50.0]]


def test_half_precision_outputs_give_float32_detections():
    output = {"pred_logits": torch.randn(1, 4, 2).half(), "pred_boxes": torch.rand(1, 4, 4)}
    (actual,) = select_detections(output, [SQUARE])
    assert actual.scores.dtype == actual.boxes_xyxy.dtype == torch.float32
