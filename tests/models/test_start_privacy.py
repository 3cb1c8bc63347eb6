"""A private run's account follows its weights through public training, adapter files and merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import export_checkpoint, save_checkpoint
from ldm.checkpoint.adapters import export_adapter, merge_checkpoint
from tests import tiny

ACCOUNT = {"plan": {"steps": 3}, "ledger": {"steps": 3}}
LORA = {"use_model_lora": True, "model_lora_r": 2, "model_lora_target": ["qkv"]}


def saved(section: dict[str, Any], path: Path) -> Path:
    """What a public run with this configuration saves before its first step."""
    torch.manual_seed(0)
    model = tiny.build(section)
    checkpoint = {"state_dict": model.state_dict(), "model_config": section}
    model.on_save_checkpoint(checkpoint)
    save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """The checkpoint of a private run."""
    section = tiny.ldm("attention")
    state = tiny.build(section).state_dict()
    save_checkpoint({"state_dict": state, "model_config": section, "privacy": ACCOUNT}, tmp_path / "private.ckpt")
    return tmp_path / "private.ckpt"


def test_public_training_does_not_forget_a_private_start(start: Path, tmp_path: Path) -> None:
    between = saved(tiny.ldm("attention", ckpt_path=str(start)), tmp_path / "between.ckpt")
    assert tiny.build(tiny.ldm("attention", ckpt_path=str(between))).start_privacy == ACCOUNT
    export_checkpoint(between, tmp_path / "small.safetensors")
    last = tiny.build(tiny.ldm("attention", ckpt_path=str(tmp_path / "small.safetensors")))
    assert last.start_privacy == ACCOUNT
    assert not tiny.build(tiny.ldm("attention")).start_privacy


def test_adapters_bring_it_along(start: Path, tmp_path: Path) -> None:
    section = tiny.ldm("attention", ckpt_path=str(start), **LORA)
    between = saved(section, tmp_path / "adapted.ckpt")
    merge_checkpoint(between, tmp_path / "merged.ckpt")
    assert tiny.build(tiny.ldm("attention", ckpt_path=str(tmp_path / "merged.ckpt"))).start_privacy == ACCOUNT
    export_adapter(between, tmp_path / "adapter.safetensors")
    whole = tmp_path / "whole.ckpt"
    merge_checkpoint(tmp_path / "adapter.safetensors", whole, base=start)
    assert tiny.build(tiny.ldm("attention", ckpt_path=str(whole))).start_privacy == ACCOUNT
