"""Squared norms added up over many layers, against the written-out gradients in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.privacy.engines.layers.squares import SquaredNorms, gram, row_squares

RECORDS = 32

Layers = list[tuple[Tensor, Tensor]]


def random_layers(layers: int, positions: int) -> Layers:
    torch.manual_seed(layers + positions)
    return [(torch.randn(RECORDS, positions, 24), torch.randn(RECORDS, positions, 16)) for _ in range(layers)]


def true_squares(layers: Layers, bias: bool) -> Tensor:
    total = torch.zeros(RECORDS, dtype=torch.float64)
    for inputs, grad_outputs in layers:
        total += torch.einsum("bti,bto->bio", inputs.double(), grad_outputs.double()).square().sum((1, 2))
        if bias:
            total += grad_outputs.double().sum(1).square().sum(1)
    return total


def added_squares(layers: Layers, bias: bool) -> Tensor:
    norms = SquaredNorms()
    for inputs, grad_outputs in layers:
        norms.add_products(gram(inputs), gram(grad_outputs), bias)
    return norms.total()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [1, 2, 4, 16, 17, 40])
@pytest.mark.parametrize("layers", [1, 300])
def test_the_total_is_a_close_upper_bound(layers: int, positions: int, bias: bool) -> None:
    drawn = random_layers(layers, positions)
    ratio = added_squares(drawn, bias).double() / true_squares(drawn, bias)
    assert float(ratio.min()) > 1 - 1e-6
    assert float(ratio.max()) < 1 + 2e-5


@pytest.mark.parametrize("positions", [2, 4, 16, 40])
@pytest.mark.parametrize("layers", [1, 300])
def test_it_stays_an_upper_bound_when_positions_cancel(layers: int, positions: int) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(positions // 2)[None, :, None]
    cancelling = [
        (inputs[:, :1].repeat(1, positions, 1) + 1e-4 * inputs, grad_outputs[:, :1] * signs)
        for inputs, grad_outputs in random_layers(layers, positions)
    ]
    assert bool((added_squares(cancelling, False).double() >= true_squares(cancelling, False) * (1 - 1e-6)).all())


def test_one_position_that_outweighs_the_others_is_not_overstated() -> None:
    layers = random_layers(20, 16)
    for _, grad_outputs in layers:
        grad_outputs[:, 1:] *= 1e-6
    ratio = added_squares(layers, False).double() / true_squares(layers, False)
    assert float((ratio - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_record_that_is_not_finite_spoils_no_other(value: float) -> None:
    layers = random_layers(3, 4)
    layers[1][1][5, 2, 3] = value
    assert added_squares(layers, True).isfinite().tolist() == [record != 5 for record in range(RECORDS)]


def test_parts_of_every_kind_add_up() -> None:
    layers = random_layers(2, 4) + random_layers(2, 8) + random_layers(1, 40)
    norms = SquaredNorms()
    for inputs, grad_outputs in layers:
        norms.add_products(gram(inputs), gram(grad_outputs), bias=False)
    norms.add(torch.full((RECORDS,), 7.0))
    torch.testing.assert_close(norms.total().double(), true_squares(layers, False) + 7.0, rtol=2e-5, atol=0.0)


def test_layers_with_the_same_input_share_its_products_and_others_do_not() -> None:
    norms = SquaredNorms()
    inputs = torch.randn(RECORDS, 4, 4)
    first = norms.input_gram(inputs)
    assert norms.input_gram(inputs.detach()) is first
    for other in (inputs.transpose(1, 2), inputs[:, :2], torch.randn(RECORDS, 4, 4)):
        assert torch.equal(norms.input_gram(other), gram(other))


def test_memory_that_was_freed_is_not_mistaken_for_the_same_input() -> None:
    norms = SquaredNorms()
    for value in range(1, 20):
        inputs = torch.full((RECORDS, 4, 4), float(value))
        assert float(norms.input_gram(inputs)[0, 0, 0]) == 4.0 * value**2
        del inputs


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("shape", [(1,), (255,), (257,), (300, 3660), (64, 3, 3), (0,)])
def test_squares_of_long_gradients_lose_no_digits(shape: tuple[int, ...], value: float) -> None:
    gradients = torch.full((2, *shape), value)
    expected = gradients.double().square().flatten(1).sum(1)
    assert torch.allclose(row_squares(gradients), expected, rtol=1e-6, atol=0)
