"""Learning-rate factors as functions of the step, for ``torch.optim.lr_scheduler.LambdaLR``.

The attributes are plain numbers and lists, because LambdaLR writes them into checkpoints.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from ldm.errors import UserError

log = logging.getLogger(__name__)


class LambdaWarmUpCosineScheduler:
    """Linear warm-up from ``lr_start`` to ``lr_max``, then half a cosine down to ``lr_min`` at ``max_decay_steps``.

    Steps count from 0; the values multiply the optimizer's base learning rate. The value is logged every
    ``verbosity_interval`` steps (0: never).
    """

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float,
        lr_max: float,
        lr_start: float,
        max_decay_steps: int,
        verbosity_interval: int = 0,
    ) -> None:
        self.lr_warm_up_steps = warm_up_steps
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.lr_start = lr_start
        self.lr_max_decay_steps = max_decay_steps
        self.verbosity_interval = verbosity_interval

    def schedule(self, n: int) -> float:
        """The factor at step n."""
        if n < self.lr_warm_up_steps:
            value = _ramp(n, self.lr_warm_up_steps, self.lr_start, self.lr_max)
        else:
            value = _cosine(n, self.lr_warm_up_steps, self.lr_max_decay_steps, self.lr_max, self.lr_min)
        _report(n, value, self.verbosity_interval)
        return value

    def __call__(self, n: int) -> float:
        return self.schedule(n)


class LambdaWarmUpCosineScheduler2:
    """Cycles of warm-up and cosine decay; the lists hold one entry per cycle.

    Within a cycle: linear from ``f_start`` to ``f_max`` over ``warm_up_steps``, then half a cosine to ``f_min`` at the
    end of the cycle. A cycle includes its last step; after the last cycle the value is constant.
    Raises UserError when the lists differ in length or are empty.

    Args:
        warm_up_steps: optimizer steps of the warm-up, one number per cycle.
        f_min: factor at the end of each cycle.
        f_max: factor at the end of each warm-up.
        f_start: factor at the first step of each cycle.
        cycle_lengths: optimizer steps of each cycle, its warm-up included.
        verbosity_interval: number of steps between log lines of the factor; 0 means never.
    """

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ) -> None:
        lengths = {len(warm_up_steps), len(f_min), len(f_max), len(f_start), len(cycle_lengths)}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                "scheduler_config: warm_up_steps, f_min, f_max, f_start and cycle_lengths need one entry per cycle; "
                f"they have {len(warm_up_steps)}, {len(f_min)}, {len(f_max)}, {len(f_start)}, {len(cycle_lengths)}"
            )
        self.lr_warm_up_steps = list(warm_up_steps)
        self.f_start = list(f_start)
        self.f_min = list(f_min)
        self.f_max = list(f_max)
        self.cycle_lengths = list(cycle_lengths)
        self.cum_cycles = [0, *accumulate(self.cycle_lengths)]
        self.verbosity_interval = verbosity_interval

    def find_in_interval(self, n: int) -> int:
        """The index of the cycle that step n belongs to."""
        return min(bisect_left(self.cum_cycles, n, lo=1) - 1, len(self.cycle_lengths) - 1)

    def schedule(self, n: int) -> float:
        """The factor at step n."""
        cycle = self.find_in_interval(n)
        k = min(n - self.cum_cycles[cycle], self.cycle_lengths[cycle])
        if k < self.lr_warm_up_steps[cycle]:
            value = _ramp(k, self.lr_warm_up_steps[cycle], self.f_start[cycle], self.f_max[cycle])
        else:
            value = self._decay(k, cycle)
        _report(n, value, self.verbosity_interval)
        return value

    def _decay(self, k: int, cycle: int) -> float:
        return _cosine(k, self.lr_warm_up_steps[cycle], self.cycle_lengths[cycle], self.f_max[cycle], self.f_min[cycle])

    def __call__(self, n: int) -> float:
        return self.schedule(n)


class LambdaLinearScheduler(LambdaWarmUpCosineScheduler2):
    """Cycles with linear decay: f_min + (f_max - f_min) * (length - k) / length at step k of a cycle.

    The decay starts at the beginning of the cycle, so right after the warm-up the factor is slightly below f_max.
    """

    def _decay(self, k: int, cycle: int) -> float:
        length = self.cycle_lengths[cycle]
        return self.f_min[cycle] + (self.f_max[cycle] - self.f_min[cycle]) * (length - k) / length


def _ramp(n: int, steps: int, start: float, end: float) -> float:
    return (end - start) / steps * n + start


def _cosine(n: int, first: int, last: int, high: float, low: float) -> float:
    progress = min((n - first) / max(last - first, 1), 1.0)
    return low + 0.5 * (high - low) * (1 + math.cos(progress * math.pi))


def _report(n: int, value: float, interval: int) -> None:
    if interval > 0 and n % interval == 0:
        log.info("step %d: learning-rate factor %g", n, value)
