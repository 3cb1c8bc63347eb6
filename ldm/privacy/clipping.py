"""Per-record gradient clipping: each record moves the sum by at most C, for any number of noise draws.

This is the sensitivity half of DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1). Noise is added elsewhere,
once per logical step, to what :meth:`PerRecordClipper.pop_sums` returns.

**Guarantee.** Let every row's loss depend on that row alone. Then two data sets that differ in one record give sums,
over all parameters of a step together, that differ by at most ``Clipping.sensitivity(relation)`` in L2 norm: C when the
record is added or removed, 2C when it is replaced, up to a relative 1e-6 of fp32 rounding, for any microbatches,
any noise multiplicity, any weights and any gradients:

=============================================  =====================================================================
case                                           what happens
=============================================  =====================================================================
an empty microbatch, or an empty step          nothing is added; the sums of the step are zeros
a gradient that is not finite                  the record contributes exactly zero; the other records are unaffected
a gradient of zero                             contributes zero; no division by zero, also with gamma = 0
a gradient shorter than C                      ``flat``: added as it is; ``automatic``: scaled up to below C
a record with K noise draws                    one gradient, of the mean loss, clipped once
a record that only fills a microbatch          contributes exactly zero (``weighted``)
a parameter that is frozen                     must be left out; freezing one later is refused
a trainable parameter that is left out         refused: it would be trained without noise
a parameter that the loss does not reach       refused in the first microbatch; in later ones its sum is zero
a record without effect on some parameter      its part of the sum is zero; the bound is unchanged
forward pass in bf16 (autocast)                norms and sums are still fp32; the bound is unchanged
batch norm in training mode                    refused: it mixes records
=============================================  =====================================================================

>>> model = nn.Linear(3, 1)
>>> clipper = PerRecordClipper(model, dict(model.named_parameters()), Clipping(max_grad_norm=0.5))
>>> def loss(rows):
...     return 1000 * model(rows["x"]).squeeze(1)  # one loss a row
>>> clipper.accumulate(loss, {"x": torch.ones(4, 3)}, multiplicity=2)  # two records, two noise draws each
>>> sums = clipper.pop_sums()
>>> {name: tuple(total.shape) for name, total in sums.items()}
{'weight': (1, 3), 'bias': (1,)}
>>> round(float(torch.cat([total.flatten() for total in sums.values()]).norm()), 4)  # each moved it by C
1.0
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.privacy.engines.base import Engine, Groups, PerExampleLoss, Request, Rows
from ldm.privacy.engines.bookkeeping import BookkeepingEngine
from ldm.privacy.engines.capture import find_layers
from ldm.privacy.engines.instantiate import InstantiateEngine
from ldm.privacy.engines.layers import DEFAULT_RULES, LayerRule
from ldm.privacy.engines.naive import NaiveEngine
from ldm.privacy.event import ADD_OR_REMOVE_ONE, sensitivity
from ldm.privacy.ownership import Ownership
from ldm.privacy.sums import FlatSums
from ldm.privacy.verification import check_rows, check_sums, off_zero

STYLES = ("flat", "automatic", "per_layer")
ENGINES = ("bookkeeping", "instantiate", "naive")

# Factors are computed for a bound this much below C, so that fp32 rounding of factor times gradient stays below C.
_SHAVE = 1.0 - 2.0**-19

# Squares of numbers below 1e-19 vanish in fp32, so if the computed norm is below this, the true one may be as large.
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Clipping:
    """How one record's gradient g is scaled before it enters the sum; ``max_grad_norm`` is C >= 1e-12.

    ``flat``: g min(1, C / |g|). ``automatic``: g C / (|g| + gamma) with ``gamma`` >= 0, which scales small gradients up
    (Bu et al. 2022, arXiv 2206.07136). ``per_layer``: each of L layers is clipped on its own to C / sqrt(L)
    (McMahan et al. 2018, arXiv 1710.06963). Raises UserError for values out of range.
    """

    max_grad_norm: float
    style: str = "flat"
    gamma: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_grad_norm) and self.max_grad_norm >= _SMALLEST_NORM):
            raise UserError(
                f"max_grad_norm is {self.max_grad_norm}; give a number of at least {_SMALLEST_NORM}, e.g. 1.0"
            )
        if self.style not in STYLES:
            raise UserError(
                f"clipping style {self.style!r} is unknown; choose one of {', '.join(STYLES)}"
                f"{nearest(self.style, STYLES)}"
            )
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise UserError(f"clipping gamma is {self.gamma}; give a number from 0 up, e.g. 0.01")

    def sensitivity(self, relation: str = ADD_OR_REMOVE_ONE) -> float:
        """How far one record moves the sum at most, in L2 norm over all parameters: C, or 2C for ``replace_one``."""
        return sensitivity(self.max_grad_norm, relation)

    def groups(self, names: Iterable[str]) -> Groups:
        """Which parameters are clipped together: those of one layer for ``per_layer``, all otherwise."""
        if self.style != "per_layer":
            return Groups(dict.fromkeys(names, 0), 1)
        owners: dict[str, int] = {}
        index = {name: owners.setdefault(name.rpartition(".")[0], len(owners)) for name in names}
        return Groups(index, len(owners))

    def factors(self, squared_norms: Tensor) -> Tensor:
        """Factors (L, B) fp32 for squared gradient norms (L, B) of L groups and B records."""
        bound = self.max_grad_norm * _SHAVE / math.sqrt(squared_norms.shape[0])
        norms = squared_norms.sqrt()
        if self.style == "automatic":
            return bound / (norms.clamp_min(_SMALLEST_NORM) + self.gamma)
        return torch.where(norms <= bound, 1.0, bound / norms)


@dataclass(frozen=True)
class _Microbatch:
    """A microbatch of this step, kept until it is known that all its gradients are finite."""

    loss: PerExampleLoss
    rows: Rows
    request: Request

    def with_check(self) -> _Microbatch:
        return replace(self, request=replace(self.request, checked=True))


class PerRecordClipper:
    """Sums clipped per-record gradients of ``parameters`` over the microbatches of one logical step.

    ``module`` contains every layer with a private parameter, ``parameters`` maps names, as in
    ``module.named_parameters()``, to parameters; every other parameter of ``module`` must be frozen. ``engine`` is
    ``bookkeeping`` (default, one pass), ``instantiate`` or ``naive`` (any layer, slow); ``rules`` replaces the table of
    layer rules, e.g. ``{**DEFAULT_RULES, MyLayer: MyRule()}``.

    Raises UserError for a parameter that no rule covers, for a trainable parameter that is not private and for names
    that do not fit ``module``. Layers must keep rows on the first axis and must not mix rows.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        clipping: Clipping,
        engine: str = "bookkeeping",
        rules: Mapping[type[nn.Module], LayerRule] = DEFAULT_RULES,
    ) -> None:
        self.clipping = clipping
        self.skipped = 0
        self._parameters = dict(parameters)
        self._ownership = Ownership(module, self._parameters)
        self._engine = _build_engine(engine, module, self._parameters, rules)
        self._groups = clipping.groups(self._parameters)
        self._sums: FlatSums | None = None
        self._paths_checked = False
        #: Kinds of devices on which non-finite gradients are looked for once a step; the naive engine sees each record.
        self._check_later: tuple[str, ...] = () if engine == "naive" else ("cuda",)
        self._unchecked: list[tuple[_Microbatch, Tensor]] = []

    def accumulate(self, loss: PerExampleLoss, rows: Rows, multiplicity: int = 1, weighted: int | None = None) -> None:
        """Add the clipped gradients of one microbatch to the sums of this logical step.

        ``rows``: tensors of leading size B * ``multiplicity``, record-major (record b owns rows b * multiplicity up to
        (b + 1) * multiplicity). ``loss(rows)`` returns one loss a row, (B * multiplicity,); the loss of a record is the
        mean over its noise draws, and its gradient is clipped once. No records: nothing happens. A record with a
        non-finite gradient contributes exactly zero and is counted in ``skipped`` (a private number: do not log it).
        Records from number ``weighted`` on contribute exactly zero too; they keep the shapes constant.

        On a GPU, such records are looked for once a step, in :meth:`pop_sums`, so that the host need not wait.

        Raises UserError for shapes that do not fit, for a layer that does not see rows on its first axis, and, in the
        first microbatch with records, for a parameter that the loss does not reach through its layer's forward.
        """
        records = _count_records(rows, multiplicity)
        if weighted is not None and not 0 <= weighted <= records:
            raise UserError(f"weighted is {weighted}; give a number of records from 0 to {records}")
        if records == 0 or weighted == 0:
            return
        self._ownership.check()
        later = next(iter(rows.values())).device.type in self._check_later
        self._add(_Microbatch(loss, rows, Request(records, multiplicity, weighted, checked=not later)))

    def _add(self, microbatch: _Microbatch) -> None:
        request = microbatch.request
        result = self._engine.clipped_sums(
            microbatch.loss, microbatch.rows, request, self._groups, self.clipping.factors
        )
        self._check_paths(result.sums)
        if self._sums is None:  # after the backward pass, when most activations are freed
            self._sums = FlatSums(self._parameters, result.sums)
        else:
            self._sums.add_(result.sums)
        if isinstance(result.skipped, Tensor):
            self._unchecked.append((microbatch, result.skipped))
        else:
            self.skipped += result.skipped

    def pop_sums(self) -> FlatSums:
        """The fp32 sums per parameter name of this logical step, zeros without gradients; starts the next step.

        Microbatches that were not checked for non-finite gradients yet are checked now; if one has any, all of them are
        computed again, with these records left out.
        """
        unchecked, self._unchecked = self._unchecked, []
        if unchecked and bool(torch.stack([skipped for _, skipped in unchecked]).any()):
            self._sums = None
            for microbatch, _ in unchecked:
                self._add(microbatch.with_check())
        sums, self._sums = self._sums, None
        return FlatSums(self._parameters) if sums is None else sums

    def drop_sums(self) -> None:
        """Forget this logical step, for example when a microbatch did not fit into the memory."""
        self._sums, self._unchecked = None, []

    def untouched(self) -> list[str]:
        """Private parameters whose sum in this logical step so far is below 1e-6 of the norm of all sums.

        They would receive noise only, e.g. the queries and keys of an attention on a single token, or layers behind a
        layer that starts at zero. Use this on public data, before private training; it resets nothing.
        """
        norms = {name: float(total.norm()) for name, total in (self._sums or {}).items()}
        limit = 1e-6 * math.hypot(*norms.values())
        return [name for name in self._parameters if norms.get(name, 0.0) <= limit]

    def verify(self, loss: PerExampleLoss, rows: Rows, multiplicity: int = 1, tolerance: float = 0.02) -> None:
        """Check on public or made-up ``rows`` that unclipped sums are the ordinary gradients, and records independent.

        Finds mistakes that no rule can see: a layer whose weight is also used outside its forward, a wrong custom rule,
        rows that influence one another (with two records or more). Parameters that are zero get random values during
        the check, because the gradients behind them would be zero; the sums of the step stay unchanged. Raises
        UserError, naming the parameter whose sum is off by more than ``tolerance``, relative to its gradient or a
        thousandth of the whole gradient.
        """
        records = _count_records(rows, multiplicity)
        self._ownership.check()
        devices = list({value.device for value in rows.values() if value.device.type == "cuda"})
        with torch.random.fork_rng(devices), off_zero(self._parameters.values()):
            check_sums(self._engine, self._groups, self._parameters, loss, rows, records, multiplicity, tolerance)
            if not isinstance(self._engine, NaiveEngine):  # the naive engine calls the loss on one record at a time
                check_rows(self._engine, self._groups, loss, rows, records, multiplicity, tolerance)

    def _check_paths(self, reached: Mapping[str, Tensor]) -> None:
        if self._paths_checked:
            return
        missing = [name for name in self._parameters if name not in reached]
        if missing:
            raise UserError(
                f"the loss does not reach private parameter {missing[0]!r} through its layer's forward "
                f"({len(missing)} of {len(self._parameters)} such parameters), so it would only receive noise; "
                "freeze it, or call the layer itself instead of using its weight"
            )
        self._paths_checked = True


def _build_engine(
    engine: str,
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    rules: Mapping[type[nn.Module], LayerRule],
) -> Engine:
    if engine == "naive":
        return NaiveEngine(parameters)
    if engine == "bookkeeping":
        return BookkeepingEngine(find_layers(module, parameters, rules))
    if engine == "instantiate":
        return InstantiateEngine(find_layers(module, parameters, rules))
    raise UserError(f"engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}{nearest(engine, ENGINES)}")


def _count_records(rows: Rows, multiplicity: int) -> int:
    if multiplicity < 1:
        raise UserError(f"multiplicity is {multiplicity}; a record needs at least 1 noise draw")
    if not rows:
        raise UserError("the batch has no tensors; give at least one with the rows on its first axis")
    sizes = {key: value.shape[0] for key, value in rows.items()}
    key, size = next(iter(sizes.items()))
    for other, count in sizes.items():
        if count != size:
            raise UserError(f"batch entry {other!r} has {count} rows but {key!r} has {size}; give each the same number")
    if size % multiplicity:
        raise UserError(f"the batch has {size} rows, which {multiplicity} noise draws a record do not divide")
    return size // multiplicity
