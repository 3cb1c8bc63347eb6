"""Rule 2 of the privacy core, measured: adding or removing one record moves the clipped sum by at most C."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ldm.privacy.clipping import ENGINES, STYLES, Clipping, PerRecordClipper
from ldm.privacy.engines.layers import squares
from ldm.privacy.engines.layers.squares import SquaredNorms
from tests.privacy.per_record import MixedNet, ProjectionsNet, Rows, flat, mixed_rows, squared_error, trainable

pytestmark = pytest.mark.usefixtures("uses")

RECORDS = 3
SLACK = 1 + 1e-6

Accumulate = Callable[[PerRecordClipper, Callable[[Rows], Tensor], Rows, int], None]


def measured_sensitivity(
    clipping: Clipping,
    engine: str,
    multiplicity: int,
    accumulate: Accumulate,
    autocast: bool = False,
    identical: bool = True,
    network: type[nn.Module] = MixedNet,
) -> float:
    """Largest change of the sum, in units of C, over removals of each record; its copies are the worst case, equal."""
    torch.manual_seed(0)
    net = network()
    if identical:
        rows = {key: value.repeat_interleave(multiplicity, 0) for key, value in mixed_rows(RECORDS).items()}
    else:
        rows = mixed_rows(RECORDS * multiplicity)

    def loss(batch: Rows) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return squared_error(net, batch)

    def total(batch: Rows) -> Tensor:
        clipper = PerRecordClipper(net, trainable(net), clipping, engine)
        accumulate(clipper, loss, batch, multiplicity)
        return flat(clipper.pop_sums())

    everyone = total(rows)
    changes = []
    for left_out in range(RECORDS):
        keep = [row for row in range(RECORDS * multiplicity) if row // multiplicity != left_out]
        others = total({key: value[keep] for key, value in rows.items()})
        changes.append(float((everyone - others).norm()) / clipping.max_grad_norm)
    return max(changes)


def as_built(clipper: PerRecordClipper, loss: Callable[[Rows], Tensor], rows: Rows, multiplicity: int) -> None:
    clipper.accumulate(loss, rows, multiplicity)


def copies_as_records(clipper: PerRecordClipper, loss: Callable[[Rows], Tensor], rows: Rows, multiplicity: int) -> None:
    """The published mistake: every noise draw is clipped on its own."""
    clipper.accumulate(loss, rows, 1)


@pytest.mark.parametrize("multiplicity", [1, 4, 8, 12])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_record_moves_the_sum_by_at_most_c(engine: str, style: str, multiplicity: int) -> None:
    clipping = Clipping(0.1, style)
    change = measured_sensitivity(clipping, engine, multiplicity, as_built)
    assert change <= clipping.sensitivity() / clipping.max_grad_norm * SLACK
    assert change > 0.99  # gradients are far above C, so the bound is used up


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_under_bf16_autocast(engine: str, style: str) -> None:
    change = measured_sensitivity(Clipping(0.1, style), engine, 4, as_built, autocast=True)
    assert 0.99 < change <= SLACK


@pytest.mark.parametrize("bound", [1e-6, 1e-3, 3.0, 30.0, 1e4])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_for_any_c_and_different_draws(engine: str, bound: float) -> None:
    assert measured_sensitivity(Clipping(bound), engine, 2, as_built, identical=False) <= SLACK


@pytest.mark.parametrize("engine", ENGINES)
def test_the_measurement_catches_copies_clipped_as_records(engine: str) -> None:
    assert measured_sensitivity(Clipping(0.1), engine, 4, copies_as_records) == pytest.approx(4.0, rel=1e-3)
    assert measured_sensitivity(Clipping(0.1), engine, 4, copies_as_records, identical=False) > 1.1


def test_the_measurement_catches_a_clipper_that_does_not_clip() -> None:
    assert measured_sensitivity(Clipping(1e9), "bookkeeping", 1, as_built) * 1e9 > 1.1


@pytest.mark.parametrize("multiplicity", [1, 4, 8])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_where_norms_of_layers_are_taken_together(engine: str, style: str, multiplicity: int) -> None:
    change = measured_sensitivity(Clipping(0.1, style), engine, multiplicity, as_built, network=ProjectionsNet)
    assert 0.99 < change <= SLACK


class ManySmallLayers(nn.Module):
    """100 linear layers of 3,660 numbers each, which the engines measure together. Rows as MixedNet."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(96, 60)
        self.middle = nn.ModuleList(nn.Linear(60, 60) for _ in range(100))
        self.out = nn.Linear(60, 48)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        hidden = self.lift(x.flatten(1))
        for layer in self.middle:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.out(hidden).unflatten(1, (4, 12))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_holds_for_many_small_layers(engine: str, style: str) -> None:
    # one fp32 sum over all of them was 1.2e-5 short
    change = measured_sensitivity(Clipping(0.1, style), engine, 2, as_built, network=ManySmallLayers)
    assert 0.99 < change <= SLACK


def only_the_latest(norms: SquaredNorms, inputs: Tensor, grad_outputs: Tensor, bias: bool) -> None:
    norms._products.clear()
    real_add_products(norms, inputs, grad_outputs, bias)


def without_bias(norms: SquaredNorms, inputs: Tensor, grad_outputs: Tensor, bias: bool) -> None:
    real_add_products(norms, inputs, grad_outputs, False)


real_add_products = SquaredNorms.add_products


@pytest.mark.parametrize("broken", [only_the_latest, without_bias])
def test_the_measurement_catches_norms_that_leave_something_out(
    broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SquaredNorms, "add_products", broken)
    assert measured_sensitivity(Clipping(0.1), "bookkeeping", 1, as_built, network=ProjectionsNet) > 1.01


def test_the_measurement_catches_an_input_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squares, "_same_memory", lambda first, second: True)
    assert measured_sensitivity(Clipping(0.1), "bookkeeping", 1, as_built, network=ProjectionsNet) > 1.01
