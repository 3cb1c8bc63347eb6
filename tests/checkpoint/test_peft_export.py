"""A PEFT folder is read back to the same adapters, scaling and account; its configuration is PEFT's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm.checkpoint.adapters import export_adapter, read_adapted
from ldm.checkpoint.peft_export import export_peft
from ldm.errors import UserError
from tests import tiny
from tests.checkpoint.test_adapters import trained


def test_there_and_back(tmp_path: Path) -> None:
    _, last = trained(tmp_path, model_lora_alpha=6)
    export_adapter(last, tmp_path / "own.safetensors")
    own = read_adapted(tmp_path / "own.safetensors")
    count = export_peft(last, tmp_path / "peft")
    back = read_adapted(tmp_path / "peft")
    assert count == sum(value.numel() for value in own.state.values())
    assert back.state.keys() == own.state.keys()
    assert all(torch.equal(back.state[name], own.state[name]) for name in own.state)
    assert all(back.scale(layer, 2) == own.scale(layer, 2) == 3.0 for layer in own.require_adapters())
    assert back.memory["privacy"] == own.memory["privacy"]
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 6)
    names = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.") for name in names)
    assert config["target_modules"] and config["modules_to_save"] == ["cond_stage_model"]
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(UserError, match="exists"):
        export_peft(last, tmp_path / "peft")


def test_a_file_without_adapters(tmp_path: Path) -> None:
    public = tiny.public_checkpoint(tmp_path / "public.ckpt")
    with pytest.raises(UserError, match="has no adapters"):
        export_peft(public, tmp_path / "peft")
    assert not (tmp_path / "peft").exists() and not list(tmp_path.glob(".peft*"))
