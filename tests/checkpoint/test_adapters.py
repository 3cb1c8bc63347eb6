"""Files with adapters: on their own, merged, renamed, resized; whole runs that write and resume them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.checkpoint import export_checkpoint, read_checkpoint, save_checkpoint
from ldm.checkpoint.adapters import (
    convert_checkpoint,
    export_adapter,
    fingerprint,
    merge_checkpoint,
    read_adapted,
)
from ldm.checkpoint.lora_names import layers_of
from ldm.errors import UserError
from ldm.inference import load_model
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.modules.lora import is_adapter_name
from ldm.privacy.ledger import Ledger
from ldm.training import private_run, train
from tests import tiny

CPU = torch.device("cpu")
TARGETS = {"spatial": ["to_q", "to_k", "to_v", "to_out.0"], "attention": ["qkv", "proj_out"]}
EMBEDDING = "cond_stage_model.embedding.weight"


def section(kind: str = "spatial", **params: Any) -> dict[str, Any]:
    options = {"use_model_lora": True, "model_lora_r": 2, "model_lora_target": TARGETS[kind]}
    return tiny.ldm(kind, **{**options, "train_condition_only": kind == "spatial", **params})


def trained(folder: Path, kind: str = "spatial", **params: Any) -> tuple[Path, Path]:
    """A public checkpoint, and one of a run from it whose adapters (and averages, by 0.02 more) have moved."""
    public, last = folder / "public.ckpt", folder / "last.ckpt"
    if not public.exists():
        tiny.public_checkpoint(public, kind)
    config = section(kind, **params)
    start = copy.deepcopy(config)
    start["params"]["ckpt_path"] = str(public)
    torch.manual_seed(1)
    model = tiny.build(start)
    with torch.no_grad():
        for value in model.select_trainable().parameters.values():
            value.add_(0.1 * torch.randn(value.shape))
    model.model_ema.reset(model.model)
    state = model.state_dict()
    for name in model.model_ema.m_name2s_name.values():
        state[f"model_ema.{name}"] += 0.02
    privacy = {"plan": {"steps": 3}, "ledger": {"events": []}}
    save_checkpoint({"state_dict": state, "model_config": config, "privacy": privacy, "epoch": 2}, last)
    return public, last


@pytest.fixture(scope="module", params=tiny.KINDS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    return (request.param, *trained(tmp_path_factory.mktemp("files"), request.param))


def outputs(model: Any, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    rows = {"z": torch.randn(3, 2, 4, 4, generator=generator), "t": torch.tensor([1, 400, 900])}
    rows["noise"] = torch.randn(3, 2, 4, 4, generator=generator)
    if kind == "spatial":
        rows["cond:class_label"] = torch.tensor([0, 4, 9])
    with torch.no_grad():
        return model.per_example_losses(rows)


def sampled(path: Path, config: dict[str, Any], kind: str, folder: Path, ema: bool = True) -> Tensor:
    """Losses of a checkpoint as the samplers load it."""
    yaml = tiny.options(folder / "configs", {"model": config}).base[0]
    return outputs(load_model(yaml, path, CPU, ema), kind)


@pytest.mark.parametrize("ema", [True, False])
def test_a_merged_checkpoint_computes_the_same(files: tuple[str, Path, Path], ema: bool, tmp_path: Path) -> None:
    kind, public, last = files
    target = tmp_path / "merged.safetensors"
    assert merge_checkpoint(last, target, ema=ema) > 0
    content = read_checkpoint(target)
    stored = json.loads(content["metadata"]["model_config"])
    assert not [key for key in stored["params"] if "lora" in key] and json.loads(content["metadata"]["privacy"])
    assert not layers_of(content["state_dict"])
    expected = sampled(last, section(kind), kind, tmp_path, ema)
    torch.testing.assert_close(sampled(target, stored, kind, tmp_path), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sampled(public, tiny.ldm(kind), kind, tmp_path), expected, atol=1e-3)


def test_a_file_of_adapters_alone(files: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, public, last = files
    adapter, whole, merged = (tmp_path / name for name in ("adapter.safetensors", "whole.ckpt", "merged.ckpt"))
    count = export_adapter(last, adapter)
    content = read_checkpoint(adapter)
    state = content["state_dict"]
    assert count == sum(value.numel() for value in state.values())
    assert {key for key in state if not is_adapter_name(key)} == ({EMBEDDING} if kind == "spatial" else set())
    assert json.loads(content["metadata"]["model_config"])["params"]["model_lora_r"] == 2
    assert json.loads(content["metadata"]["privacy"]) == {"plan": {"steps": 3}, "ledger": {"events": []}}
    assert adapter.stat().st_size < last.stat().st_size / 10

    merge_checkpoint(adapter, merged, base=public)
    merge_checkpoint(last, whole)
    one, other = read_checkpoint(merged)["state_dict"], read_checkpoint(whole)["state_dict"]
    assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_adapters_know_their_base(tmp_path: Path) -> None:
    public, last = trained(tmp_path, start_from_ema=False)
    adapter = tmp_path / "adapter.safetensors"
    export_adapter(last, adapter)
    merge_checkpoint(adapter, tmp_path / "merged.safetensors", base=public)  # finds the raw weights
    merge_checkpoint(last, tmp_path / "whole.safetensors")
    one, other = (read_checkpoint(tmp_path / f"{name}.safetensors")["state_dict"] for name in ("merged", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(UserError, match=r"this is an adapter: .*merge_lora.py --ckpt .*adapter.safetensors --base"):
        sampled(adapter, section(), "spatial", tmp_path)
    with pytest.raises(UserError, match="this is an adapter: "):
        tiny.build(section(ckpt_path=str(adapter)))
    with pytest.raises(UserError, match="this is an adapter: "):
        export_checkpoint(adapter, tmp_path / "no.safetensors")
    stranger = tiny.build(tiny.ldm())
    save_checkpoint({"state_dict": stranger.state_dict()}, tmp_path / "stranger.ckpt")
    with pytest.raises(UserError, match=r"stranger.ckpt: is not the model that the adapters of .* were trained from"):
        merge_checkpoint(adapter, tmp_path / "no.safetensors", base=tmp_path / "stranger.ckpt")
    with pytest.raises(UserError, match="has adapters itself"):
        merge_checkpoint(adapter, tmp_path / "no.safetensors", base=last)
    with pytest.raises(UserError, match="holds adapters only; type --base"):
        merge_checkpoint(adapter, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()
    assert fingerprint({}, ["a"]) == ""


@pytest.mark.parametrize("options", [{}, {"model_lora_alpha": 6.0}, {"model_lora_scaling": "rslora"}])
@pytest.mark.parametrize("style", ["peft", "loralib"])
def test_other_names_and_back_compute_the_same(style: str, options: dict[str, Any], tmp_path: Path) -> None:
    _, last = trained(tmp_path, **options)
    expected = sampled(last, section(**options), "spatial", tmp_path)
    foreign, back = tmp_path / "foreign.ckpt", tmp_path / "back.safetensors"
    convert_checkpoint(last, foreign, style)
    renamed = read_checkpoint(foreign)
    torch.testing.assert_close(
        sampled(foreign, renamed["model_config"], "spatial", tmp_path), expected, atol=1e-6, rtol=1e-5
    )
    convert_checkpoint(foreign, back, "plain")
    stored = json.loads(read_checkpoint(back)["metadata"]["model_config"])
    torch.testing.assert_close(sampled(back, stored, "spatial", tmp_path), expected, atol=1e-6, rtol=1e-5)
    merge_checkpoint(foreign, tmp_path / "merged.safetensors")
    merged = sampled(tmp_path / "merged.safetensors", tiny.ldm(), "spatial", tmp_path)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


def test_names_of_dp_ldm_fit_its_switches(tmp_path: Path) -> None:
    _, last = trained(tmp_path)
    convert_checkpoint(last, tmp_path / "loralib.ckpt", "loralib")
    lineage = tiny.ldm(unet_params={"lora_rank": 2}, use_lora=True)
    found = sampled(tmp_path / "loralib.ckpt", lineage, "spatial", tmp_path)
    torch.testing.assert_close(found, sampled(last, section(), "spatial", tmp_path), atol=1e-6, rtol=1e-5)
    # DP-LoRA's names hold adapters of scaling 1, whatever the switches of the network that reads them
    convert_checkpoint(last, tmp_path / "peft.ckpt", "peft")
    found = sampled(tmp_path / "peft.ckpt", lineage, "spatial", tmp_path)
    torch.testing.assert_close(found, sampled(last, section(), "spatial", tmp_path), atol=1e-6, rtol=1e-5)


def test_another_rank_only_when_asked(tmp_path: Path) -> None:
    _, last = trained(tmp_path)
    expected = sampled(last, section(), "spatial", tmp_path)
    with pytest.raises(UserError, match="rank 2 in the file and 3 in the config; .*--adapt-rank 3"):
        tiny.build(section(ckpt_path=str(last), model_lora_r=3))
    convert_checkpoint(last, tmp_path / "three.ckpt", "plain", adapt_rank=3)
    three = read_checkpoint(tmp_path / "three.ckpt")
    assert three["model_config"]["params"]["model_lora_r"] == 3
    found = sampled(tmp_path / "three.ckpt", three["model_config"], "spatial", tmp_path)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="--adapt-rank 0"):
        convert_checkpoint(last, tmp_path / "no.ckpt", "plain", adapt_rank=0)


def test_refusals(tmp_path: Path) -> None:
    public, last = trained(tmp_path)
    with pytest.raises(UserError, match="has no adapters"):
        merge_checkpoint(public, tmp_path / "no.ckpt")
    silent = tmp_path / "silent.ckpt"
    save_checkpoint({"state_dict": read_checkpoint(last)["state_dict"]}, silent)
    with pytest.raises(UserError, match="does not say how its adapters are scaled; type --alpha"):
        read_adapted(silent)
    assert read_adapted(silent, alpha=1.0).scale("any", 2) == 0.5
    with pytest.raises(UserError, match="trained with a scaling of 1, the config gives 0.5"):
        tiny.build(section(ckpt_path=str(last), model_lora_alpha=1.0))
    with pytest.raises(UserError, match="has adapters on 56 layers .*the config has none; .*merge_lora.py"):
        tiny.build(tiny.ldm(ckpt_path=str(last)))
    with pytest.raises(UserError, match="has no adapters, the config has 56; give the checkpoint of the fine-tuned"):
        sampled(public, section(), "spatial", tmp_path)


# ---------------------------------------------------------------------- whole runs


SCHEDULE = {"initial_rank": 3, "final_rank": 1, "schedule_type": "cosine"}


def test_a_private_run_writes_its_adapters_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda plan: lambda steps: 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.public_checkpoint(tmp_path / "public.ckpt")
    tiny.write_digits(tmp_path / "digits", 12)
    params = {"ckpt_path": str(tmp_path / "public.ckpt"), "model_lora_rank_schedule": SCHEDULE}
    model = section(dp_config=tiny.dp(insecure_seed=7), **params)
    config = tiny.run_config(model, tmp_path / "digits", max_epochs=2)

    whole = train(tiny.options(tmp_path / "whole", config)).path
    state = read_checkpoint(whole / "checkpoints/last.ckpt")["state_dict"]
    ranks = list(layers_of(state).values())
    assert (ranks[0], ranks[-1]) == (3, 1) and ranks == sorted(ranks, reverse=True)
    moved = [key for key, value in state.items() if key.endswith("lora_B.weight") and value.any()]
    assert len(moved) == 7 * 6, "all but queries and keys of the condition"
    averages = [key for key in state if key.startswith("model_ema.")]
    assert len(averages) == 2 + 2 * len(ranks)
    adapter = read_checkpoint(whole / "checkpoints/adapter.safetensors")
    assert layers_of(adapter["state_dict"]) == layers_of(state) and EMBEDDING in adapter["state_dict"]
    assert Ledger.from_dict(json.loads(adapter["metadata"]["privacy"])["ledger"]).steps == 4
    trained = json.loads((whole / "privacy.json").read_text())["trained"]["parameters"]
    assert all(is_adapter_name(name) for name in set(trained) - {EMBEDDING}) and len(trained) == 2 * len(moved) + 1

    step = PrivateTraining.step

    def fail_in_the_third(self: PrivateTraining, model: Any, batch: Any) -> None:
        if self.ledger.steps == 2:
            raise RuntimeError("out of luck")
        step(self, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PrivateTraining, "step", fail_in_the_third)
        with pytest.raises(RuntimeError):
            train(tiny.options(tmp_path / "halves", config))
    (half,) = (tmp_path / "halves/logs").iterdir()
    resumed = tiny.RunOptions(base=[], resume=str(half), train=True, scale_lr=False)
    again = read_checkpoint(train(resumed).path / "checkpoints/last.ckpt")["state_dict"]
    assert set(again) == set(state) and all(torch.equal(again[key], state[key]) for key in state)
