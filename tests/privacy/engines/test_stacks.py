"""Layers of one shape that are handled together: the same norms and sums as one by one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from ldm.privacy.clipping import STYLES, Clipping, PerRecordClipper
from ldm.privacy.engines.capture import Layer, Use, find_layers
from ldm.privacy.engines.layers import DEFAULT_RULES, LayerRule
from ldm.privacy.engines.layers.contributions import OuterProducts
from ldm.privacy.engines.layers.linear import LinearRule
from ldm.privacy.engines.layers.squares import SquaredNorms
from ldm.privacy.engines.layers.stacked import stack_outer_products, stack_size
from ldm.privacy.engines.stacks import Stack, arrange
from tests.privacy.per_record import clipped_sum, loss_of, relative_difference, trainable

RECORDS = 5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("positions", [1, 4, 20])
@pytest.mark.parametrize(("width", "inputs"), [(6, 9), (9, 6), (40, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layers", "sharing"), [(4, 1), (6, 3), (2, 2)])
def test_stacked_norms_and_sums_are_those_of_single_layers(
    positions: int, width: int, inputs: int, bias: bool, layers: int, sharing: int
) -> None:
    parts = []
    for number in range(layers):
        if number % sharing == 0:
            right = torch.randn(RECORDS, positions, inputs)
        parts.append(OuterProducts(torch.randn(RECORDS, positions, width), right, torch.Size((width, inputs)), bias))
    left = torch.stack([part.left for part in parts]).double()
    rights = torch.stack([part.right for part in parts]).double()
    weights = torch.einsum("lbtp,lbtd->lbpd", left, rights)
    exact = weights.square().sum((0, 2, 3)) + (left.sum(2).square().sum((0, 2)) if bias else 0)

    together = stack_outer_products(parts, sharing)
    norms = SquaredNorms()
    for contribution in together:
        contribution.measure(norms)
    assert bool((norms.total() >= exact * (1 - 1e-6)).all()) and bool((norms.total() <= exact * (1 + 1e-4)).all())

    factors, some = torch.rand(RECORDS), torch.tensor([3, 1])
    for index in (None, some):
        own = factors if index is None else factors[index]
        chosen = [part if index is None else part.select(index) for part in together]
        found = [total for part in chosen for total in part.weighted_sums(own)]
        kept = slice(None) if index is None else index
        expected: list[Tensor] = []
        for layer in range(layers):
            expected.append(torch.einsum("b,bpd->pd", own.double(), weights[layer, kept]))
            if bias:
                expected.append(torch.einsum("b,btp->p", own.double(), left[layer, kept]))
        assert len(found) == len(expected)
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-4)
    written = [gradient for part in together for gradient in part.per_record()]
    torch.testing.assert_close(written[0].double(), weights[0], rtol=1e-4, atol=1e-4)


class Blocks(nn.Module):
    """Projections that share an input, norms and convolutions of one shape, in three blocks; (R, 8, 6, 6) images."""

    def __init__(self) -> None:
        super().__init__()
        for kind in ("query", "key", "value", "back"):
            setattr(self, kind, nn.ModuleList(nn.Linear(8, 8, bias=kind == "back") for _ in range(3)))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.groups = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.points = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in range(3):
            x = x + self.convs[block](self.groups[block](x).tanh())
            flat = self.norms[block](self.points[block](x).flatten(2).transpose(1, 2))
            mixed = self.query[block](flat) * self.key[block](flat) + self.value[block](flat)
            x = x + self.back[block](mixed).transpose(1, 2).unflatten(2, x.shape[2:])
        return x


def image_rows(records: int) -> dict[str, Tensor]:
    return {"x": torch.randn(records, 8, 6, 6), "target": torch.randn(records, 8, 6, 6)}


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_a_network_of_many_alike_layers_is_clipped_as_record_by_record(style: str, multiplicity: int) -> None:
    net, rows = Blocks(), image_rows(RECORDS * multiplicity)
    clipping = Clipping(0.5, style)
    found = clipped_sum(net, rows, clipping, multiplicity=multiplicity)
    assert relative_difference(found, clipped_sum(net, rows, clipping, "naive", multiplicity)) < 1e-5


def test_a_broken_record_is_left_out_of_stacks() -> None:
    net, rows = Blocks(), image_rows(RECORDS)
    rows["target"][2] = torch.nan
    clipper = PerRecordClipper(net, trainable(net), Clipping(0.5))
    clipper.accumulate(loss_of(net), rows)
    assert clipper.skipped == 1
    assert relative_difference(clipper.pop_sums(), clipped_sum(net, rows, Clipping(0.5), "naive")) < 1e-5


def uses_of(
    net: nn.Module, inputs: dict[str, Tensor], rules: dict[type[nn.Module], LayerRule] | None = None
) -> list[Use]:
    layers = find_layers(net, trainable(net), rules or DEFAULT_RULES)
    return [use_of(layer, inputs.get(layer.path, torch.randn(RECORDS, 4, 8))) for layer in layers]


def use_of(layer: Layer, inputs: Tensor) -> Use:
    return Use(layer, inputs, layer.module(inputs).detach())


def paths(stacks: list[Stack]) -> list[tuple[list[str], int]]:
    return [([use.layer.path for use in stack.uses], stack.sharing) for stack in stacks]


def test_alike_layers_are_stacked_by_shared_input() -> None:
    net = nn.ModuleList([nn.Linear(8, 8) for _ in range(6)] + [nn.Linear(8, 5)])
    first, second = torch.randn(RECORDS, 4, 8), torch.randn(RECORDS, 4, 8)
    uses = uses_of(net, {"0": first, "2": first, "1": second, "4": second})
    alone, stacks = arrange(uses, RECORDS, Counter(names for use in uses for names in use.layer.bundles.values()))
    assert [use.layer.path for use in alone] == ["6"]
    assert sorted(paths(stacks)) == [(["0", "2", "1", "4"], 2), (["3", "5"], 1)]


def test_layers_that_are_used_twice_or_tied_or_too_large_are_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(4)])
    net[1].weight = net[0].weight
    uses = uses_of(net, {})
    expected = Counter(names for use in uses for names in use.layer.bundles.values())
    assert arrange(uses, RECORDS, expected)[1] and len(arrange(uses, RECORDS, expected)[0]) == 2, "0 and 1 are tied"
    expected[("2.weight",)] += 1
    assert arrange(uses, RECORDS, expected)[1] == []
    assert stack_size(1 << 30, 4, 4, torch.device("cpu")) == 1 == stack_size(1, 1 << 11, 8, torch.device("cpu"))


def test_only_small_layers_are_copied_into_a_stack_on_a_cpu() -> None:
    """A copy of 64 records of 16 positions and 128 numbers takes longer than the operations that a stack saves."""
    numbers = 64 * 16 * 128
    assert stack_size(numbers, 16, 64, torch.device("cpu")) == 1 < stack_size(numbers, 16, 64, torch.device("cuda"))
    assert stack_size(64 * 2 * 128, 1, 64, torch.device("cpu")) > 1


def test_a_rule_of_ones_own_is_asked_for_each_layer() -> None:
    class Own(LinearRule):
        def contribution(self, *args):  # type: ignore[no-untyped-def]
            return super().contribution(*args)

    net = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
    uses = uses_of(net, {}, {nn.Linear: Own()})
    alone, stacks = arrange(uses, RECORDS, Counter(names for use in uses for names in use.layer.bundles.values()))
    assert len(alone) == 3 and not stacks and LinearRule.stacks() and not Own.stacks()
