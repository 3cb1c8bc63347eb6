"""A whole benchmark from public model to one row of a table, resumable stage by stage.

* ``config``: the content of a benchmark file
* ``stages``: stages that run once, with an estimate of the remaining time
* ``pipeline``: the stages of one private run and of its baselines
* ``direct``: a classifier trained directly with differential privacy
* ``statistics_only``: released statistics without gradients
* ``table``: the rows that are printed
"""

from __future__ import annotations

from ldm.reports.benchmark.config import BenchmarkConfig
from ldm.reports.benchmark.pipeline import BenchmarkOptions, run_benchmark

__all__ = ["BenchmarkConfig", "BenchmarkOptions", "run_benchmark"]
