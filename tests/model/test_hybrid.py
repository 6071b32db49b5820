"""The position table and the shapes of the hybrid encoder."""

import pytest
import torch

from deim.model.encoder.hybrid import HybridEncoder, HybridEncoderOptions, sincos_positions

CPU = torch.device("cpu")
DIM = 16
OPTIONS = HybridEncoderOptions(num_heads=4, dim_feedforward=32, expansion=0.5, depth_mult=0.34)


def code(a: int, b: int) -> torch.Tensor:
    """sin aω, cos aω, sin bω, cos bω, with ω_k = 10000^(-k/g)."""
    omega = torch.tensor([10000 ** (-k / (DIM // 4)) for k in range(DIM // 4)])
    return torch.cat([(a * omega).sin(), (a * omega).cos(), (b * omega).sin(), (b * omega).cos()])


def test_square_table_is_that_of_the_official_code():
    side = 5
    table = sincos_positions((side, side), DIM, device=CPU)
    expected = torch.stack([code(token // side, token % side) for token in range(side * side)])
    assert torch.allclose(table, expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2, 5), (5, 2), (1, 3)])
def test_other_tables_hold_y_then_x_of_each_cell(height, width):
    table = sincos_positions((height, width), DIM, device=CPU)
    expected = torch.stack([code(y, x) for y in range(height) for x in range(width)])
    assert torch.allclose(table, expected, atol=1e-6)


def test_all_cells_have_codes_of_their_own():
    table = sincos_positions((7, 11), DIM, device=CPU)
    assert len(torch.unique(table, dim=0)) == 77


@pytest.mark.parametrize("size_hw", [(2, 2), (1, 3)])
def test_encoder_keeps_the_shapes_of_its_maps(size_hw):
    torch.manual_seed(0)
    encoder = HybridEncoder(OPTIONS, DIM).eval()
    height, width = size_hw
    maps = [torch.randn(2, DIM, height * factor, width * factor) for factor in (4, 2, 1)]
    mixed = encoder(maps)
    assert [m.shape for m in mixed] == [m.shape for m in maps]
    assert all(not torch.equal(after, before) for after, before in zip(mixed, maps, strict=True))


def test_every_output_depends_on_every_input():
    torch.manual_seed(0)
    encoder = HybridEncoder(OPTIONS, DIM).eval()
    maps = [torch.randn(1, DIM, 4 * f, 4 * f, requires_grad=True) for f in (4, 2, 1)]
    for output in encoder(maps):
        grads = torch.autograd.grad(output.square().sum(), maps, retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)
