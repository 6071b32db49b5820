"""Axial rotary positions against the formula of the specification, section 1.1."""

import math

import pytest
import torch

from deim.model.backbone.transformer import AxialRope, rotate

HEAD_DIM, PREFIX = 64, 5


@pytest.fixture
def rope():
    return AxialRope(HEAD_DIM)


def test_periods_are_those_of_the_specification(rope):
    assert rope.periods.shape == (16,)
    assert rope.periods[[0, 1, 15]].tolist() == pytest.approx([1, 1.3335, 74.9894], abs=1e-4)
    assert "periods" in rope.state_dict()


@pytest.mark.parametrize("scale", [None, 1.7])
def test_table_equals_the_formula_on_a_grid_that_is_not_square(rope, scale):
    height, width = 3, 5
    cos, sin = rope((height, width), scale=None if scale is None else torch.tensor(scale))
    angles = []
    for row in range(height):
        for column in range(width):
            y = (2 * (row + 0.5) / height - 1) * (scale or 1)
            x = (2 * (column + 0.5) / width - 1) * (scale or 1)
            half = [2 * math.pi * v / 100 ** (j / 16) for v in (y, x) for j in range(16)]
            angles.append(half + half)
    expected = torch.tensor(angles)
    assert torch.allclose(cos, expected.cos(), atol=2e-6)
    assert torch.allclose(sin, expected.sin(), atol=2e-6)


def test_rotation_turns_channel_pairs_half_a_head_apart(rope):
    tokens = torch.randn(2, 3, PREFIX + 6, HEAD_DIM)
    cos, sin = rope((2, 3))
    rotated = rotate(tokens, (cos, sin), num_prefix=PREFIX)
    for patch in range(6):
        for i in range(32):
            a, b = tokens[..., PREFIX + patch, i], tokens[..., PREFIX + patch, i + 32]
            c, s = cos[patch, i], sin[patch, i]
            assert torch.allclose(rotated[..., PREFIX + patch, i], a * c - b * s, atol=1e-6)
            assert torch.allclose(rotated[..., PREFIX + patch, i + 32], b * c + a * s, atol=1e-6)


def test_prefix_tokens_pass_unchanged_and_lengths_are_kept(rope):
    tokens = torch.randn(1, 2, PREFIX + 4, HEAD_DIM)
    rotated = rotate(tokens, rope((2, 2)), num_prefix=PREFIX)
    assert torch.equal(rotated[:, :, :PREFIX], tokens[:, :, :PREFIX])
    assert not torch.allclose(rotated[:, :, PREFIX:], tokens[:, :, PREFIX:])
    assert torch.allclose(rotated.norm(dim=-1), tokens.norm(dim=-1), atol=1e-5)


def test_product_of_two_rotated_tokens_depends_on_their_offset_only(rope):
    query, key = torch.randn(1, 1, 1, HEAD_DIM), torch.randn(1, 1, 1, HEAD_DIM)
    table = rope((4, 4))
    queries = rotate(query.expand(1, 1, 16, -1), table, num_prefix=0)[0, 0]
    keys = rotate(key.expand(1, 1, 16, -1), table, num_prefix=0)[0, 0]
    products = (queries @ keys.T).view(4, 4, 4, 4)
    assert torch.allclose(products[0, 0, 1, 2], products[2, 1, 3, 3], atol=1e-4)
    assert torch.allclose(products[1, 1, 0, 0], products[3, 3, 2, 2], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_keep_their_type(rope, dtype):
    tokens = torch.randn(1, 1, PREFIX + 4, HEAD_DIM)
    table = rope((2, 2))
    halves = rotate(tokens.to(dtype), table, num_prefix=PREFIX)
    assert halves.dtype == dtype
    assert torch.allclose(halves.float(), rotate(tokens, table, num_prefix=PREFIX), atol=3e-2)
