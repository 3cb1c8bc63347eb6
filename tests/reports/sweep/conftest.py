"""A folder with a private configuration to sweep over."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.tiny_runs import small_checkpoint, small_ldm, write_yaml


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the YAML of a private run of two steps, and other digits that are public."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start = small_checkpoint(tmp_path / "start.ckpt", small_ldm())
    dp = tiny.dp(dataset_size=30, noise_multiplier=None, epsilon=4)
    section = small_ldm(ckpt_path=str(start), train_condition_only=True, dp_config=dp)
    config = tiny.run_config(section, tiny.write_digits(tmp_path / "private"), max_steps=2)
    write_yaml(tmp_path / "run.yaml", config)
    tiny.write_digits(tmp_path / "public", 60, seed=1)
    return tmp_path
