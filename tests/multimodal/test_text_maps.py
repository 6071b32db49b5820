"""Text maps: the very numbers of head and detector, and heat in the boxes of the queries alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deim.boxes import to_input_fractions, xyxy_to_cxcywh
from deim.data.images.input_format import InputFormat
from deim.data.images.resize import fit_to_input
from deim.structures import Placement
from multimodal.confused_pairs import ConfusedPair, confused_pairs, tracked_pair
from multimodal.text_maps import TextMap, compute_heat, compute_text_map
from multimodal.wrapper import DetectorOutputs, TextFusedDetector
from tests.model.tiny import random_images
from tests.multimodal.fused import open_gates, text_bank_of, tiny_fused


def placement_of(
    orig_size_hw: tuple[int, int], resize: Any, size_hw: tuple[int, int] = (64, 64)
) -> Placement:
    return fit_to_input(
        torch.zeros(3, *orig_size_hw, dtype=torch.uint8), InputFormat(size_hw=size_hw, resize=resize)
    )[1]


def map_of_boxes(model: TextFusedDetector, boxes_xyxy: Tensor, placement: Placement, monkeypatch) -> TextMap:
    """The map of an image in which the detector finds just these boxes, in pixels of the original."""
    fractions = to_input_fractions(boxes_xyxy, placement)
    return map_of_fractions(model, xyxy_to_cxcywh(fractions), placement, monkeypatch)


def map_of_fractions(
    model: TextFusedDetector, boxes_cxcywh: Tensor, placement: Placement, monkeypatch
) -> TextMap:
    generator = torch.Generator().manual_seed(1)
    actual = DetectorOutputs(
        query_features=torch.randn(1, len(boxes_cxcywh), 32, generator=generator),
        pred_logits=torch.randn(1, len(boxes_cxcywh), 3, generator=generator),
        pred_boxes=boxes_cxcywh[None],
    )
    monkeypatch.setattr(model, "run_detector", lambda images: actual)
    return compute_text_map(model, torch.zeros(3, 64, 64), placement)


def inside(box: tuple[int, int, int, int], size_hw: tuple[int, int]) -> Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(size_hw, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("training", [False, True])
def test_values_are_those_of_head_and_detector(training):
    model = tiny_fused().train(training)
    open_gates(model.head)
    images = random_images(1, 64, 96)
    placement = placement_of((50, 80), "stretch", (64, 96))
    text_map = compute_text_map(model, images[0], placement)
    with torch.no_grad():
        alone = model.detector(images, with_queries=True)
        cosines = model.head.cosines(alone["query_features"])[0]
        fused = model(images)["pred_logits"][0].sigmoid()
    detector_scores, map_cosines, fused_scores = text_map.responses
    assert torch.equal(detector_scores, alone["pred_logits"][0].sigmoid())
    assert torch.equal(map_cosines, cosines)
    assert torch.equal(fused_scores, fused)
    assert not torch.equal(fused_scores, detector_scores)
    scores = model(images)["text_scores"].class_logits[0] / model.head.scale()
    torch.testing.assert_close(map_cosines, scores.detach(), atol=1e-5, rtol=0)
    assert model.training == training


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("orig_size_hw", [(40, 100), (100, 40), (33, 77)])
def test_heat_of_one_query_lies_exactly_in_its_box(resize, orig_size_hw, monkeypatch):
    box = (7, 12, 26, 31)
    placement = placement_of(orig_size_hw, resize)
    text_map = map_of_boxes(tiny_fused(), torch.tensor([box]).float(), placement, monkeypatch)
    torch.testing.assert_close(text_map.boxes_xyxy, torch.tensor([box]).float(), atol=1e-3, rtol=0)
    for values in text_map.responses:
        heat = compute_heat(text_map.boxes_xyxy, values[:, 1], orig_size_hw)
        assert torch.equal(heat, inside(box, orig_size_hw) * values[0, 1])


def test_a_query_in_the_padding_alone_leaves_no_heat(monkeypatch):
    placement = placement_of((20, 100), "letterbox")
    in_padding = torch.tensor([[0.5, 0.1, 0.4, 0.1]])
    text_map = map_of_fractions(tiny_fused(), in_padding, placement, monkeypatch)
    heat = compute_heat(text_map.boxes_xyxy, torch.ones(1), (20, 100))
    assert torch.equal(heat, torch.zeros(20, 100))


def test_boxes_beyond_the_image_are_clipped_to_it(monkeypatch):
    placement = placement_of((20, 100), "stretch")
    text_map = map_of_fractions(tiny_fused(), torch.tensor([[0.0, 0.5, 0.4, 2.0]]), placement, monkeypatch)
    torch.testing.assert_close(text_map.boxes_xyxy, torch.tensor([[0.0, 0.0, 20.0, 20.0]]))


def test_a_pixel_takes_the_highest_of_the_queries_over_it():
    generator = torch.Generator().manual_seed(0)
    size_hw = (9, 14)
    first, second = (torch.randint(0, 9, (12, 2), generator=generator) for _ in range(2))
    boxes = torch.cat([torch.minimum(first, second), torch.maximum(first, second) + 1], dim=1)
    values = torch.rand(12, generator=generator) * 2 - 1
    masks = torch.stack([inside(tuple(box), size_hw) for box in boxes.tolist()])
    highest = torch.where(masks, values[:, None, None], -2.0).amax(dim=0)
    expected = torch.where(masks.any(dim=0), highest, 0.0)
    assert torch.equal(compute_heat(boxes.float(), values, size_hw), expected)
    assert bool((expected < 0).any()), "a pixel below negative values alone stays negative"


def test_where_no_query_is_there_is_no_heat():
    heat = compute_heat(torch.zeros(0, 4), torch.zeros(0), (5, 7))
    assert torch.equal(heat, torch.zeros(5, 7))
    heat = compute_heat(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([-0.5]), (5, 7))
    assert bool(heat.isfinite().all())
    assert heat[4, 6] == 0


@pytest.mark.parametrize(
    ("box", "pixel"), [((2.6, 1.0, 2.9, 2.0), (2, 1, 3, 2)), ((6.9, 4.8, 7.0, 5.0), (6, 4, 7, 5))]
)
def test_a_box_thinner_than_a_pixel_keeps_one(box, pixel):
    heat = compute_heat(torch.tensor([box]), torch.ones(1), (5, 7))
    assert torch.equal(heat, inside(pixel, (5, 7)).float())


def test_confused_pairs_are_listed_by_their_share():
    counts = torch.tensor([[9, 1, 0], [0, 0, 0], [3, 1, 6]])
    actual = confused_pairs(counts, min_share=0.1)
    assert [(pair.label, pair.predicted_as, round(pair.share, 3)) for pair in actual] == [(2, 0, 0.3)]
    assert len(confused_pairs(counts, min_share=0.0)) == 3


def test_tracked_pair_are_the_most_confused():
    pairs = [
        ConfusedPair(label=0, predicted_as=1, share=0.1),
        ConfusedPair(label=2, predicted_as=0, share=0.3),
    ]
    assert tracked_pair(pairs, text_bank_of(torch.eye(8)[:3, None].expand(-1, 3, -1), "abc")) == (2, 0)


def test_tracked_pair_without_confusion_are_those_of_the_nearest_texts():
    directions = torch.eye(8)[:4]
    directions[3] = directions[1] + 0.5 * directions[3]
    assert tracked_pair((), text_bank_of(directions[:, None].expand(-1, 3, -1), "abcd")) == (1, 3)


@pytest.mark.parametrize(("names", "expected"), [(("only",), (0,)), (("one", "two"), (0, 1))])
def test_tracked_pair_of_few_classes_are_all(names, expected):
    bank = text_bank_of(torch.eye(8)[: len(names), None].expand(-1, 3, -1), names)
    assert tracked_pair((), bank) == expected
