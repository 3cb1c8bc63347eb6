"""`BenchmarkOptions`: the command line of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

#: Baselines that can be measured beside the private rows.
BASELINES = ("real", "public", "plain", "direct", "linear", "statistics", "warm")
#: Those that need no private run.
ALONE = ("real", "public", "plain", "direct", "linear")


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of the command line. ``baselines``: those of `BASELINES` to measure beside the private rows."""

    config: str
    epsilons: tuple[str, ...]
    output: str = "logs/benchmark"
    repeat: int = 1
    quick: bool = False
    rehearse: bool = False
    statistics_only: bool = False
    draws_only: bool = False
    baselines: tuple[str, ...] = BASELINES
    only_baselines: bool = False
