"""Checks beyond the layer rules: sums that are not the gradient, and records that influence one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.engines.base import Engine, Groups, PerExampleLoss, Request, Rows, per_example_losses

_LARGEST_START = 0.1


@contextmanager
def off_zero(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the ``with`` block, parameters that are zero throughout hold small random numbers; afterwards, zeros.

    Layers behind them (the first factor of an adapter whose second one starts at zero, a block with a zero output
    layer) have a gradient of zero at the start, which cannot be checked.
    """
    zeros = [parameter for parameter in parameters if not bool(parameter.detach().any())]
    try:
        with torch.no_grad():
            for parameter in zeros:
                inputs = parameter[0].numel() if parameter.ndim else 1
                parameter.normal_(std=min(_LARGEST_START, inputs**-0.5))
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


def check_sums(
    engine: Engine,
    groups: Groups,
    parameters: Mapping[str, nn.Parameter],
    loss: PerExampleLoss,
    rows: Rows,
    records: int,
    multiplicity: int,
    tolerance: float,
) -> None:
    """Raise UserError naming a parameter whose unclipped sum of per-record gradients is not its ordinary gradient.

    It may be off by ``tolerance``, relative to its gradient or a thousandth of the whole gradient. Both passes draw the
    same random numbers.
    """
    devices = _devices(rows)
    with torch.random.fork_rng(devices):
        found = engine.clipped_sums(loss, rows, Request(records, multiplicity), groups, torch.ones_like).sums
    with torch.random.fork_rng(devices), torch.enable_grad():
        total = per_example_losses(loss, rows, records * multiplicity).sum() / multiplicity
        expected = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    whole = math.hypot(*(float(gradient.norm()) for gradient in expected))
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        error = float((found.get(name, torch.zeros_like(parameter)) - gradient).norm())
        if not error <= tolerance * max(float(gradient.norm()), 1e-3 * whole):
            raise UserError(
                f"the per-record gradients of {name!r} do not add up to its ordinary gradient; "
                "is its layer's weight used outside the layer's forward, or its rule wrong?"
            )


def check_rows(
    engine: Engine, groups: Groups, loss: PerExampleLoss, rows: Rows, records: int, multiplicity: int, tolerance: float
) -> None:
    """Raise UserError when the gradient of the first record changes with the other records, by more than ``tolerance``.

    Layers that mix rows (batch statistics, attention over the batch) pass every other check, because their gradients
    add up; yet leaving out one record would change those of the others. Needs two records; both passes draw the same
    numbers.
    """
    if records < 2:
        return
    alike = {key: value[:multiplicity].repeat(records, *[1] * (value.ndim - 1)) for key, value in rows.items()}
    found = []
    for others in (rows, alike):
        with torch.random.fork_rng(_devices(rows)):
            sums = engine.clipped_sums(loss, others, Request(records, multiplicity), groups, _first_only).sums
        found.append(torch.cat([sums[name].flatten() for name in sorted(sums)]))
    if not float((found[0] - found[1]).norm()) <= tolerance * float(found[0].norm()):
        raise UserError(
            "the gradient of a record depends on the other records of its batch, so that no clipping bounds what one "
            "record changes; is there a layer with statistics over the first axis? Use group or layer normalisation"
        )


def _first_only(squares: Tensor) -> Tensor:
    return (torch.arange(squares.shape[1], device=squares.device) == 0).to(squares.dtype).expand_as(squares)


def _devices(rows: Rows) -> list[torch.device]:
    return list({value.device for value in rows.values() if value.device.type == "cuda"})
