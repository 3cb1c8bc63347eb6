"""A run is not resumed under settings that its checkpoint's own words contradict where no tensor's shape does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.errors import UserError
from ldm.training.driver import check_resumable
from tests import tiny

ADAPTERS = {"use_model_lora": True, "model_lora_r": 2, "model_lora_target": ["to_q", "to_v"]}


def saved(path: Path, **options: Any) -> Path:
    config = tiny.ldm(**options)
    state = tiny.build(config).state_dict()
    save_checkpoint({"state_dict": state, "model_config": config, "optimizer_states": []}, path)
    return path


def test_adapters_of_another_scaling_are_not_resumed(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", **ADAPTERS)
    content = read_checkpoint(path)
    check_resumable(tiny.build(tiny.ldm(**ADAPTERS)), content, path)
    with pytest.raises(UserError, match=r"trained with a scaling of 1, the config gives 4; set model_lora_alpha"):
        check_resumable(tiny.build(tiny.ldm(**ADAPTERS, model_lora_alpha=8)), content, path)
