"""Anchors and the choice of queries."""

import math

import pytest
import torch

from deim.model.decoder.queries import compute_anchors, gather_cells, inverse_sigmoid, select_top_cells

CPU = torch.device("cpu")
# Measured on the official code: invalid cells at strides 8, 16 and 32 of square inputs.
INVALID = {
    320: (0, 0, 0),
    512: (252, 0, 0),
    640: (316, 0, 0),
    768: (380, 0, 0),
    800: (396, 196, 0),
    1024: (508, 252, 0),
    1280: (1264, 316, 0),
}


@pytest.mark.parametrize(("side", "invalid"), INVALID.items())
def test_number_of_invalid_cells_is_that_of_the_official_anchors(side, invalid):
    sizes = [(side // stride, side // stride) for stride in (8, 16, 32)]
    logits, valid = compute_anchors(sizes, device=CPU)
    cells = [height * width for height, width in sizes]
    assert logits.shape == (sum(cells), 4)
    assert [int((~part).sum()) for part in valid.split(cells)] == list(invalid)


def test_anchors_are_cell_centers_with_sides_that_double_by_level():
    sizes = [(2, 3), (1, 2)]
    logits, valid = compute_anchors(sizes, device=CPU)
    expected = [
        [(x + 0.5) / width, (y + 0.5) / height, 0.05 * 2**level, 0.05 * 2**level]
        for level, (height, width) in enumerate(sizes)
        for y in range(height)
        for x in range(width)
    ]
    assert torch.allclose(logits.sigmoid(), torch.tensor(expected), atol=1e-6)
    assert valid.all()


def test_invalid_anchors_are_infinite_and_the_others_finite():
    logits, valid = compute_anchors([(64, 8)], device=CPU)
    assert 0 < valid.sum() < len(valid)
    assert torch.equal(logits.isfinite().all(dim=1), valid[:, 0])
    assert (logits[~valid[:, 0]] == math.inf).all()


def test_best_cells_come_first_by_their_best_class():
    logits = torch.tensor([[[0.0, 1.0], [5.0, -9.0], [2.0, 3.0], [-1.0, -2.0]]])
    assert select_top_cells(logits, 3).tolist() == [[1, 2, 0]]


def test_fewer_cells_than_queries_are_all_taken():
    assert sorted(select_top_cells(torch.randn(1, 5, 2), 300)[0].tolist()) == [0, 1, 2, 3, 4]


def test_gathered_rows_are_those_of_the_indices():
    values = torch.arange(24.0).view(2, 4, 3)
    rows = gather_cells(values, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(rows, torch.stack([values[0, [3, 0]], values[1, [1, 1]]]))


def test_inverse_sigmoid_reverses_the_sigmoid_and_is_bounded():
    values = torch.tensor([0.001, 0.2, 0.5, 0.999])
    assert torch.allclose(inverse_sigmoid(values).sigmoid(), values, atol=1e-6)
    # ln(1e-5) = -11.513
    bounds = inverse_sigmoid(torch.tensor([-3.0, 0.0, 1.0, 7.0]))
    assert bounds.tolist() == pytest.approx([-11.513, -11.513, 11.513, 11.513], abs=1e-3)
