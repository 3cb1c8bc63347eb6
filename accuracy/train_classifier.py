"""The place of `scripts/train_classifier.py` in DP-LDM; the same command."""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train_classifier.py"), run_name="__main__")
