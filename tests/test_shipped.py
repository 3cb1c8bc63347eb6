"""What the wheel carries: every configuration and every public model of the checkout."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import setuptools

from ldm.config import load_config
from ldm.reports.own_images import PUBLIC_MODELS
from ldm.shipped import find_shipped

ROOT = Path(__file__).parents[1]


def test_every_file_is_in_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **values: said.update(values))
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert {"ldm", "callbacks", "ldm.commands", "ldm.shipped", "ldm.privacy.engines.layers"} <= set(said["packages"])
    for package, folder in said["package_dir"].items():
        assert package in said["packages"]
        carried = {path for pattern in patterns[package] for path in (ROOT / folder).glob(pattern)}
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert carried == {path for path in files if ROOT / "checkpoints" / "private" not in path.parents}


@pytest.mark.parametrize("model", PUBLIC_MODELS, ids=lambda model: model.name)
def test_the_catalogue_says_what_the_configurations_say(model: Any) -> None:
    assert find_shipped(model.weights) or not model.weights
    config = load_config(list(model.configs))
    params = config.model.params
    assert params.cond_stage_config.params.n_classes == model.classes + 1  # and the null class
    first = params.first_stage_config.params.ddconfig
    assert (first.in_channels, first.resolution) == (model.channels, model.size)
    if model.moments is not None:  # `dp-ldm new` writes the rest
        assert find_shipped(model.moments.frame) or not model.weights
        return
    assert params.dp_config.max_grad_norm == model.clipping_norm
    assert config.lightning.trainer.max_steps == model.steps
    assert config.model.base_learning_rate * config.data.params.batch_size == pytest.approx(
        model.learning_rate, rel=0.01
    )
