"""Boxes as distributions of edge distances."""

import math

import pytest
import torch

from deim.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from deim.model.decoder.distribution import (
    boxes_to_bins,
    compute_bin_values,
    distances_to_boxes,
    expected_distances,
)

UP, REG_SCALE = torch.tensor([0.5]), torch.tensor([4.0])


@pytest.fixture
def bin_values():
    return compute_bin_values(32, UP, REG_SCALE)


def test_bin_values_are_those_of_the_specification(bin_values):
    # a = 0.5 · 4 = 2, s = 3^(1/15) = 1.0759896.
    step = 3 ** (1 / 15)
    assert step == pytest.approx(1.0759896, abs=1e-7)
    positive = [step**j - 1 for j in range(1, 16)] + [4.0]
    golden = [-value for value in reversed(positive)] + [0.0] + positive
    assert bin_values.tolist() == pytest.approx(golden, abs=1e-6)
    assert [bin_values[n].item() for n in (0, 1, 16, 31, 32)] == pytest.approx([-4, -2, 0, 2, 4], abs=1e-6)


@pytest.mark.parametrize("reg_max", [8, 16, 32])
def test_bin_values_ascend_and_are_odd_about_the_middle(reg_max):
    values = compute_bin_values(reg_max, UP, REG_SCALE)
    assert values.shape == (reg_max + 1,)
    assert (values.diff() > 0).all()
    assert torch.equal(values, -values.flip(0))


def test_integer_reg_scale_of_official_files_gives_the_same_bins(bin_values):
    assert torch.equal(compute_bin_values(32, UP, torch.tensor([4])), bin_values)


def test_no_boxes_give_empty_results(bin_values):
    nothing = torch.zeros(0, 4)
    left, weight = boxes_to_bins(nothing, nothing, bin_values, REG_SCALE)
    assert left.shape == weight.shape == (0, 4)
    assert distances_to_boxes(nothing, nothing, REG_SCALE).shape == (0, 4)
    assert expected_distances(torch.zeros(0, 132), bin_values).shape == (0, 4)


def test_distance_zero_gives_the_reference_box():
    ref = torch.tensor([[0.5, 0.4, 0.2, 0.1], [0.1, 0.9, 0.3, 0.05]])
    assert torch.allclose(distances_to_boxes(ref, torch.zeros(2, 4), REG_SCALE), ref, atol=1e-7)


def test_each_distance_moves_its_own_edge_outwards():
    ref = torch.tensor([0.5, 0.5, 0.4, 0.2])
    for edge, (sign, side) in enumerate([(-1, 0.4), (-1, 0.2), (1, 0.4), (1, 0.2)]):
        distances = torch.zeros(4)
        distances[edge] = 1.0
        moved = cxcywh_to_xyxy(distances_to_boxes(ref, distances, REG_SCALE)) - cxcywh_to_xyxy(ref)
        expected = torch.zeros(4)
        expected[edge] = sign * side / 4
        assert torch.allclose(moved, expected, atol=1e-6)


def test_encoding_reverses_decoding(bin_values):
    generator = torch.Generator().manual_seed(0)
    ref = torch.rand(200, 4, generator=generator) * 0.5 + 0.2
    # From -1.9, half a side, where the box would turn inside out, to the outermost bin.
    distances = torch.rand(200, 4, generator=generator) * 5.9 - 1.9
    boxes_xyxy = cxcywh_to_xyxy(distances_to_boxes(ref, distances, REG_SCALE))
    left, weight = boxes_to_bins(ref, boxes_xyxy, bin_values, REG_SCALE)
    actual = bin_values[left] * (1 - weight) + bin_values[left + 1] * weight
    assert torch.allclose(actual, distances, atol=2e-5)
    assert left.min() >= 0
    assert left.max() <= 31
    assert (bin_values[left] <= distances + 1e-5).all()
    assert (distances <= bin_values[left + 1] + 1e-5).all()


def test_weights_of_the_two_bins_as_a_distribution_decode_to_the_true_box(bin_values):
    ref = torch.tensor([[0.5, 0.5, 0.2, 0.3]])
    true_xyxy = torch.tensor([[0.37, 0.36, 0.63, 0.61]])
    left, weight = boxes_to_bins(ref, true_xyxy, bin_values, REG_SCALE)
    probabilities = torch.zeros(1, 4, 33)
    probabilities.scatter_(-1, left[..., None], (1 - weight)[..., None])
    probabilities.scatter_add_(-1, left[..., None] + 1, weight[..., None])
    distances = expected_distances(probabilities.clamp(min=1e-30).log().flatten(1), bin_values)
    boxes = distances_to_boxes(ref, distances, REG_SCALE)
    assert torch.allclose(boxes, xyxy_to_cxcywh(true_xyxy), atol=1e-5)


def test_distances_beyond_the_outermost_bins_fall_on_them(bin_values):
    ref = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    # Left and top edge 0.5 outside, that is 20 units beyond; right and bottom edge as far inside.
    far = torch.tensor([[-0.05, -0.05, 0.05, 0.05]])
    left, weight = boxes_to_bins(ref, far, bin_values, REG_SCALE)
    assert left.tolist() == [[31, 31, 0, 0]]
    assert weight.tolist() == [[1, 1, 0, 0]]


def test_a_distance_on_a_bin_belongs_to_that_bin_alone(bin_values):
    # Sides of 1/4 and reg_scale 4 are exact in floating point, and so are the distances 0 and ±4.
    ref = torch.tensor([[0.5, 0.5, 0.25, 0.25]])
    left, weight = boxes_to_bins(ref, cxcywh_to_xyxy(ref), bin_values, REG_SCALE)
    assert (left + weight).tolist() == [[16, 16, 16, 16]]
    widest = cxcywh_to_xyxy(distances_to_boxes(ref, torch.full((1, 4), 4.0), REG_SCALE))
    left, weight = boxes_to_bins(ref, widest, bin_values, REG_SCALE)
    assert (left + weight).tolist() == [[32, 32, 32, 32]]


def test_degenerate_reference_boxes_give_finite_targets(bin_values):
    ref = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    left, weight = boxes_to_bins(ref, torch.tensor([[0.4, 0.4, 0.6, 0.6]]), bin_values, REG_SCALE)
    assert left.tolist() == [[31] * 4]
    assert weight.tolist() == [[1.0] * 4]


def test_expected_distance_is_the_mean_of_the_bins(bin_values):
    one_hot = torch.full((4, 33), -math.inf)
    bins = [0, 5, 16, 32]
    one_hot[range(4), bins] = 0.0
    actual = expected_distances(one_hot.flatten(), bin_values)
    assert actual.tolist() == pytest.approx([bin_values[n].item() for n in bins])
    assert expected_distances(torch.zeros(132), bin_values).tolist() == pytest.approx([0] * 4, abs=1e-6)
