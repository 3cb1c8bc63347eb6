"""Private mechanisms with a planted mistake, each of which an audit has to find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ldm.privacy.audit.mechanism import (
    Clipper,
    Mechanism,
    Noise,
    PerExampleLoss,
    planned_clipper,
    planned_draws,
    planned_noise,
)
from ldm.privacy.event import SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.plan import PrivacyPlan


def half_noise(plan: PrivacyPlan) -> Noise:
    """Noise of half the standard deviation that is accounted for."""
    return GaussianNoise(plan.noise_std / 2, insecure_seed=plan.insecure_seed)


class RepeatedNoise:
    """One noise vector, drawn in the first step and added in all of them."""

    def __init__(self, plan: PrivacyPlan) -> None:
        self._noise = planned_noise(plan)
        self._first: dict[str, Tensor] | None = None

    def add_(self, sums: Mapping[str, Tensor], /) -> None:
        if self._first is None:
            self._first = {name: torch.zeros_like(value) for name, value in sums.items()}
            self._noise.add_(self._first)
        for name, value in sums.items():
            value.add_(self._first[name])


class CopiesAsRecords:
    """A clipper that clips each noise draw of a record on its own, as published code did."""

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], plan: PrivacyPlan) -> None:
        self._clipper: Clipper = planned_clipper(module, parameters, plan)

    def accumulate(self, loss: PerExampleLoss, rows: Mapping[str, Tensor], multiplicity: int = 1, /) -> None:
        self._clipper.accumulate(loss, rows, 1)

    def pop_sums(self) -> Mapping[str, Tensor]:
        return self._clipper.pop_sums()


def drawn_twice(plan: PrivacyPlan, num_records: int) -> Iterator[list[int]]:
    """Poisson draws in which every drawn record is named twice."""
    for batch in planned_draws(plan, num_records):
        yield sorted(batch + batch)


def double_rate(plan: PrivacyPlan, num_records: int) -> Iterator[list[int]]:
    """Poisson draws at twice the rate that is accounted for."""
    yield from planned_draws(replace(plan, sample_rate=min(1.0, 2 * plan.sample_rate)), num_records)


def shuffled_epochs(plan: PrivacyPlan, num_records: int) -> Iterator[list[int]]:
    """What a shuffling loader does: every epoch is a fresh permutation, cut into batches of one size."""
    generator = np.random.default_rng(plan.insecure_seed)
    batches = max(1, round(1 / plan.sample_rate))
    size = -(-num_records // batches)
    drawn = 0
    while drawn < plan.steps:
        order = generator.permutation(num_records)
        for start in range(0, batches * size, size):
            yield sorted(int(index) for index in order[start : start + size])
            drawn += 1


class ForgetfulLedger(Ledger):
    """Records every second step."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = 0

    def record(self, event: SamplingEvent, count: int = 1) -> None:
        self._seen += count
        if self._seen % 2 == 0:
            super().record(event, count)


#: Name to mechanism; ``audit`` finds all of them but shuffled epochs, which ``audit_pairs`` finds.
BROKEN: dict[str, Mechanism] = {
    "noise of half the deviation": Mechanism(noise=half_noise),
    "one noise vector for all steps": Mechanism(noise=RepeatedNoise),
    "noise draws clipped as records": Mechanism(clipper=CopiesAsRecords),
    "each drawn record named twice": Mechanism(sampler=drawn_twice),
    "twice the sampling rate": Mechanism(sampler=double_rate),
    "a ledger that forgets every second step": Mechanism(ledger=ForgetfulLedger),
    "shuffled epochs instead of Poisson draws": Mechanism(sampler=shuffled_epochs),
}
