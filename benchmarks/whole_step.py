"""A whole training step, private or not, as a user pays for it: gradients, noise, AdamW and running average."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.private_step import finish
from benchmarks.workloads import SIZES, build, make_rows
from ldm.modules.ema import LitEma
from ldm.modules.fused import fused_option
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.noise import GaussianNoise

PARTS = ("gradients", "noise", "optimizer", "average")


@dataclass(frozen=True)
class Workload:
    """One network, what is trained, and how many records with how many noise draws each."""

    size: str
    selection: str
    records: int
    copies: int = 1

    @property
    def title(self) -> str:
        draws = f", K = {self.copies}" if self.copies > 1 else ""
        return f"{self.size}, {self.selection}, B {self.records}{draws}"


class PlainStep:
    """The mean loss of as many rows, fused AdamW, running average: the fastest step without privacy."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        size = SIZES[workload.size]
        self.device = device
        self.workload = workload
        self.rows: Mapping[str, Tensor] = make_rows(size, workload.records, workload.copies, device)
        self.model = build(size, device, workload.selection)
        self.trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        values = list(self.trained.values())
        self.optimizer = torch.optim.AdamW(values, lr=1e-5, **fused_option(values))
        self.average = LitEma(self.model.model).to(device)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def gradients(self) -> None:
        self.model.per_example_losses(self.rows).mean().backward()

    def noise(self) -> None:
        """Nothing without privacy."""

    def take(self) -> dict[str, float]:
        """Take one step; seconds of each part. On a CPU they are CPU time of this process, of all its threads."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        self.optimizer.zero_grad(set_to_none=True)
        works = (self.gradients, self.noise, self.optimizer.step, lambda: self.average(self.model.model))
        found = {}
        for part, work in zip(PARTS, works, strict=True):
            finish(self.device)
            started = clock()
            work()
            finish(self.device)
            found[part] = clock() - started
        return found


class PrivateStep(PlainStep):
    """The same with per-record clipping and noise."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        super().__init__(workload, device)
        self.clipper = PerRecordClipper(self.model, self.trained, Clipping(1.0))
        self.source = GaussianNoise(1e-3)

    def gradients(self) -> None:
        self.clipper.accumulate(self.model.per_example_losses, self.rows, self.workload.copies)
        self.sums = self.clipper.pop_sums()

    def noise(self) -> None:
        self.source.add_(self.sums)
        self.sums.flat.div_(self.workload.records)
        for name, parameter in self.trained.items():
            parameter.grad = self.sums[name]
        del self.sums


@dataclass
class Timing:
    """Seconds of each part in every round, of the plain and the private step."""

    plain: list[dict[str, float]] = field(default_factory=list)
    private: list[dict[str, float]] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over rounds of the private step's time to the plain one's in the same round."""
        pairs = zip(self.private, self.plain, strict=True)
        return statistics.median(sum(one.values()) / sum(other.values()) for one, other in pairs)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a round."""
        pairs = zip(self.private, self.plain, strict=True)
        ratios = [sum(one.values()) / sum(other.values()) for one, other in pairs]
        return min(ratios), max(ratios)

    def share(self, rounds: Sequence[Mapping[str, float]], part: str) -> float:
        """Median seconds of a part, as a share of the plain step's median."""
        whole = statistics.median(sum(one.values()) for one in self.plain)
        return statistics.median(one[part] for one in rounds) / whole


def compare(workload: Workload, device: torch.device, rounds: int) -> Timing:
    """Time plain and private steps in turn, the order changing from round to round; the first round only warms up."""
    steps = {"plain": PlainStep(workload, device), "private": PrivateStep(workload, device)}
    timing = Timing()
    for number in range(rounds + 1):
        names = list(steps) if number % 2 else list(steps)[::-1]
        for name in names:
            found = steps[name].take()
            if number:
                getattr(timing, name).append(found)
            gc.collect()
    return timing
