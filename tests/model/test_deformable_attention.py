"""Deformable attention against loops over every head, query, point and pixel."""

import math

import pytest
import torch
from torch import Tensor

from deim.model.decoder.layers import DeformableAttention

DIM, HEADS, POINTS = 8, 2, (2, 3)


def bilinear(feature_map: Tensor, x: float, y: float) -> Tensor:
    """(D,) value of a (D, H, W) map at x, y in [0, 1]; zero outside."""
    channels, height, width = feature_map.shape
    column, row = x * width - 0.5, y * height - 0.5
    value = torch.zeros(channels)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < height and 0 <= c < width:
                value += feature_map[:, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return value


def attend(module: DeformableAttention, query: Tensor, ref: Tensor, features: list[Tensor]) -> Tensor:
    batch, num_queries, dim = query.shape
    level_of = [level for level, count in enumerate(POINTS) for _ in range(count)]
    width = dim // HEADS
    out = torch.zeros_like(query)
    for b in range(batch):
        for q in range(num_queries):
            offsets = module.sampling_offsets(query[b, q]).view(HEADS, len(level_of), 2)
            weights = module.attention_weights(query[b, q]).view(HEADS, len(level_of)).softmax(dim=-1)
            cx, cy, w, h = ref[b, q].tolist()
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                for point, level in enumerate(level_of):
                    dx, dy = offsets[head, point].tolist()
                    x = cx + dx / POINTS[level] * w * 0.5
                    y = cy + dy / POINTS[level] * h * 0.5
                    out[b, q, part] += weights[head, point] * bilinear(features[level][b, part], x, y)
    return out


@pytest.fixture
def module():
    torch.manual_seed(0)
    return DeformableAttention(DIM, HEADS, num_points=POINTS)


@torch.no_grad()
def test_equals_loops_on_maps_of_any_shape(module):
    for parameter in module.parameters():
        parameter.normal_(std=1.0)
    query = torch.randn(2, 5, DIM)
    ref = torch.rand(2, 5, 4)
    features = [torch.randn(2, DIM, 6, 9), torch.randn(2, DIM, 3, 4)]
    expected = attend(module, query, ref, features)
    assert expected.abs().max() > 0.1
    assert torch.allclose(module(query, ref, features), expected, atol=1e-5)


@torch.no_grad()
def test_points_far_outside_the_image_give_zero(module):
    ref = torch.tensor([[[5.0, 5.0, 0.1, 0.1]]])
    features = [torch.ones(1, DIM, 4, 4), torch.ones(1, DIM, 2, 2)]
    assert module(torch.randn(1, 1, DIM), ref, features).abs().max() == 0


@torch.no_grad()
def test_constant_maps_give_their_constant_inside_the_image(module):
    ref = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    features = [torch.full((1, DIM, 8, 8), 3.0), torch.full((1, DIM, 4, 4), 3.0)]
    actual = module(torch.randn(1, 1, DIM), ref, features)
    assert torch.allclose(actual, torch.full_like(actual, 3.0), atol=1e-5)


@torch.no_grad()
def test_starts_with_each_head_on_its_own_ray(module):
    # direction (cos 2πk/heads, sin 2πk/heads) / max-norm, times 1..n within each level.
    steps = [1, 2, 1, 2, 3]
    offsets = module.sampling_offsets(torch.randn(DIM)).view(HEADS, 5, 2)
    expected = [[[step, 0.0] for step in steps], [[-step, 0.0] for step in steps]]
    assert torch.allclose(offsets, torch.tensor(expected), atol=1e-5)
    assert module.attention_weights(torch.randn(DIM)).abs().max() == 0
    assert module.num_points_scale.tolist() == pytest.approx([1 / 2] * 2 + [1 / 3] * 3)


def test_no_queries_give_an_empty_result(module):
    features = [torch.randn(2, DIM, 4, 4), torch.randn(2, DIM, 2, 2)]
    assert module(torch.zeros(2, 0, DIM), torch.zeros(2, 0, 4), features).shape == (2, 0, DIM)
