"""The check on made-up records finds what no layer rule sees, also behind weights that start at zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.clipping import ENGINES, Clipping, PerRecordClipper
from ldm.privacy.engines.base import Rows

ROWS = {"x": torch.linspace(-1, 1, 18).reshape(6, 3)}


class Net(nn.Module):
    """Two layers, the second at zero as that of an adapter; ``outside`` and ``mixed`` are mistakes of a known size."""

    def __init__(self, outside: float = 0.0, mixed: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        self.outside, self.mixed = outside, mixed

    def losses(self, rows: Rows) -> Tensor:
        hidden = self.first(rows["x"])
        if self.outside:
            hidden = hidden + self.outside * F.linear(rows["x"], self.first.weight)
        hidden = hidden - self.mixed * hidden.mean(0, keepdim=True)
        return (self.second(hidden) - 1).square().mean(1)


def verify(net: Net, engine: str = "bookkeeping", multiplicity: int = 1, rows: Rows = ROWS) -> None:
    PerRecordClipper(net, dict(net.named_parameters()), Clipping(1.0), engine).verify(net.losses, rows, multiplicity)


@pytest.mark.parametrize("multiplicity", [1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_honest_network_passes_and_keeps_its_zeros(engine: str, multiplicity: int) -> None:
    net = Net()
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    verify(net, engine, multiplicity)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "naive"])
def test_a_weight_behind_zeros_that_is_used_outside_its_layer_is_found(engine: str) -> None:
    net = Net(outside=0.5)
    with pytest.raises(UserError, match=r"gradients of 'first\.weight' do not add up"):
        verify(net, engine)
    assert not net.second.weight.any() and not net.second.bias.any()


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "naive"])
def test_records_that_influence_one_another_are_found(engine: str, multiplicity: int) -> None:
    with pytest.raises(UserError, match="depends on the other records of its batch"):
        verify(Net(mixed=0.2), engine, multiplicity)


def test_copies_of_one_record_may_influence_one_another() -> None:
    verify(Net(mixed=0.2), multiplicity=6)
