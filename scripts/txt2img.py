"""The place of `txt2img.py` in the lineage's scripts; the same command."""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "txt2img.py"), run_name="__main__")
