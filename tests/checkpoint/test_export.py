"""Exported weights: averages under the plain names, nothing that only training needs, the claim kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoint import export_checkpoint, read_checkpoint, save_checkpoint
from ldm.checkpoint.export import sampling_state
from ldm.errors import UserError
from tests import tiny

STATE = {
    "model.net.a": torch.ones(2),
    "model.net.frozen": torch.full((2,), 5.0),
    "model_ema.neta": torch.full((2,), 3.0),
    "model_ema.decay": torch.tensor(0.9),
    "model_ema.num_updates": torch.tensor(4),
    "first_stage_model.loss.logvar": torch.zeros(1),
    "first_stage_model.decoder.w": torch.zeros(2, 3).T,
    "loss.w": torch.zeros(1),
    "betas": torch.ones(4),
}


def test_averages_take_the_plain_names() -> None:
    state = sampling_state(STATE)
    assert set(state) == {"model.net.a", "model.net.frozen", "first_stage_model.decoder.w", "betas"}
    assert state["model.net.a"].tolist() == [3, 3], "averaged"
    assert state["model.net.frozen"].tolist() == [5, 5], "has no average"
    assert sampling_state(STATE, ema=False)["model.net.a"].tolist() == [1, 1]
    assert STATE["model.net.a"].tolist() == [1, 1], "the argument is left alone"
    assert all(value.is_contiguous() for value in state.values())


def test_averages_of_another_network() -> None:
    with pytest.raises(UserError, match="'netb' belongs to no network weight"):
        sampling_state({**STATE, "model_ema.netb": torch.ones(1)})


def test_a_file(tmp_path: Path) -> None:
    privacy: dict[str, Any] = {"plan": {"steps": 3}, "ledger": {"events": [[1, 2.5]]}}
    config = tiny.ldm()
    source, target = tmp_path / "last.ckpt", tmp_path / "small.safetensors"
    training = {"optimizer_states": [{"state": {0: torch.zeros(5)}}], "callbacks": {}, "epoch": 3}
    save_checkpoint({"state_dict": STATE, "model_config": config, "privacy": privacy, **training}, source)
    assert export_checkpoint(source, target, note="made here") == 2 + 2 + 6 + 4
    content = read_checkpoint(target)
    assert set(content["state_dict"]) == set(sampling_state(STATE))
    metadata = content["metadata"]
    assert json.loads(metadata["privacy"]) == privacy, "a private model's claim goes with it"
    assert json.loads(metadata["model_config"]) == config
    assert metadata["made_by"] == "made here"
    export_checkpoint(target, tmp_path / "again.safetensors")
    assert json.loads(read_checkpoint(tmp_path / "again.safetensors")["metadata"]["privacy"]) == privacy, "and again"


def test_files_without_averages_or_side_information(tmp_path: Path) -> None:
    weights = {"encoder.w": torch.ones(3), "loss.w": torch.zeros(2)}
    torch.save(weights, tmp_path / "bare.pt")
    assert export_checkpoint(tmp_path / "bare.pt", tmp_path / "a.safetensors") == 3
    assert read_checkpoint(tmp_path / "a.safetensors")["metadata"] == {}


def test_another_decoder(tmp_path: Path) -> None:
    parts = {"encoder.w": torch.ones(2), "quant_conv.w": torch.ones(1), "decoder.w": torch.ones(3)}
    model = {"model.net.a": torch.ones(2), **{f"first_stage_model.{name}": value for name, value in parts.items()}}
    save_checkpoint({"state_dict": model}, tmp_path / "model.ckpt")
    target = tmp_path / "new.safetensors"

    def replaced(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
        other = {**parts, "decoder.w": torch.full((3,), 7.0), "loss.w": torch.ones(1), **changes}
        save_checkpoint({"state_dict": other}, tmp_path / "other.ckpt")
        export_checkpoint(tmp_path / "model.ckpt", target, decoder=tmp_path / "other.ckpt")
        return read_checkpoint(target).state_dict

    state = replaced()
    assert set(state) == set(model) and state["first_stage_model.decoder.w"].tolist() == [7, 7, 7]
    assert torch.equal(state["first_stage_model.encoder.w"], torch.ones(2))
    with pytest.raises(UserError, match="encoder.w differs"):
        replaced(**{"encoder.w": torch.zeros(2)})
    with pytest.raises(UserError, match="other layers"):
        replaced(**{"decoder.more": torch.zeros(2)})


def test_mistakes(tmp_path: Path) -> None:
    save_checkpoint({"state_dict": STATE}, tmp_path / "a.ckpt")
    (tmp_path / "text.ckpt").write_text("no")
    for source, target, line in (
        ("a.ckpt", "b.ckpt", "exported weights are .safetensors"),
        ("none.ckpt", "b.safetensors", "does not exist"),
        ("text.ckpt", "b.safetensors", "not a readable checkpoint"),
        ("a.ckpt", "a.ckpt/b.safetensors", "cannot write"),
    ):
        with pytest.raises(UserError, match=line):
            export_checkpoint(tmp_path / source, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "text.ckpt"]
