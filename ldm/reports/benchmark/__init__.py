"""A whole benchmark from public model to one row of a table, resumable stage by stage.

* ``config``: what a benchmark file says
* ``stages``: stages that are done once, with an estimate of the time that is left
* ``pipeline``: the stages of one private run and of the baselines beside it
* ``direct``: a classifier trained directly with differential privacy
* ``statistics_only``: released statistics without gradients
* ``table``: the rows that are printed
"""

from __future__ import annotations

from ldm.reports.benchmark.config import BenchmarkConfig
from ldm.reports.benchmark.pipeline import BenchmarkOptions, run_benchmark

__all__ = ["BenchmarkConfig", "BenchmarkOptions", "run_benchmark"]
