"""A whole benchmark from public model to one row of a table, resumable stage by stage.

* ``config``: the content of a benchmark file
* ``options``: the command line
* ``stages``: stages that run once, with an estimate of the remaining time
* ``pipeline``: all stages of a benchmark in order
* ``shared``: data, sampling and scoring, and baselines that do not depend on epsilon
* ``private_run``: the stages of one private run, and of the baselines at its epsilon
* ``statistics_run``, ``statistics_only``: the stages of a run without gradients, and its released statistics
* ``direct``, ``linear``: classifiers trained directly with differential privacy
* ``table``: the rows that are printed
"""

from __future__ import annotations

from ldm.reports.benchmark.config import BenchmarkConfig
from ldm.reports.benchmark.options import BenchmarkOptions
from ldm.reports.benchmark.pipeline import run_benchmark

__all__ = ["BenchmarkConfig", "BenchmarkOptions", "run_benchmark"]
