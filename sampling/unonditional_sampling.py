"""The spelling of `unconditional_sampling.py` that the published instructions use."""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("unconditional_sampling.py")), run_name="__main__")
