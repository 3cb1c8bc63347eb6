"""Sweeps: several settings of one private training, on public images, or on the private ones with every run charged.

* ``grid``: the settings; ``charges``: plans under which private runs are charged together, or selected
* ``request``: the arguments; ``runs``: training and scoring; ``result``: the file and the table
* ``stages``, ``candidates``: the state from which a stopped sweep resumes
"""

from __future__ import annotations

from ldm.reports.sweep.grid import parse_grid
from ldm.reports.sweep.request import SweepRequest
from ldm.reports.sweep.result import SweepResult
from ldm.reports.sweep.runs import resume_sweep, run_sweep

__all__ = ["SweepRequest", "SweepResult", "parse_grid", "resume_sweep", "run_sweep"]
