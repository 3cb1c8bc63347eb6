"""Paths in a YAML: beside it, then in the working folder, then among the shipped files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.config import load_config
from ldm.config.paths import find_named
from ldm.shipped import find_shipped

WEIGHTS = "checkpoints/glyphs32-ldm.safetensors"


def test_a_path_is_looked_for_beside_the_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub" / "images").mkdir(parents=True)
    (tmp_path / "elsewhere" / "images").mkdir(parents=True)
    (tmp_path / "sub" / "a.yaml").write_text("data: {root: images, other: images, parts: [{root: images}]}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = load_config([tmp_path / "sub" / "a.yaml"]).data
    assert data.root == data.parts[0].root == str(tmp_path / "sub" / "images")
    assert data.other == "images"  # no key of a path
    monkeypatch.chdir(tmp_path / "sub")
    assert load_config(["a.yaml"]).data.root == "images"
    (tmp_path / "sub" / "images").rmdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config([tmp_path / "sub" / "a.yaml"]).data.root == "images"  # the working folder has one


def test_shipped_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: configs/quickstart/finetune-dp-eps10.yaml")
    config = load_config(["mine.yaml"])
    assert Path(config.model.params.ckpt_path) == find_shipped(WEIGHTS)
    assert load_config(["configs/quickstart/finetune-dp-eps10.yaml"]) == config
    Path("checkpoints").mkdir()
    Path(WEIGHTS).touch()  # a file of one's own wins
    assert load_config(["mine.yaml"]).model.params.ckpt_path == WEIGHTS


def test_what_is_not_shipped() -> None:
    for name in ("configs/none.yaml", "configs/../pyproject.toml", "pyproject.toml", "/etc/passwd", ""):
        assert find_shipped(name) is None
    for name in ("~/x", "$HOME/x", "none", "a" * 5000):
        assert find_named(name, Path("x.yaml")) == name
