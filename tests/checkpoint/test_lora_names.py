"""Adapters in state dicts: three naming styles with their averages, rank, scaling and merging."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.checkpoint.lora_names import (
    STYLES,
    default_scale,
    layers_of,
    merged,
    rescaled,
    stated_scale,
    style_of,
    to_plain,
    to_style,
    with_rank,
)
from ldm.errors import UserError
from tests import state_dicts

LINEAR, CONV = "model.diffusion_model.attn.to_q", "model.diffusion_model.block.qkv"
ATTENTION = "cond_stage_model.to_k"


def state(condition: bool = False) -> dict[str, Tensor]:
    """A plain-style state dict of rank 2 with averages of the adapters, as a LoRA run writes it."""
    torch.manual_seed(0)
    found = {
        "betas": torch.rand(3),
        f"{LINEAR}.weight": torch.randn(4, 5),
        f"{LINEAR}.lora_A.weight": torch.randn(2, 5),
        f"{LINEAR}.lora_B.weight": torch.randn(4, 2),
        f"{CONV}.weight": torch.randn(9, 3, 1),
        f"{CONV}.bias": torch.randn(9),
        f"{CONV}.lora_A.weight": torch.randn(2, 3, 1),
        f"{CONV}.lora_B.weight": torch.randn(9, 2, 1),
        "model.diffusion_model.out.conv.weight": torch.randn(2, 2, 3, 3),
        "model.diffusion_model.transformer.proj_out.weight": torch.randn(2, 2, 1, 1),
        "cond_stage_model.embedding.weight": torch.randn(3, 5),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(4, dtype=torch.int32),
    }
    if condition:
        found.update({f"{ATTENTION}.weight": torch.randn(2, 2), f"{ATTENTION}.lora_A.weight": torch.randn(2, 2)})
        found[f"{ATTENTION}.lora_B.weight"] = torch.randn(2, 2)
    for layer in (LINEAR, CONV):
        for end in (".lora_A.weight", ".lora_B.weight"):
            short = (layer + end).removeprefix("model.").replace(".", "")
            found[f"model_ema.{short}"] = torch.randn_like(found[layer + end])
    return found


@pytest.mark.parametrize("condition", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_there_and_back(style: str, condition: bool) -> None:
    plain = state(condition)
    named = to_style(plain, style)
    assert len(named) == len(plain) and style_of(named) == style
    back = to_plain(named)
    assert set(back) == set(plain)
    assert all(torch.equal(back[key], plain[key]) for key in plain)


def test_names_of_peft() -> None:
    named = to_style(state(), "peft")
    inner = "model.base_model.model.diffusion_model"
    assert f"{inner}.attn.to_q.base_layer.weight" in named and f"{inner}.block.qkv.base_layer.bias" in named
    assert tuple(named[f"{inner}.block.qkv.lora_A.default.weight"].shape) == (2, 3, 1)
    assert "model_ema.base_modelmodeldiffusion_modelattnto_qlora_Adefaultweight" in named
    assert f"{inner}.out.conv.weight" in named and "cond_stage_model.embedding.weight" in named
    assert "cond_stage_model.base_model.model.to_k.lora_B.default.weight" in to_style(state(True), "peft")


def test_names_of_loralib() -> None:
    named = to_style(state(), "loralib")
    assert f"{CONV}.conv.weight" in named and f"{CONV}.conv.bias" in named and f"{LINEAR}.weight" in named
    assert tuple(named[f"{CONV}.lora_A"].shape) == (2, 3) and tuple(named[f"{LINEAR}.lora_B"].shape) == (4, 2)
    assert "model_ema.diffusion_modelblockqkvlora_A" in named
    assert "model.diffusion_model.out.conv.weight" in named, "not every conv belongs to an adapter"
    assert "model.diffusion_model.transformer.proj_out.weight" in named, "a convolution over two axes has no adapter"


def test_plain_weights_get_the_names_of_a_network_with_loralib_layers() -> None:
    plain = {
        "model.d.b.qkv.weight": torch.ones(6, 2, 1),
        "model.d.b.qkv.bias": torch.ones(6),
        "model.d.b.proj_out.weight": torch.ones(2, 2, 1),
        "model_ema.dbqkvweight": torch.zeros(6, 2, 1),
    }
    named = to_style(plain, "loralib")
    assert set(named) == {
        "model.d.b.qkv.conv.weight",
        "model.d.b.qkv.conv.bias",
        "model.d.b.proj_out.conv.weight",
        "model_ema.dbqkvconvweight",
    }
    assert set(to_plain(named)) == set(plain)


def test_a_state_without_adapters_stays_as_it_is() -> None:
    plain = {"model.a.conv.weight": torch.ones(1), "model_ema.aconvweight": torch.ones(1)}
    assert style_of(plain) is None and to_plain(plain) == plain


def test_damage_is_named() -> None:
    alone = state()
    del alone[f"{LINEAR}.lora_B.weight"]
    with pytest.raises(UserError, match=r"to_q.lora_A.weight has no lora_B"):
        layers_of(alone)
    odd = {**state(), f"{CONV}.lora_B.weight": torch.ones(9, 3, 1)}
    with pytest.raises(UserError, match="qkv have ranks 2 and 3"):
        layers_of(odd)
    mixed = {**to_style(state(), "peft"), f"{LINEAR}.weight": torch.ones(4, 5)}
    with pytest.raises(UserError, match="mixes naming styles"):
        to_plain(mixed)
    stray = {**to_style(state(), "peft"), "model_ema.nothing": torch.ones(1)}
    with pytest.raises(UserError, match="'model_ema.nothing' belongs to no parameter"):
        to_plain(stray)
    wide = {**state(), f"{CONV}.weight": torch.ones(9, 3, 3), f"{CONV}.lora_A.weight": torch.ones(2, 3, 3)}
    with pytest.raises(UserError, match="no place for an adapter of a convolution wider than 1"):
        to_style(wide, "loralib")


def product(of: dict[str, Tensor], layer: str = CONV, average: bool = False) -> Tensor:
    names = [f"{layer}.lora_{end}.weight" for end in "AB"]
    if average:
        names = ["model_ema." + name.removeprefix("model.").replace(".", "") for name in names]
    down, up = (of[name].flatten(1) for name in names)
    return up @ down


@pytest.mark.parametrize("average", [False, True])
def test_a_larger_rank_computes_the_same_and_a_smaller_one_keeps_the_first_directions(average: bool) -> None:
    plain = state()
    larger = with_rank(plain, 5)
    assert layers_of(larger) == {LINEAR: 5, CONV: 5}
    torch.testing.assert_close(product(larger, average=average), product(plain, average=average))
    assert torch.equal(with_rank(larger, 2)[f"{CONV}.lora_A.weight"], plain[f"{CONV}.lora_A.weight"])
    one = with_rank(plain, {CONV: 1})
    assert layers_of(one) == {LINEAR: 2, CONV: 1}
    assert torch.equal(one[f"{CONV}.lora_B.weight"], plain[f"{CONV}.lora_B.weight"][:, :1])


def test_rescaling_reaches_the_averages() -> None:
    plain = state()
    half = rescaled(plain, lambda layer, rank: 0.5 if layer == CONV else 1.0)
    for average in (False, True):
        torch.testing.assert_close(product(half, average=average), 0.5 * product(plain, average=average))
    assert torch.equal(half[f"{LINEAR}.lora_B.weight"], plain[f"{LINEAR}.lora_B.weight"])


def test_merging() -> None:
    plain = {key: value for key, value in state().items() if not key.startswith("model_ema.")}
    whole = merged(plain, lambda layer, rank: 3.0 / rank)
    assert set(whole) == {key for key in plain if "lora_" not in key}
    expected = plain[f"{CONV}.weight"] + 1.5 * product(plain)[..., None]
    torch.testing.assert_close(whole[f"{CONV}.weight"], expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(UserError, match="no .*to_q.weight to merge"):
        merged({key: value for key, value in plain.items() if key != f"{LINEAR}.weight"}, default_scale(None))
    with pytest.raises(UserError, match="raw and averaged"):
        merged(state(), default_scale(None))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, None),
        ({"use_model_lora": True}, 1.0),
        ({"use_model_lora": True, "model_lora_alpha": 4, "model_lora_scaling": "rslora"}, 2.0),
        ({"use_lora": True}, 0.25),
    ],
)
def test_the_scaling_that_a_configuration_states(params: dict[str, object], expected: float | None) -> None:
    scale = stated_scale(params)
    assert (None if scale is None else scale(LINEAR, 4)) == expected
    assert default_scale("peft")(LINEAR, 4) == 1.0 and default_scale("loralib")(LINEAR, 4) == 0.25


@pytest.mark.parametrize("name", [name for name in state_dicts.names() if name.startswith("dplora_")])
def test_published_models_get_plain_names_and_their_own_back(name: str) -> None:
    listed = {key: torch.empty(shape, device="meta") for key, (_, shape) in state_dicts.listing(name).items()}
    plain = to_plain(listed)
    assert style_of(listed) == "peft" and style_of(plain) == "plain"
    assert not [key for key in plain if "base_model" in key or "base_layer" in key or "default" in key]
    assert {key: value.shape for key, value in to_style(plain, "peft").items()} == {
        key: value.shape for key, value in listed.items()
    }
