"""Files from elsewhere: arrays, wrappers' names, half precision, integers, NaN, PEFT folders; and flipped bytes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldm.checkpoint import load_weights, read_checkpoint, save_checkpoint, save_safetensors, state_digest
from ldm.checkpoint.adapters import merge_checkpoint, read_adapted
from ldm.checkpoint.digest import DIGEST_KEY
from ldm.errors import UserError
from tests import tiny

NETWORK = "model.diffusion_model."
STATE = {
    "model.diffusion_model.out.2.weight": torch.arange(6.0).reshape(2, 3),
    "model.diffusion_model.out.2.bias": torch.tensor([1.0, -1.0]),
    "model_ema.diffusion_modelout2weight": torch.ones(2, 3),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    "first_stage_model.quant_conv.weight": torch.ones(1, 1, 1, 1),
}


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def written(state: dict[str, Any], path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


# --- names ----------------------------------------------------------------------------------------------------------


def ddp_part(key: str) -> str:
    """Names when only the network was wrapped; averages follow their parameters, without dots."""
    if key.startswith("model."):
        return key.replace("model.", "model.module.", 1)
    averaged = key.startswith("model_ema.d") and "decay" not in key
    return key.replace("model_ema.", "model_ema.module", 1) if averaged else key


def compiled_part(key: str) -> str:
    key = key.replace("model.diffusion_model.", "model.diffusion_model._orig_mod.", 1)
    return key.replace("model_ema.diffusion_model", "model_ema.diffusion_model_orig_mod", 1)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: f"_forward_module.{key}",
        lambda key: f"_fsdp_wrapped_module.{key}".replace(".out.", ".out._checkpoint_wrapped_module."),
        ddp_part,
        compiled_part,
    ],
    ids=["ddp", "compile", "ddp of compile", "compile of ddp", "deepspeed", "fsdp", "ddp part", "compiled part"],
)
def test_names_that_wrappers_put_in_front(tmp_path: Path, rename: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = written({rename(key): value for key, value in STATE.items()}, tmp_path / "wrapped.ckpt")
    with caplog.at_level(logging.INFO):
        assert same(read_checkpoint(path)["state_dict"], STATE)
    assert "prefix" in caplog.text


def test_names_that_meet_without_their_wrapper(tmp_path: Path) -> None:
    both = {**STATE, "_orig_mod.model.diffusion_model.out.2.bias": torch.zeros(2)}
    with pytest.raises(UserError, match="another tensor are both 'model.diffusion_model.out.2.bias'"):
        read_checkpoint(written(both, tmp_path / "x.ckpt"))
    own = {"module.a": torch.ones(1), "b": torch.ones(1)}  # a part of a network may be called module
    assert same(read_checkpoint(written(own, tmp_path / "own.ckpt"))["state_dict"], own)


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [True, False])
def test_numpy_arrays_are_tensors(tmp_path: Path, bare: bool) -> None:
    arrays = {key: value.numpy() for key, value in STATE.items()}
    torch.save(arrays if bare else {"state_dict": arrays}, tmp_path / "n.pt")
    assert same(read_checkpoint(tmp_path / "n.pt")["state_dict"], STATE)
    swapped = {"a.weight": np.arange(3, dtype=">f4")}
    assert read_checkpoint(written(swapped, tmp_path / "big.pt"))["state_dict"]["a.weight"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="array of <U1, which no network holds"):
        read_checkpoint(written({"a.weight": np.array(["x"])}, tmp_path / "text.pt"))


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("key", ["model.diffusion_model.out.2.weight", "model_ema.diffusion_modelout2weight"])
def test_integers_are_no_weights(tmp_path: Path, kind: torch.dtype, key: str) -> None:
    changed = {**STATE, key: STATE[key].to(kind)}
    with pytest.raises(UserError, match=rf"holds {str(kind)[6:]} under '{key}'"):
        read_checkpoint(written(changed, tmp_path / "x.ckpt"))
    save_safetensors(changed, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="quantised"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_what_a_module_holds_is_replaced_by_its_own_kind() -> None:
    module = nn.BatchNorm1d(2)  # weight, bias, running_mean, running_var and num_batches_tracked, an integer
    state = module.state_dict()
    load_weights(module, {key: value.half() for key, value in state.items()})  # cast as a whole: 0.0 is whole
    for key, value in {"num_batches_tracked": torch.tensor(0.5), "running_mean": torch.tensor([1, 2])}.items():
        with pytest.raises(UserError, match=f"of another shape or kind:\n    {key} is torch"):
            load_weights(module, {**state, key: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    if dtype == torch.float8_e4m3fn and value == float("inf"):
        pytest.skip("this type has no infinity")
    module = nn.Linear(2, 2)
    bad = {**module.state_dict(), "bias": torch.tensor([0.0, value]).to(dtype)}
    before = module.bias.clone()
    with pytest.raises(UserError, match="1 of 2 tensors hold NaN or infinite values, the first is 'bias'"):
        load_weights(module, bad, source="x.ckpt")
    assert torch.equal(module.bias, before)


def test_no_file_is_made_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    from ldm.checkpoint import export_checkpoint

    written({**STATE, "model.diffusion_model.out.2.bias": torch.tensor([float("nan"), 0])}, tmp_path / "x.ckpt")
    for make in (export_checkpoint, merge_checkpoint):
        with pytest.raises(UserError, match="NaN"):
            make(tmp_path / "x.ckpt", tmp_path / "y.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_schedule_in_full(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tiny.public_checkpoint(tmp_path / "public.ckpt")
    state = read_checkpoint(path)["state_dict"]
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    written(half, tmp_path / "half.ckpt")
    whole, rounded = (tiny.build(tiny.ldm(ckpt_path=str(tmp_path / name))) for name in ("public.ckpt", "half.ckpt"))
    assert torch.equal(whole.alphas_cumprod, rounded.alphas_cumprod)
    assert rounded.model_ema.decay == whole.model_ema.decay, "0.9999 would be 1"
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(rounded.state_dict()[name], whole.state_dict()[name].to(dtype).float())
    with pytest.raises(UserError, match="another noise schedule"):
        tiny.build(tiny.ldm(ckpt_path=str(tmp_path / "half.ckpt"), linear_end=0.0199))


def test_eight_bits_are_no_other_schedule_and_damage_is_named(tmp_path: Path) -> None:
    path = tiny.public_checkpoint(tmp_path / "public.ckpt")
    state = read_checkpoint(path)["state_dict"]
    eight = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() and v.ndim else v for k, v in state.items()}
    written(eight, tmp_path / "eight.ckpt")
    tiny.build(tiny.ldm(ckpt_path=str(tmp_path / "eight.ckpt")))
    written({**state, "betas": state["betas"] * float("nan")}, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match="NaN"):
        tiny.build(tiny.ldm(ckpt_path=str(tmp_path / "nan.ckpt")))
    written({**state, "betas": state["betas"].to("meta")}, tmp_path / "meta.ckpt")
    with pytest.raises(UserError, match="holds no values under 'betas'"):
        read_checkpoint(tmp_path / "meta.ckpt")


# --- flipped bytes --------------------------------------------------------------------------------------------------


def flips(data: bytes, every: int) -> Any:
    """The data with one bit flipped, at every ``every``-th place and at each of the last 100."""
    for place in sorted({*range(0, len(data), every), *range(len(data) - 100, len(data))}):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        yield place, bytes(changed)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    state = {"a.weight": torch.randn(40, 4), "b.bias": torch.randn(7)}
    if name == "x.ckpt":
        save_checkpoint({"state_dict": state, "privacy": {"steps": 3}}, path)
    else:
        save_safetensors(state, path, {"privacy": '{"steps": 3}', "model_config": "{}"})
    right = read_checkpoint(path)
    noticed = 0
    for place, data in flips(path.read_bytes(), 7):
        path.write_bytes(data)
        try:
            read = read_checkpoint(path)
        except UserError as error:
            noticed += 1
            assert "\n" not in str(error), place
        else:
            assert same(read["state_dict"], right["state_dict"]), place
            assert read.get("privacy") == right.get("privacy") and read.metadata == right.metadata, place
    assert noticed > 100


def test_archives_without_checksums_are_read(tmp_path: Path) -> None:
    try:
        torch.serialization.set_crc32_options(False)
        written(STATE, tmp_path / "x.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(tmp_path / "x.ckpt")["state_dict"], STATE)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    assert state_digest(STATE) == state_digest(dict(reversed(STATE.items())))
    for change in (
        {"model_ema.decay": torch.tensor(0.9999, dtype=torch.float64)},
        {"more": torch.ones(1)},
        {"model.diffusion_model.out.2.weight": STATE["model.diffusion_model.out.2.weight"].reshape(3, 2)},
    ):
        assert state_digest({**STATE, **change}) != state_digest(STATE)
    assert state_digest({}, {"a": "b"}) != state_digest({}, {"a": "c"})
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "elsewhere.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "elsewhere.safetensors").metadata == {"format": "pt"}, "without a digest"
    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={DIGEST_KEY: "0" * 64})
    with pytest.raises(UserError, match="was changed after it was written"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("x.ckpt", "x.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="a pipe or a device"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a pipe or a device"):
        read_checkpoint(tmp_path / "zero.pt")


# --- PEFT -----------------------------------------------------------------------------------------------------------

LAYERS = {"input_blocks.1.1.attn.to_q": (6, 4), "out.to_v": (5, 4)}


def peft_folder(folder: Path, prefix: str = "", rank: int = 2, more: Any = None, **config: Any) -> Path:
    """What ``save_pretrained`` of PEFT leaves: adapters of ones on two layers, and their configuration."""
    folder.mkdir()
    state = {}
    for layer, (rows, columns) in LAYERS.items():
        state[f"base_model.model.{prefix}{layer}.lora_A.weight"] = torch.ones(rank, columns)
        state[f"base_model.model.{prefix}{layer}.lora_B.weight"] = torch.ones(rows, rank)
    save_safetensors({**state, **(more or {})}, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 6, "target_modules": ["to_q", "to_v"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return folder


def base(path: Path) -> Path:
    state = {f"{NETWORK}{layer}.weight": torch.zeros(shape) for layer, shape in LAYERS.items()}
    save_checkpoint({"state_dict": {**state, "cond_stage_model.embedding.weight": torch.zeros(3, 2)}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (3.0, 3.0)),
        ({"use_rslora": True}, (6 / 2**0.5, 6 / 2**0.5)),
        ({"alpha_pattern": {"to_v": 1}}, (3.0, 0.5)),
        ({"r": 9, "rank_pattern": {"attn.to_q": 2, "out.to_v": 2}}, (3.0, 3.0)),
    ],
)
def test_a_peft_folder_is_merged(tmp_path: Path, prefix: str, config: dict[str, Any], scales: Any) -> None:
    folder = peft_folder(tmp_path / "a", prefix, **config)
    merge_checkpoint(folder, tmp_path / "m.safetensors", base(tmp_path / "base.ckpt"))
    state = read_checkpoint(tmp_path / "m.safetensors")["state_dict"]
    for (layer, shape), scale in zip(LAYERS.items(), scales, strict=True):
        torch.testing.assert_close(state[f"{NETWORK}{layer}.weight"], torch.full(shape, 2 * scale))


def test_parts_that_peft_trained_whole_replace_those_of_the_base(tmp_path: Path) -> None:
    more = {"base_model.model.cond_stage_model.embedding.weight": torch.ones(3, 2)}
    folder = peft_folder(tmp_path / "a", "model.diffusion_model.", more=more, modules_to_save=["embedding"])
    merge_checkpoint(folder / "adapter_model.safetensors", tmp_path / "m.ckpt", base(tmp_path / "base.ckpt"))
    assert read_checkpoint(tmp_path / "m.ckpt")["state_dict"]["cond_stage_model.embedding.weight"].all()


def test_older_peft_files_and_files_without_configuration(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a")
    state = {f"{key}": value for key, value in read_raw(folder / "adapter_model.safetensors").items()}
    torch.save(state, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    assert read_adapted(folder).scale(NETWORK + "out.to_v", 2) == 3.0
    (folder / "adapter_config.json").rename(folder / "other.json")
    with pytest.raises(UserError, match="does not say how its adapters are scaled; type --alpha"):
        read_adapted(folder / "adapter_model.bin")
    assert read_adapted(folder / "adapter_model.bin", alpha=6).scale(NETWORK + "out.to_v", 2) == 3.0


def read_raw(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"peft_type": "LOHA"}, "of the kind 'LOHA'; only LORA is read"),
        ({"use_dora": True}, "use_dora is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": 4}, "says rank 4 for .*, whose tensors have 2"),
        ({"lora_alpha": None}, "lora_alpha of .* is None, not a number"),
        ({"alpha_pattern": {"(to|x)_v": 1}}, "has the pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern is list"),
    ],
)
def test_peft_settings_that_mean_something_else_are_refused(tmp_path: Path, config: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_checkpoint(peft_folder(tmp_path / "a", **config))


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belongs to no part of a latent diffusion model .*diffusers"):
        read_checkpoint(peft_folder(tmp_path / "a", "unet.down_blocks.0."))
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe/model_index.json").write_text("{}")
    with pytest.raises(UserError, match="a pipeline of the diffusers library"):
        read_checkpoint(tmp_path / "pipe")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    written(STATE, tmp_path / "run/checkpoints/last.ckpt")
    with pytest.raises(UserError, match="is a run directory; name a checkpoint in it, such as .*last.ckpt"):
        read_checkpoint(tmp_path / "run")
    deep = peft_folder(tmp_path / "deep")
    (deep / "adapter_config.json").write_text("[" * 10000)
    with pytest.raises(UserError, match="nested too deep"):
        read_checkpoint(deep)
