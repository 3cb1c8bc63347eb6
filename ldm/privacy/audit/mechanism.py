"""`Mechanism`: the parts that an audit runs, by default the project's own; a test may replace one by a broken one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.sampling import sampler_from_plan


class PerExampleLoss(Protocol):
    """``loss(rows)``: tensors whose first axis (R,) are the rows -> one loss a row, (R,)."""

    def __call__(self, rows: Mapping[str, Tensor], /) -> Tensor: ...


class Clipper(Protocol):
    """The interface of a clipper in an audit; see :class:`ldm.privacy.clipping.PerRecordClipper`."""

    def accumulate(self, loss: PerExampleLoss, rows: Mapping[str, Tensor], multiplicity: int = 1, /) -> None:
        """Add the clipped gradients of ``rows`` to the sums; a record owns ``multiplicity`` consecutive rows."""

    def pop_sums(self) -> Mapping[str, Tensor]:
        """The sums of this step per parameter name; starts the next step."""


class Noise(Protocol):
    """The interface of a noise source in an audit; see :class:`ldm.privacy.noise.GaussianNoise`."""

    def add_(self, sums: Mapping[str, Tensor], /) -> None:
        """Add one step's noise in place."""


def planned_draws(plan: PrivacyPlan, num_records: int) -> Iterable[list[int]]:
    """All draws of the plan over ``num_records`` records, from the sampler that training uses."""
    return sampler_from_plan(plan, num_records, draws=plan.steps)


def planned_clipper(module: nn.Module, parameters: Mapping[str, nn.Parameter], plan: PrivacyPlan) -> Clipper:
    """The default engine with the plan's rule and C, as training builds it."""
    return PerRecordClipper(module, parameters, Clipping(plan.max_grad_norm, plan.clipping))


def planned_noise(plan: PrivacyPlan) -> Noise:
    """The plan's noise, as training builds it."""
    return GaussianNoise(plan.noise_std, insecure_seed=plan.insecure_seed)


@dataclass(frozen=True)
class Mechanism:
    """Sampler, clipper, noise and ledger of one run, each made from the plan.

    ``sampler(plan, num_records)`` yields one list of record indices a step, ``plan.steps`` of them.
    ``clipper(module, parameters, plan)`` and ``noise(plan)`` are built once a run.
    """

    sampler: Callable[[PrivacyPlan, int], Iterable[list[int]]] = planned_draws
    clipper: Callable[[nn.Module, Mapping[str, nn.Parameter], PrivacyPlan], Clipper] = planned_clipper
    noise: Callable[[PrivacyPlan], Noise] = planned_noise
    ledger: Callable[[], Ledger] = Ledger
